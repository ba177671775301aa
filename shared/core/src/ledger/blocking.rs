//! What failures keep traffic away from, and what lets it back.

use super::{Ledger, Notes, announce, make_room, score};
use crate::block::{self, Block};
use crate::id::{KeyId, Model};
use crate::message::{Change, Subject};
use crate::outcome::{Outcome, Scope};
use crate::time::Now;

/// Failures of one key that tell the same.
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) n: u32,
    /// How many of them the key has had without an answer in between.
    pub(super) in_a_row: u32,
    pub(super) draw: u32,
    /// It was the single request that a block had let through.
    pub(super) probe: bool,
    /// When the last of them was; it may have waited to be reported.
    pub(super) at: Now,
}

impl Ledger {
    /// Charges failures to the key itself; too many in a row block it for a while, and so does one where a probe was
    /// to show that they are over.
    pub(super) fn charge(
        &mut self,
        key: &KeyId,
        weight: f64,
        failure: &Failure,
        now: Now,
        notes: &mut Notes,
    ) {
        let Failure { outcome, n, in_a_row, draw, probe, at } = failure;
        let policy = self.roster.policy;
        let Some(state) = self.keys.get_mut(key) else { return };
        state.health.failed(weight * f64::from(*n), now.mono);
        // Only what is the key's own fault takes it out. An overload that strikes some of all calls strikes every key
        // a few times in a row.
        if outcome.scope == Scope::Key {
            state.failures_in_a_row = state.failures_in_a_row.saturating_add(*in_a_row);
        }
        let subject = Subject::Key(key.clone());
        let again = *probe && self.blocks.get(&subject).is_some_and(|block| block.holds(now));
        let own = outcome.scope == Scope::Key;
        let blocked = own && (again || state.failures_in_a_row >= policy.max_failures);
        if blocked {
            state.failures_in_a_row = 0;
        }
        score(key, state, now, notes);
        if blocked {
            let level = self.next_level(&subject, true, now);
            let window = block::temporary(level, &policy, *draw);
            self.block(subject, Block::begin(outcome.cause, window, level, at.utc), true, now, notes);
        }
    }

    pub(super) fn block(&mut self, subject: Subject, found: Block, anew: bool, now: Now, notes: &mut Notes) {
        let old = self.blocks.get(&subject).filter(|block| block.holds(now)).copied();
        let block = match old {
            // What requests that were under way still find out does not undo an operator's decision.
            Some(old) if old.is_disabled() => old,
            // A probe that meets another, shorter limit shows that the long one is over.
            Some(old) if anew && found.cause != old.cause && found.until < old.until => {
                notes.changes.push(Change::Cleared { subject: subject.clone(), slow_start: false });
                found
            }
            // A failed probe settles when the next one is due; anything else can only prolong.
            Some(old) if anew => Block { until: old.until.max(found.until), since: old.since, ..found },
            Some(old) => old.extend(found),
            None => found,
        };
        if found.cause.is_terminal()
            && let Subject::Key(key) = &subject
            && let Some(state) = self.keys.get_mut(key)
        {
            state.appointment.put_off(now.mono);
            notes.touched.keys.insert(key.clone());
        }
        if old != Some(block) {
            notes.changes.push(announce(&subject, &block, now));
            notes.touched.blocks.insert(subject.clone());
            self.blocks.insert(subject, block);
            notes.touched.blocks.extend(make_room(&mut self.blocks, |block| block.until));
        }
    }

    pub(super) fn clear(&mut self, subject: &Subject, now: Now, notes: &mut Notes) {
        let Some(block) = self.blocks.remove(subject) else { return };
        notes.touched.blocks.insert(subject.clone());
        if block.holds(now) {
            let of_keys = matches!(subject, Subject::Key(_) | Subject::KeyModel(..) | Subject::Project(_));
            let slow_start = of_keys && block.cause.outcome().scope != Scope::Bucket;
            notes.changes.push(Change::Cleared { subject: subject.clone(), slow_start });
        }
    }

    /// What a failure of a key is about, as far as it is the keys' or the quota's.
    pub(super) fn subject(&self, key: &KeyId, model: &Model, scope: Scope) -> Option<Subject> {
        let project = self.keys.get(key)?.project.clone();
        Some(match scope {
            Scope::Key => Subject::Key(key.clone()),
            Scope::KeyModel => Subject::KeyModel(key.clone(), model.clone()),
            Scope::Bucket => Subject::Bucket(project, model.clone()),
            Scope::Project | Scope::BillingAccount => Subject::Project(project),
            Scope::Client | Scope::Model | Scope::Egress => return None,
        })
    }

    /// How many times in a row a subject has struck before: 0 the first time.
    pub(super) fn next_level(&self, subject: &Subject, probe: bool, now: Now) -> u32 {
        match self.blocks.get(subject) {
            Some(block) if block.holds(now) && !probe => block.level,
            Some(block) => block.level + 1,
            None => 0,
        }
    }

    pub(super) fn paid_together(&self, subject: Subject, scope: Scope) -> Vec<Subject> {
        let Subject::Project(project) = &subject else { return vec![subject] };
        let accounts = &self.roster.billing_accounts;
        let account = accounts.get(project).filter(|_| scope == Scope::BillingAccount);
        let Some(account) = account else { return vec![subject] };
        let same = accounts.iter().filter(|(_, other)| *other == account);
        same.map(|(project, _)| Subject::Project(project.clone())).collect()
    }
}
