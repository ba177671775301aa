//! Whether a new leader may believe its store.
//!
//! A store that was restarted, or whose place a copy took, may lack the last commits: lots that were granted in them
//! would be granted again. Nobody sees that in the store itself. Two can vouch for it all the same: the server that the
//! last commit was written to, if it is still the same; and whoever wrote the last commit, if that process lives on and
//! nobody else has begun a term since. The latter is not in the store either, since a term can be lost with it, so every
//! leader writes its term down elsewhere before it acts: with a witness.
//!
//! One that vouches may find a commit more than was acknowledged to it. That is its own, whose acknowledgement was lost:
//! its answers were never sent.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ReplicaId;

/// A term: no two have the same holder and epoch, even where a store gave an epoch out twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermId {
    /// Its epoch.
    pub epoch: u64,
    /// Who leads: one start of one process.
    pub holder: ReplicaId,
}

impl TermId {
    /// Reads what [`Display`](fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, holder) = text.split_once('/')?;
        Some(Self { epoch: epoch.parse().ok()?, holder: ReplicaId::new(holder) })
    }
}

impl fmt::Display for TermId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.holder)
    }
}

/// A commit, and the epoch that it was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The epoch; 0: none was seen yet.
    pub epoch: u64,
    /// Its number.
    pub commit: u64,
}

/// What somebody finds who begins a term.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The term.
    pub term: &'a TermId,
    /// The number of the last commit in the store.
    pub commit: u64,
    /// The term in which it was written; `None`: nothing was ever written, or by a release that did not say.
    pub author: Option<&'a TermId>,
    /// The server is the one that it was written to, and was not started anew since.
    pub same_server: bool,
    /// The last term that was begun before this one, by the witness; `None`: it knows of none.
    pub before: Option<&'a TermId>,
    /// The last term of this process that was judged. Not one that the witness may have written without an answer:
    /// what was begun before that one is not known, and was not in the store perhaps.
    pub judged: Option<&'a TermId>,
    /// The last commit that was acknowledged to this process, or that it saw in the store since.
    pub known: Mark,
}

/// What to make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Nothing that was acknowledged is missing.
    Whole,
    /// Something may be.
    Doubtful,
    /// Something is: the store gave an epoch out that had been used. Begin again, above this one, and in doubt.
    EpochUsed(u64),
}

