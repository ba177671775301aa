//! The ledger's quotas: limits that operators gave and errors told, and the book that keeps to them.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Ledger, Notes, millis};
use crate::id::{Model, ProjectId};
use crate::message::Change;
use crate::quota::account::{Account, Moment};
use crate::quota::grantor::Grantor;
use crate::quota::message::{LeaseReply, LeaseRequest};
use crate::quota::{Bucket, Dimension, Terms};
use crate::time::{LedgerClock, LedgerTime, Now, Utc};

/// A limit that an error told holds for so long: a tier may have been raised since.
const LEARNED_FOR: Duration = Duration::from_hours(24);
/// The most learned limits that are kept.
const MAX_LEARNED: usize = 100_000;

/// Whoever finds that another replica tries what is blocked asks again after this time, in case that one gives up.
const PROBE_TAKEN: Duration = Duration::from_secs(1);
/// Whoever asks to try what nobody may try hears of it again before, if that changes.
const NO_PROBE: Duration = Duration::from_mins(1);

/// A limit that an error told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// The limit.
    pub limit: u64,
    /// Until when it is believed.
    pub until: Utc,
}

/// Where a leader's clocks stand when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Term {
    /// Its epoch.
    pub epoch: u64,
    /// How far ledger time had come.
    pub time: LedgerTime,
    /// Nothing is granted of a minute's quota before this moment.
    pub blind_until: LedgerTime,
    /// What is stored may lack something that happened: nothing is granted of a minute's quota until it cannot matter.
    pub suspect: bool,
}

#[derive(Debug)]
pub(super) struct Quotas {
    pub(super) grantor: Grantor,
    learned: HashMap<Bucket, Learned>,
    clock: LedgerClock,
    epoch: u64,
}

impl Quotas {
    pub(super) fn new(
        term: Term,
        accounts: Vec<(Bucket, Account)>,
        learned: Vec<(Bucket, Learned)>,
        now: Now,
    ) -> Self {
        let mut grantor = Grantor::new(Terms::MINUTE, accounts);
        grantor.stay_blind(term.blind_until);
        if term.suspect {
            grantor.quarantine(term.time);
        }
        let clock = LedgerClock::resume(term.time, now.mono);
        Self { grantor, learned: learned.into_iter().collect(), clock, epoch: term.epoch }
    }

    fn moment(&self, now: Now) -> Moment {
        Moment { epoch: self.epoch, time: self.clock.at(now.mono), utc: now.utc }
    }

    pub(super) fn learned(&self) -> impl Iterator<Item = (&Bucket, &Learned)> {
        self.learned.iter()
    }

    pub(super) fn learned_limit(&self, bucket: &Bucket) -> Option<&Learned> {
        self.learned.get(bucket)
    }
}

impl Ledger {
    /// How far ledger time has come.
    pub fn time(&self, now: Now) -> LedgerTime {
        self.quotas.clock.at(now.mono)
    }

    /// Until when nothing is granted of a minute's quota, if that is not over.
    pub fn blind_until(&self) -> LedgerTime {
        self.quotas.grantor.blind_until()
    }

    /// What is used and what is out of every limited bucket, and its limit; for people.
    pub fn usage(&mut self, now: Now) -> Vec<(Bucket, u64, u64, Option<u64>)> {
        let moment = self.quotas.moment(now);
        let usage = self.quotas.grantor.usage(moment);
        usage
            .into_iter()
            .map(|(bucket, used, open)| {
                let limit = self.limit(&bucket);
                (bucket, used, open, limit)
            })
            .collect()
    }

    /// What a bucket may hold: by the operator's word, else by the upstream's.
    pub fn limit(&self, bucket: &Bucket) -> Option<u64> {
        let configured = self.roster.limits.limit(bucket);
        configured.or_else(|| self.quotas.learned.get(bucket).map(|learned| learned.limit))
    }

    pub(super) fn lease(&mut self, requests: &[LeaseRequest], now: Now) -> Vec<LeaseReply> {
        let moment = self.quotas.moment(now);
        let Self { roster, blocks, quotas: Quotas { grantor, learned, .. }, .. } = self;
        let limit = |bucket: &Bucket| {
            if let Bucket::Probe(subject) = bucket {
                // Of a block that is not known here the report may have been lost: one at a time may try all the same.
                let closed = blocks.get(subject).is_some_and(|b| b.holds(now) && !b.is_half_open(now));
                return Some(u64::from(!closed));
            }
            let configured = roster.limits.leasable(bucket);
            configured.or_else(|| learned.get(bucket).map(|learned| learned.limit))
        };
        let mut replies = grantor.serve(requests, limit, moment);
        for refusal in replies.iter_mut().flat_map(|reply| &mut reply.refusals) {
            if let Bucket::Probe(subject) = &refusal.bucket {
                let due = blocks.get(subject).filter(|b| b.holds(now) && !b.is_half_open(now));
                let due = due.map(|block| block.probe_at.map_or(NO_PROBE, |at| at.since(now.utc)));
                refusal.retry_ms = millis(due.unwrap_or(PROBE_TAKEN).min(NO_PROBE));
            }
        }
        replies
    }

    /// An error told the limits that it was about. What they allow counts as used until the upstream says otherwise:
    /// nobody knows what was sent before they were known.
    pub(super) fn learn(
        &mut self,
        project: &ProjectId,
        model: &Model,
        limits: &[(Dimension, u64)],
        retry_after: Option<Duration>,
        now: Now,
        notes: &mut Notes,
    ) {
        for (dimension, limit) in limits {
            let bucket = Bucket::Quota(project.clone(), model.clone(), *dimension);
            let known = self.quotas.learned.get(&bucket).copied();
            let full = self.quotas.learned.len() >= MAX_LEARNED && known.is_none();
            if *limit == 0 || full || self.roster.limits.limit(&bucket).is_some() {
                continue;
            }
            let learned = Learned { limit: *limit, until: now.utc.plus(LEARNED_FOR) };
            self.quotas.learned.insert(bucket.clone(), learned);
            notes.touched.limits.insert(bucket.clone());
            if known.is_none_or(|known| known.limit != *limit) {
                notes.changes.push(Change::Limited { bucket: bucket.clone(), limit: Some(*limit) });
            }
            // A day's block has its own probes, which see when it is over; they need something to draw. And a request
            // that asked for too many tokens says nothing against a small one.
            if known.is_none() && *dimension == Dimension::Rpm {
                let moment = self.quotas.moment(now);
                let window = Terms::MINUTE.window;
                let ago = window.saturating_sub(retry_after.unwrap_or(window));
                let time = LedgerTime::from_ms(
                    moment.time.as_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(0)),
                );
                self.quotas.grantor.charge(&bucket, *limit, Moment { time, ..moment });
            }
        }
    }

    /// Lets go of what ran out.
    pub(super) fn settle_quotas(&mut self, now: Now, notes: &mut Notes) {
        let moment = self.quotas.moment(now);
        self.quotas.grantor.sweep(moment);
        let lapsed = self.quotas.learned.extract_if(|_, learned| learned.until <= now.utc);
        for (bucket, _) in lapsed {
            notes.changes.push(Change::Limited { bucket: bucket.clone(), limit: None });
            notes.touched.limits.insert(bucket);
        }
    }
}
