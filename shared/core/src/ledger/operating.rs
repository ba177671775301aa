//! What an operator can do to a key.
//!
//! *Block* and *unblock* are about time: a block ends by itself, and unblocking ends everything that would have ended
//! by itself or by a probe, the quota's cooldowns of the key's project included. *Disable* and *enable* are about a
//! decision: only enabling ends what an operator disabled, and it also takes back what the upstream's refusals
//! decided, until they come again.

use std::time::Duration;

use super::{Ledger, Notes};
use crate::block::{Block, Window};
use crate::id::KeyId;
use crate::message::{Change, Operation, Subject};
use crate::outcome::Cause;
use crate::time::{Now, Utc};

impl Ledger {
    /// Does what an operator wants, or says why not.
    pub(super) fn operate(&mut self, operation: Operation, now: Now, notes: &mut Notes) {
        let (Operation::Block { key, .. }
        | Operation::Unblock { key }
        | Operation::Disable { key }
        | Operation::Enable { key }
        | Operation::Probe { key }) = &operation;
        if !self.keys.contains_key(key) {
            notes.refused = Some(format!("there is no key {key}"));
            return;
        }
        match operation {
            Operation::Block { key, ttl_ms } => {
                self.keep_away(&key, now.utc.plus(Duration::from_millis(ttl_ms)), now, notes);
            }
            Operation::Disable { key } => self.keep_away(&key, Utc::FOREVER, now, notes),
            Operation::Unblock { key } => self.unblock(&key, now, notes),
            Operation::Enable { key } => self.enable(key, now, notes),
            Operation::Probe { key } => notes.probes.push(key),
        }
    }

    /// Keeps traffic away for the whole of this time: what a probe or the prober may end earlier gives way to it.
    fn keep_away(&mut self, key: &KeyId, until: Utc, now: Now, notes: &mut Notes) {
        let subject = Subject::Key(key.clone());
        if let Some(old) = self.blocks.get(&subject).filter(|block| block.holds(now)).copied() {
            let may_end = old.cause.is_terminal() || old.probe_at.is_some_and(|at| at < until);
            if old.until >= until && !may_end {
                return;
            }
            self.blocks.remove(&subject);
            if old.until > until {
                notes.changes.push(Change::Cleared { subject: subject.clone(), slow_start: false });
            }
        }
        let window = Window { until, probe_after: None };
        self.block(subject, Block::begin(Cause::ByOperator, window, 0, now.utc), false, now, notes);
    }

    fn unblock(&mut self, key: &KeyId, now: Now, notes: &mut Notes) {
        if self.blocks.get(&Subject::Key(key.clone())).is_some_and(Block::is_disabled) {
            notes.refused = Some(format!("key {key} is disabled: enable it"));
            return;
        }
        for subject in self.kept_from(key) {
            self.clear(&subject, now, notes);
        }
    }

    fn enable(&mut self, key: KeyId, now: Now, notes: &mut Notes) {
        let refused = |block: &Block| block.cause.is_terminal() || block.is_disabled();
        for subject in self.kept_from(&key) {
            if self.blocks.get(&subject).is_some_and(refused) {
                self.clear(&subject, now, notes);
            }
        }
        // What the upstream still refuses is found out by a look, not by a request.
        notes.probes.push(key);
    }

    /// Everything that keeps a key from work.
    fn kept_from(&self, key: &KeyId) -> Vec<Subject> {
        let Some(state) = self.keys.get(key) else { return Vec::new() };
        let concerns = |subject: &&Subject| match subject {
            Subject::Key(of) | Subject::KeyModel(of, _) => of == key,
            Subject::Project(of) | Subject::Bucket(of, _) => *of == state.project,
            Subject::Model(..) => false,
        };
        let mut subjects: Vec<_> = self.blocks.keys().filter(concerns).cloned().collect();
        subjects.sort();
        subjects
    }
}

impl Block {
    /// An operator keeps it away until it is enabled.
    pub fn is_disabled(&self) -> bool {
        self.cause == Cause::ByOperator && self.until == Utc::FOREVER
    }
}
