//! What waits is written as one commit; only then does anything follow from it.

use std::collections::HashMap;
use std::time::Duration;

use keyfleet_core::id::KeyId;
use keyfleet_core::ledger::Step;
use keyfleet_core::message::{Answer, Delta};
use keyfleet_core::quota::message::LeaseRequest;
use keyfleet_core::state::{Commit, Entry, Meta, Table};
use keyfleet_core::trust::Mark;
use keyfleet_fabric::bus::Asker;
use keyfleet_fabric::store::StoreError;
use keyfleet_service::clock;
use tracing::Span;

use super::caused::Caused;
use super::{End, Reign};

/// A leader that cannot write for so long gives up, and begins anew when it can: claims may still go through where
/// commits do not, as on a full disk.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Before a commit that got no answer is written again.
const AGAIN: Duration = Duration::from_millis(50);

/// What waits for the next commit.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) steps: Vec<Step>,
    /// Those that wait for the answer of a step, by its place.
    pub(super) askers: Vec<(Asker, Answer)>,
    /// Operators that want a key looked at. The look is the last part of it: their answer is whether it will be.
    pub(super) looks: Vec<(Asker, KeyId)>,
    pub(super) leases: Vec<(Asker, LeaseRequest)>,
    pub(super) cursor: Option<u64>,
    pub(super) end: Option<End>,
    /// Reports that are known to be lost.
    pub(super) lost: u64,
    /// What is said once it is written.
    pub(super) caused: Vec<Caused>,
    /// The handling of its reports, which ends with it.
    pub(super) handled: Vec<Span>,
}

impl Reign<'_> {
    /// Commits a batch, and then does what follows from it.
    pub(super) async fn carry_out(&mut self, mut batch: Batch) -> Result<(), ()> {
        if let Some(cursor) = batch.cursor {
            self.meta.cursor = cursor;
        }
        if batch.lost > 0 {
            tracing::warn!(
                lost = batch.lost,
                "reports of gateways are lost: scores and totals miss them, quotas do not"
            );
        }
        let probes: Vec<_> =
            batch.steps.iter_mut().flat_map(|step| std::mem::take(&mut step.probes)).collect();
        let changed = batch.cursor.is_some() || batch.steps.iter().any(|step| !step.is_empty());
        let delta = if changed { self.commit(batch.steps).await? } else { None };
        batch.caused.iter().for_each(Caused::say);
        for (asker, answer) in batch.askers {
            asker.answer(answer);
        }
        for (asker, key) in batch.looks {
            asker.answer(match self.driver.prober.ask(key) {
                Ok(()) => Answer::Done,
                Err(full) => Answer::Refused { why: full.to_string() },
            });
        }
        if let Some(delta) = delta
            && let Err(error) = self.driver.bus.publish(&delta).await
        {
            tracing::debug!(%error, "a decision is not spread: the next beat reveals that it is missing");
        }
        self.driver.prober.due(probes);
        Ok(())
    }

    /// Writes what the steps changed, as one commit. It goes on trying for as long as the lead is certain.
    pub(super) async fn commit(&mut self, steps: Vec<Step>) -> Result<Option<Delta>, ()> {
        let now = clock::now();
        let mut entries: HashMap<(Table, String), Entry> = HashMap::new();
        let mut heard = HashMap::new();
        let mut delta: Option<Delta> = None;
        for step in steps {
            entries.extend(step.entries.into_iter().map(|entry| ((entry.table, entry.key.clone()), entry)));
            heard.extend(step.heard);
            match (&mut delta, step.delta) {
                (Some(all), Some(next)) => {
                    all.rev = next.rev;
                    all.changes.extend(next.changes);
                }
                (all, next) => *all = all.take().or(next),
            }
        }
        let follows = self.meta.commit;
        self.meta = Meta {
            commit: follows + 1,
            rev: self.ledger.rev(),
            time: self.ledger.time(now),
            at: now.utc,
            blind_until: self.ledger.blind_until(),
            ..self.meta.clone()
        };
        let commit = Commit {
            follows,
            meta: self.meta.clone(),
            heard: heard.into_iter().collect(),
            entries: entries.into_values().collect(),
            delta,
        };
        let written = self.write(&commit).await;
        self.driver.post.committed(written.is_ok());
        written?;
        self.show();
        self.driver.candidate.acknowledged(Mark { epoch: commit.meta.epoch, commit: commit.meta.commit });
        Ok(commit.delta)
    }

    async fn write(&mut self, commit: &Commit) -> Result<(), ()> {
        let store = self.driver.candidate.store.clone();
        let mut asked_before = false;
        let began = clock::mono();
        loop {
            match store.commit(commit).await {
                Ok(()) => return Ok(()),
                // An earlier attempt got through, but its answer did not.
                Err(StoreError::Conflict(stored))
                    if asked_before
                        && stored.commit == commit.meta.commit
                        && stored.epoch == commit.meta.epoch
                        && stored.leader == commit.meta.leader =>
                {
                    return Ok(());
                }
                Err(StoreError::Unreachable(error)) if clock::mono().since(began) > GIVE_UP => {
                    tracing::warn!(error, "a commit cannot be written: this coordinator stops leading");
                    return Err(());
                }
                Err(StoreError::Unreachable(error)) => {
                    if !asked_before {
                        tracing::warn!(
                            error,
                            "a commit cannot be written: no leases and no decisions until it can"
                        );
                    }
                    asked_before = true;
                    tokio::time::sleep(AGAIN).await;
                    self.renew().await?;
                }
                Err(error) => {
                    tracing::warn!(%error, "a commit was refused: another leads, or the store has lost something");
                    return Err(());
                }
            }
        }
    }
}
