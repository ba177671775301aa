//! The keys of a deployment, and what becomes of their state when they change.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{KeyState, Ledger, MAX_ENTRIES, Notes};
use crate::block::Policy;
use crate::health::Health;
use crate::id::{KeyId, ProjectId};
use crate::message::{Change, Subject};
use crate::owner::Owner;
use crate::quota::rules::Rules;
use crate::time::Now;

/// The keys of a deployment and the operator's choices.
#[derive(Debug, Clone)]
pub struct Roster {
    /// Every key.
    pub keys: Vec<Member>,
    /// Projects that run dry together.
    pub billing_accounts: HashMap<ProjectId, String>,
    /// What the operator chose.
    pub policy: Policy,
    /// Quotas that the operator gave.
    pub limits: Rules,
}

/// One key of a roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, which the operator may have chosen.
    pub key: KeyId,
    /// Its project.
    pub project: ProjectId,
    /// What tells one secret from another without being it: a name whose secret was replaced starts afresh.
    pub fingerprint: KeyId,
}

impl Ledger {
    /// Takes a roster over, as far as its keys belong here; those that are known keep their state. Those that are gone, or have another secret, lose
    /// it, and what was blocked for them is open.
    pub(super) fn enrol(
        &mut self,
        mut roster: Roster,
        health: &BTreeMap<KeyId, (f64, f64)>,
        fingerprints: &BTreeMap<KeyId, KeyId>,
        now: Now,
        notes: &mut Notes,
    ) {
        roster.keys.retain(|member| self.partition.owns(Owner::Project(&member.project)));
        let mut old = std::mem::take(&mut self.keys);
        let mut replaced = HashSet::new();
        for Member { key, project, fingerprint } in &roster.keys {
            let known = old.remove(key);
            let before = known.as_ref().map(|state| &state.fingerprint).or_else(|| fingerprints.get(key));
            let is_same = before.is_none_or(|before| before == fingerprint);
            // Most keys are stored as they are: a takeover must not write all of them.
            if before != Some(fingerprint) {
                notes.touched.keys.insert(key.clone());
            }
            if !is_same {
                replaced.insert(key.clone());
            }
            let state = known.filter(|_| is_same).unwrap_or_else(|| {
                let (successes, failures) = health.get(key).copied().filter(|_| is_same).unwrap_or_default();
                KeyState::new(
                    project.clone(),
                    fingerprint.clone(),
                    Health::restore(successes, failures, now.mono),
                    now,
                )
            });
            self.keys.insert(key.clone(), KeyState { project: project.clone(), ..state });
        }
        let gone = old.keys().chain(fingerprints.keys()).filter(|key| !self.keys.contains_key(*key));
        notes.touched.keys.extend(gone.cloned());
        if self.totals.len() > MAX_ENTRIES / 2 {
            // What was ever asked of them makes room for others.
            let gone = self.totals.extract_if(.., |(key, _), _| !self.keys.contains_key(key));
            notes.touched.totals.extend(gone.map(|(pair, _)| pair));
        }
        let (old, new) = (&self.roster.limits, &roster.limits);
        self.quotas.external.forget_of(|bucket| old.limit(bucket) != new.limit(bucket));
        self.roster = roster;
        self.tell_of_raised_limits(now, notes);
        let projects: HashSet<_> = self.keys.values().map(|state| &state.project).collect();
        let gone = self.blocks.extract_if(|subject, _| match subject {
            Subject::Key(key) | Subject::KeyModel(key, _) => {
                !self.keys.contains_key(key) || replaced.contains(key)
            }
            Subject::Bucket(project, _) | Subject::Project(project) => !projects.contains(project),
            Subject::Model(..) => false,
        });
        for (subject, _) in gone {
            notes.touched.blocks.insert(subject.clone());
            notes.changes.push(Change::Cleared { subject, slow_start: false });
        }
    }
}
