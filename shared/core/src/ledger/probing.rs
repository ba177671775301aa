//! The prober's appointments: which key it looks at when, and what follows from what it finds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blocking::Failure;
use super::{KeyState, Ledger, Notes};
use crate::block;
use crate::id::{KeyId, Model};
use crate::message::{Change, Subject};
use crate::outcome::{Outcome, Scope};
use crate::time::{Mono, Now, Utc};

/// A key that nobody saw working for so long is looked at by the prober.
const UNSEEN: Duration = Duration::from_hours(1);
/// A probe whose verdict does not arrive is asked for again after this time.
const PROBE_RETRY: Duration = Duration::from_mins(2);

/// When a key was last seen working, and when it is looked at next.
#[derive(Debug)]
pub(super) struct Appointment {
    seen_working: Option<Mono>,
    due: Mono,
    /// Looks in a row that found the key out for good.
    failed: u32,
}

/// The appointment of a key that is out for good, as it survives a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProbe {
    /// Looks in a row that found it so.
    pub failed: u32,
    /// When it is looked at again.
    pub due: Utc,
}

impl Appointment {
    pub(super) fn new(now: Mono) -> Self {
        Self { seen_working: None, due: now, failed: 0 }
    }

    /// The key works.
    pub(super) fn seen_working(&mut self, now: Mono) {
        self.seen_working = Some(now);
        self.failed = 0;
    }

    /// The key is out for good: its next look is as late as that calls for.
    pub(super) fn put_off(&mut self, now: Mono) {
        self.due = now.plus(block::recheck_after(self.failed));
    }
}

impl Ledger {
    /// Takes the verdict of a look.
    pub(super) fn probed(
        &mut self,
        key: &KeyId,
        outcome: Option<Outcome>,
        draw: u32,
        now: Now,
        notes: &mut Notes,
    ) {
        let Some(state) = self.keys.get_mut(key) else { return };
        let project = state.project.clone();
        let Some(outcome) = outcome else {
            state.appointment.seen_working(now.mono);
            state.appointment.due = now.mono.plus(UNSEEN);
            notes.changes.push(Change::Validated { key: key.clone() });
            for subject in [Subject::Key(key.clone()), Subject::Project(project)] {
                // Listing models needs a credential, but neither quota nor money: it vouches for nothing else.
                if self.blocks.get(&subject).is_some_and(|block| block.cause.is_terminal()) {
                    self.clear(&subject, now, notes);
                }
            }
            return;
        };
        if matches!(outcome.scope, Scope::Key | Scope::Project) && outcome.cause.is_terminal() {
            if self.is_out(key) {
                self.keys.entry(key.clone()).and_modify(|state| state.appointment.failed += 1);
                notes.touched.keys.insert(key.clone());
            }
            let model = Model::new("");
            let failure = Failure { outcome, n: 1, in_a_row: 1, draw, probe: false, at: now };
            self.failed(key, &model, &failure, now, notes);
        }
        let says_something = outcome.scope != Scope::Model && outcome.scope != Scope::Egress;
        if let Some(KeyState { appointment, .. }) = self.keys.get_mut(key) {
            if says_something {
                appointment.put_off(now.mono);
            } else {
                appointment.due = now.mono.plus(PROBE_RETRY);
            }
        }
    }

    /// Asks for a look at the keys that are due: out for good, or not seen working for long.
    pub(super) fn scan(&mut self, now: Now, notes: &mut Notes) {
        let recent =
            |state: &KeyState| state.appointment.seen_working.is_some_and(|at| now.mono.since(at) < UNSEEN);
        let due = self.keys.iter().filter(|(_, state)| state.appointment.due <= now.mono);
        let mut due: Vec<KeyId> = due
            .filter(|(key, state)| !recent(state) || self.is_out(key))
            .map(|(key, _)| key.clone())
            .collect();
        due.sort();
        for key in &due {
            if let Some(state) = self.keys.get_mut(key) {
                state.appointment.due = now.mono.plus(PROBE_RETRY);
            }
        }
        notes.probes.extend(due);
    }

    /// The appointment with a key that is out for good.
    pub(super) fn saved_probe(&self, key: &KeyId, now: Now) -> Option<SavedProbe> {
        let KeyState { appointment, .. } = self.keys.get(key).filter(|_| self.is_out(key))?;
        Some(SavedProbe { failed: appointment.failed, due: now.utc_at(appointment.due) })
    }

    /// A restart does not bring the look at a key forward that is out for good.
    pub(super) fn keep_appointments(&mut self, saved: &BTreeMap<KeyId, SavedProbe>, now: Now) {
        let keys: Vec<KeyId> = self.keys.keys().cloned().collect();
        for key in keys {
            let Some(since) = self.out_since(&key) else { continue };
            let Some(state) = self.keys.get_mut(&key) else { continue };
            let saved = saved.get(&key).copied();
            let saved = saved.unwrap_or(SavedProbe { failed: 0, due: since.plus(block::recheck_after(0)) });
            // A calendar that was wrong when this was written must not put the look off for good.
            let latest = now.mono.plus(block::recheck_after(saved.failed));
            state.appointment.failed = saved.failed;
            state.appointment.due = now.mono_at(saved.due).min(latest);
        }
    }

    fn is_out(&self, key: &KeyId) -> bool {
        self.out_since(key).is_some()
    }

    /// Since when a key or its project is out for good.
    fn out_since(&self, key: &KeyId) -> Option<Utc> {
        let project = self.keys.get(key)?.project.clone();
        let subjects = [Subject::Key(key.clone()), Subject::Project(project)];
        let blocks = subjects.iter().filter_map(|subject| self.blocks.get(subject));
        blocks.filter(|block| block.cause.is_terminal()).map(|block| block.since).max()
    }
}
