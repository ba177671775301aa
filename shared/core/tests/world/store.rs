//! The store: a lock with an epoch, and accounts that change in fenced steps. It may be away for a while, come back as
//! another server with the same data, or fail over to a copy that has not heard of the last writes.

use std::collections::{BTreeMap, VecDeque};

use keyfleet_core::quota::Bucket;
use keyfleet_core::quota::account::Account;
use keyfleet_core::time::LedgerTime;
use keyfleet_core::trust::TermId;

use super::{Event, Flaw, World};

/// How long a claim holds.
const TTL: u64 = 1_000;

#[derive(Debug, Clone, Default)]
struct State {
    epoch: u64,
    leader: Option<(usize, u64)>,
    commit: u64,
    /// Who wrote the last commit.
    author: Option<TermId>,
    time: LedgerTime,
    written_at: u64,
    /// The store that it was written to, and until when its leader granted nothing.
    trust: Option<Trust>,
    accounts: BTreeMap<Bucket, Account>,
}

/// What a leader wrote about the store itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust {
    pub(crate) identity: u64,
    pub(crate) blind_until: LedgerTime,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    state: State,
    holder: Option<(usize, u64)>,
    held_until: u64,
    /// What tells it from a copy that took its place.
    identity: u64,
    /// It hears nothing before.
    away_until: u64,
    /// Earlier states, the latest first.
    past: VecDeque<State>,
}

#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The epoch that it holds; 0: none.
    pub(crate) epoch: u64,
    pub(crate) above: u64,
    pub(crate) time: Option<LedgerTime>,
    pub(crate) asked: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Claimed {
    Theirs,
    /// Renewed as asked for at that moment, by this server.
    Kept {
        asked: u64,
        identity: u64,
    },
    Taken {
        asked: u64,
        epoch: u64,
        commit: u64,
        author: Option<TermId>,
        time: LedgerTime,
        /// When the state was written, by the calendar.
        written_at: u64,
        identity: u64,
        trust: Option<Trust>,
        accounts: BTreeMap<Bucket, Account>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) epoch: u64,
    /// Who leads: after a loss of writes an epoch may be given out twice.
    pub(crate) leader: (usize, u64),
    pub(crate) author: TermId,
    pub(crate) follows: u64,
    pub(crate) time: LedgerTime,
    pub(crate) trust: Trust,
    pub(crate) accounts: Vec<(Bucket, Option<Account>)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    Done { commit: u64 },
    Refused { ours: bool, commit: u64 },
}

impl Store {
    /// Nothing is heard until then, and another server answers. It has not heard of the last `lost` writes; the same
    /// one, started anew, has heard of all.
    pub(crate) fn fail_over(&mut self, lost: usize, until: u64) {
        self.identity += 1;
        self.away_until = until;
        if lost == 0 {
            return;
        }
        let known = lost.min(self.past.len());
        if let Some(state) = known.checked_sub(1).and_then(|known| self.past.get(known)) {
            self.state = state.clone();
        }
        self.past.clear();
        self.holder = None;
        self.held_until = 0;
    }

    fn remember(&mut self, keep: usize) {
        if keep > 0 {
            self.past.push_front(self.state.clone());
            self.past.truncate(keep);
        }
    }
}

impl World {
    pub(crate) fn claim(&mut self, n: usize, start: u64, claim: &Claim) {
        let keep_past = self.setup.faults.lost_writes();
        let alike = self.setup.flaw == Some(Flaw::EpochsAlike);
        let now = self.now;
        let store = &mut self.store;
        if now < store.away_until {
            return;
        }
        let free = store.held_until <= now || store.holder == Some((n, start));
        let claimed = if !free {
            Claimed::Theirs
        } else if store.holder == Some((n, start))
            && store.held_until > now
            && claim.epoch == store.state.epoch
        {
            store.held_until = now + TTL;
            store.remember(keep_past);
            store.state.time = store.state.time.max(claim.time.unwrap_or_default());
            store.state.written_at = now;
            Claimed::Kept { asked: claim.asked, identity: store.identity }
        } else if claim.epoch != 0 {
            Claimed::Theirs // it had lost it: it must begin anew
        } else {
            store.remember(keep_past);
            store.holder = Some((n, start));
            store.held_until = now + TTL;
            store.state.epoch = if alike { 1 } else { store.state.epoch.max(claim.above) + 1 };
            store.state.leader = store.holder;
            let state = store.state.clone();
            Claimed::Taken {
                asked: claim.asked,
                epoch: state.epoch,
                commit: state.commit,
                author: state.author,
                time: state.time,
                written_at: state.written_at,
                identity: store.identity,
                trust: state.trust,
                accounts: state.accounts,
            }
        };
        self.transmit_to_store(|| Event::Claimed(n, start, claimed.clone()));
    }

    pub(crate) fn write(&mut self, n: usize, start: u64, write: &Write) {
        let flaw = self.setup.flaw;
        let fenced = flaw != Some(Flaw::NoFence);
        let keep_past = self.setup.faults.lost_writes();
        let now = self.now;
        let store = &mut self.store;
        if now < store.away_until {
            return;
        }
        let state = &store.state;
        let same_leader = state.leader == Some(write.leader) || flaw == Some(Flaw::EpochsAlike);
        let ours = state.epoch == write.epoch && same_leader;
        let written = if fenced && (!ours || state.commit != write.follows) {
            Written::Refused { ours, commit: state.commit }
        } else {
            store.remember(keep_past);
            let state = &mut store.state;
            state.commit = write.follows + 1;
            state.author = Some(write.author.clone());
            state.time = state.time.max(write.time);
            state.written_at = now;
            state.trust = Some(write.trust);
            for (bucket, account) in &write.accounts {
                match account {
                    Some(account) => state.accounts.insert(bucket.clone(), account.clone()),
                    None => state.accounts.remove(bucket),
                };
            }
            Written::Done { commit: state.commit }
        };
        self.transmit_to_store(|| Event::Written(n, start, written));
    }
}