impl Found<'_> {
    /// The rule. Where it says that something is or may be missing, that is not forgotten before a commit of this
    /// process is acknowledged in which its consequence is stored.
    pub fn trust(&self) -> Trust {
        if let Some(before) = self.before
            && before.epoch >= self.term.epoch
        {
            return Trust::EpochUsed(before.epoch);
        }
        let mine = |term: &TermId| term.holder == self.term.holder;
        let began_last = self.before.is_some() && self.before == self.judged;
        let written_in = self.author.map_or(0, |author| author.epoch);
        let is_behind = self.commit < self.known.commit || written_in < self.known.epoch;
        let has_all = match self.author {
            // A release that did not name authors knew of no witness either: only the server can vouch for it.
            None => (self.commit == 0 || self.same_server) && (self.before.is_none() || began_last),
            Some(author) => {
                // A term that began and wrote nothing may have written to a store that was lost.
                let none_since = self.before.is_none() || self.before == Some(author) || began_last;
                (mine(author) && began_last) || (self.same_server && none_since)
            }
        };
        if has_all && !is_behind { Trust::Whole } else { Trust::Doubtful }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(epoch: u64, holder: &str) -> TermId {
        TermId { epoch, holder: ReplicaId::new(holder) }
    }

    /// `a` begins epoch 6. It wrote commit 40 in epoch 5 and got its acknowledgement.
    fn found<'a>(term: &'a TermId, author: &'a TermId, before: &'a TermId) -> Found<'a> {
        let known = Mark { epoch: 5, commit: 40 };
        let (author, before) = (Some(author), Some(before));
        Found { term, commit: 40, author, same_server: false, before, judged: before, known }
    }

    #[test]
    fn the_last_author_vouches_for_its_own_commits() {
        let (six, five) = (term(6, "a"), term(5, "a"));
        let found = found(&six, &five, &five);
        assert_eq!(found.trust(), Trust::Whole);
        assert_eq!(Found { commit: 41, ..found }.trust(), Trust::Whole, "the acknowledgement was lost");
        assert_eq!(Found { commit: 39, ..found }.trust(), Trust::Doubtful);
        assert_eq!(Found { author: Some(&term(4, "a")), ..found }.trust(), Trust::Doubtful, "an old branch");
        let seven = Found { before: Some(&six), term: &term(7, "a"), ..found };
        assert_eq!(Found { judged: Some(&six), ..seven }.trust(), Trust::Whole);
    }

    #[test]
    fn a_term_whose_predecessor_was_not_told_vouches_for_nothing() {
        // `b` led epoch 5 and the store lost all of it. Epoch 6 was written, but its answer did not come.
        let (seven, six, four) = (term(7, "a"), term(6, "a"), term(4, "a"));
        let known = Mark { epoch: 4, commit: 40 };
        let found = Found { judged: Some(&four), known, ..found(&seven, &four, &six) };
        assert_eq!(found.trust(), Trust::Doubtful);
        assert_eq!(Found { same_server: true, ..found }.trust(), Trust::Doubtful);
        assert_eq!(Found { judged: None, author: None, commit: 0, ..found }.trust(), Trust::Doubtful);
    }

    #[test]
    fn nobody_vouches_for_others() {
        let (six, five, other) = (term(6, "a"), term(5, "a"), term(5, "b"));
        let ours = found(&six, &five, &five);
        let theirs = Found { author: Some(&other), before: Some(&other), known: Mark::default(), ..ours };
        assert_eq!(theirs.trust(), Trust::Doubtful);
        assert_eq!(Found { same_server: true, ..theirs }.trust(), Trust::Whole, "the server does");
        let lost = term(6, "b");
        for same_server in [false, true] {
            let found = Found { term: &term(7, "a"), before: Some(&lost), same_server, ..ours };
            assert_eq!(found.trust(), Trust::Doubtful, "a term was begun, and the store knows nothing of it");
        }
        assert_eq!(Found { before: None, ..ours }.trust(), Trust::Doubtful, "no witness");
        // It began a term on another's commits, and somebody else's branch took their place.
        let began = Found { term: &term(7, "a"), author: Some(&other), before: Some(&six), ..ours };
        assert_eq!(began.trust(), Trust::Doubtful);
    }

    #[test]
    fn an_epoch_is_not_used_twice() {
        let (six, five) = (term(6, "a"), term(5, "a"));
        for before in [term(6, "b"), term(9, "a")] {
            assert_eq!(found(&six, &five, &before).trust(), Trust::EpochUsed(before.epoch));
        }
    }

    #[test]
    fn an_empty_store_is_new_or_has_forgotten_everything() {
        let (one, five) = (term(6, "a"), term(5, "b"));
        let empty = Found {
            term: &one,
            commit: 0,
            author: None,
            same_server: false,
            before: None,
            judged: None,
            known: Mark::default(),
        };
        assert_eq!(empty.trust(), Trust::Whole);
        assert_eq!(Found { before: Some(&five), ..empty }.trust(), Trust::Doubtful);
        let ours = term(5, "a");
        let (before, judged) = (Some(&ours), Some(&ours));
        assert_eq!(Found { before, judged, ..empty }.trust(), Trust::Whole, "it never came so far");
        assert_eq!(Found { known: Mark { epoch: 5, commit: 1 }, ..empty }.trust(), Trust::Doubtful);
    }

    #[test]
    fn what_nobody_signed_is_vouched_for_by_its_server_alone() {
        let one = term(6, "a");
        let (author, before) = (None, None);
        let found = Found { author, before, judged: None, known: Mark::default(), ..found(&one, &one, &one) };
        assert_eq!(found.trust(), Trust::Doubtful);
        assert_eq!(Found { same_server: true, ..found }.trust(), Trust::Whole);
    }

    #[test]
    fn a_term_is_read_as_it_was_written() {
        let with_address = term(7, "10.0.0.1:4807/5f0c");
        assert_eq!(TermId::parse(&with_address.to_string()), Some(with_address));
        for text in ["", "7", "x/a"] {
            assert_eq!(TermId::parse(text), None, "{text}");
        }
    }
}
