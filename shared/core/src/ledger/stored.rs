//! What of the ledger is stored, entry by entry, and how it comes back.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Learned, Ledger, Saved, SavedProbe, announce};
use crate::block::Block;
use crate::health::Health;
use crate::id::{KeyId, Model, ProjectId, Resource};
use crate::message::{Change, Owned, Snapshot, Subject};
use crate::quota::Bucket;
use crate::quota::account::Account;
use crate::state::{Entry, Image, Table};
use crate::time::{Mono, Now, Utc};

/// What an event changed, for [`Ledger::entries`] to look up.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) blocks: BTreeSet<Subject>,
    pub(super) keys: BTreeSet<KeyId>,
    pub(super) owners: BTreeSet<Resource>,
    pub(super) limits: BTreeSet<Bucket>,
    pub(super) totals: BTreeSet<(KeyId, Model)>,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredKey {
    /// Of the secret.
    fingerprint: KeyId,
    successes: f64,
    failures: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe: Option<SavedProbe>,
}

/// The owner of a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct StoredOwner {
    project: ProjectId,
    until: Utc,
}

/// Everything that was ever reported of a key and a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Answers.
    pub answered: u64,
    /// Failed attempts.
    pub failed: u64,
}

impl Ledger {
    /// The entries of what was touched.
    pub(super) fn entries(&mut self, touched: &Touched, now: Now) -> Vec<Entry> {
        let mut entries = Vec::new();
        for subject in &touched.blocks {
            entries.push(entry(Table::Blocks, subject, self.blocks.get(subject)));
        }
        for key in &touched.keys {
            let stored = self.keys.get(key).map(|state| {
                let (successes, failures) = state.health.counts(now.mono);
                let probe = self.saved_probe(key, now);
                StoredKey { fingerprint: state.fingerprint.clone(), successes, failures, probe }
            });
            entries.push(Entry {
                table: Table::Keys,
                key: key.as_str().to_owned(),
                value: stored.map(|stored| text(&stored)),
            });
        }
        for resource in &touched.owners {
            let owner = self.owned.get(resource);
            let owner = owner.map(|(project, until)| StoredOwner { project: project.clone(), until: *until });
            entries.push(Entry {
                table: Table::Owners,
                key: resource.as_str().to_owned(),
                value: owner.map(|owner| text(&owner)),
            });
        }
        for bucket in &touched.limits {
            entries.push(entry(Table::Limits, bucket, self.quotas.learned_limit(bucket)));
        }
        for pair in &touched.totals {
            entries.push(entry(Table::Totals, pair, self.totals.get(pair)));
        }
        for (bucket, account) in self.quotas.grantor.changes() {
            entries.push(entry(Table::Accounts, &bucket, account.as_ref()));
        }
        entries
    }

    /// Every entry: for a store that has none of them yet.
    pub fn all_entries(&mut self, now: Now) -> Vec<Entry> {
        let touched = Touched {
            blocks: self.blocks.keys().cloned().collect(),
            keys: self.keys.keys().cloned().collect(),
            owners: self.owned.keys().cloned().collect(),
            limits: self.quotas.learned().map(|(bucket, _)| bucket.clone()).collect(),
            totals: self.totals.keys().cloned().collect(),
        };
        self.entries(&touched, now)
    }
}

impl Saved {
    /// Reads an image. Entries that cannot be read are left out; their number comes with it.
    pub fn read(image: &Image) -> (Self, usize) {
        let mut saved =
            Self { at: image.meta.at, rev: image.meta.rev, heard: image.heard.clone(), ..Self::default() };
        let unread = image.entries.iter().filter(|entry| saved.take(entry).is_none()).count();
        saved.blocks.sort_by(|a, b| a.0.cmp(&b.0));
        (saved, unread)
    }

    fn take(&mut self, entry: &Entry) -> Option<()> {
        let value = entry.value.as_deref()?;
        match entry.table {
            Table::Blocks => {
                let pair: (Subject, Block) = (parsed(&entry.key)?, parsed(value)?);
                self.blocks.push(pair);
            }
            Table::Keys => {
                let key = KeyId::new(entry.key.as_str());
                let stored: StoredKey = parsed(value)?;
                self.health.insert(key.clone(), (stored.successes, stored.failures));
                self.fingerprints.insert(key.clone(), stored.fingerprint);
                self.probes.extend(stored.probe.map(|probe| (key, probe)));
            }
            Table::Owners => {
                let StoredOwner { project, until } = parsed(value)?;
                self.owned.push((Resource::new(entry.key.as_str()), project, until));
            }
            Table::Accounts => {
                let pair: (Bucket, Account) = (parsed(&entry.key)?, parsed(value)?);
                self.accounts.push(pair);
            }
            Table::Limits => {
                let pair: (Bucket, Learned) = (parsed(&entry.key)?, parsed(value)?);
                self.limits.push(pair);
            }
            Table::Totals => {
                let pair: ((KeyId, Model), Totals) = (parsed(&entry.key)?, parsed(value)?);
                self.totals.push(pair);
            }
            // They are another machine's.
            Table::Alerts => {}
        }
        Some(())
    }
}

/// Everything that held when an image was written. Entries that cannot be read are left out; their number comes with it.
pub fn snapshot(image: &Image) -> (Snapshot, usize) {
    let (saved, unread) = Saved::read(image);
    let now = Now { mono: Mono::default(), utc: saved.at };
    let blocked = saved.blocks.iter().filter(|(_, block)| block.holds(now));
    let blocked = blocked.map(|(subject, block)| announce(subject, block, now));
    let scored = saved.health.iter().map(|(key, (successes, failures))| {
        let score = Health::restore(*successes, *failures, now.mono).score_at(None, now.mono);
        Change::Scored { key: key.clone(), score }
    });
    let owned = saved.owned.iter().map(|(resource, project, until)| {
        let ttl_ms = super::millis(until.since(now.utc));
        Change::Owned(Owned { resource: resource.clone(), project: project.clone(), ttl_ms })
    });
    let limited = saved
        .limits
        .iter()
        .map(|(bucket, learned)| Change::Limited { bucket: bucket.clone(), limit: Some(learned.limit) });
    let changes = blocked.chain(scored).chain(owned).chain(limited).collect();
    (Snapshot { epoch: image.meta.epoch, rev: saved.rev, changes }, unread)
}

/// Reads the owner of a resource from its stored entry: the project, and for how long from `at`, in ms.
pub fn read_owner(value: &str, at: Utc) -> Option<(ProjectId, u64)> {
    let StoredOwner { project, until } = parsed(value)?;
    Some((project, super::millis(until.since(at))))
}

fn entry(table: Table, key: &impl Serialize, value: Option<&impl Serialize>) -> Entry {
    Entry { table, key: text(key), value: value.map(text) }
}

/// None of our types can fail to become text: their maps have text for keys, and their numbers are finite.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn parsed<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// The totals by key and model.
pub(super) type AllTotals = BTreeMap<(KeyId, Model), Totals>;
