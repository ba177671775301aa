//! The ledger's quotas: limits that operators gave and errors told, and the book that keeps to them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::learned::{Externals, Learned};
use super::{KeyState, Ledger, Notes, millis};
use crate::id::{KeyId, ReplicaId};
use crate::message::{Change, Subject};
use crate::owner::{Owner, Partition};
use crate::quota::account::{Account, Moment};
use crate::quota::grantor::Grantor;
use crate::quota::message::{LeaseReply, LeaseRequest};
use crate::quota::{Bucket, Terms};
use crate::time::{LedgerClock, LedgerTime, Now};

/// Whoever finds that another replica tries what is blocked asks again after this time, in case that one gives up.
const PROBE_TAKEN: Duration = Duration::from_secs(1);
/// Whoever asks to try what nobody may try hears of it again before, if that changes.
const NO_PROBE: Duration = Duration::from_mins(1);

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
    /// What it decides about.
    pub partition: Partition,
}

#[derive(Debug)]
pub(super) struct Quotas {
    pub(super) grantor: Grantor,
    pub(super) learned: HashMap<Bucket, Learned>,
    pub(super) external: Externals,
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
        Self {
            grantor,
            learned: learned.into_iter().collect(),
            external: Externals::default(),
            clock,
            epoch: term.epoch,
        }
    }

    pub(super) fn moment(&self, now: Now) -> Moment {
        Moment { epoch: self.epoch, time: self.clock.at(now.mono), utc: now.utc }
    }

    pub(super) fn learned(&self) -> impl Iterator<Item = (&Bucket, &Learned)> {
        self.learned.iter()
    }

    pub(super) fn learned_limit(&self, bucket: &Bucket) -> Option<&Learned> {
        self.learned.get(bucket)
    }
}

/// Whether a bucket is decided about here.
fn owns(partition: Partition, keys: &HashMap<KeyId, KeyState>, bucket: &Bucket) -> bool {
    match bucket {
        Bucket::Quota(project, ..)
        | Bucket::Probe(Subject::Bucket(project, _) | Subject::Project(project)) => {
            partition.owns(Owner::Project(project))
        }
        Bucket::Client(client) => partition.owns(Owner::Client(client)),
        Bucket::Probe(Subject::Model(_, model)) => partition.owns(Owner::Model(model)),
        Bucket::Probe(Subject::Key(key) | Subject::KeyModel(key, _)) => {
            // The roster here has just the keys whose projects are owned, and may be older than who asks.
            partition == Partition::default() || keys.contains_key(key)
        }
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

    /// The holders that have quota in hand.
    pub fn holders(&self) -> Vec<ReplicaId> {
        self.quotas.grantor.holders().cloned().collect()
    }

    /// Quotas of which nothing is left and somebody was refused.
    pub(super) fn spent(&mut self, now: Now) -> Vec<Bucket> {
        let moment = self.quotas.moment(now);
        let Self { roster, quotas: Quotas { grantor, learned, .. }, .. } = self;
        let limit = |bucket: &Bucket| {
            roster.limits.limit(bucket).or_else(|| learned.get(bucket).map(|learned| learned.limit))
        };
        grantor.spent(limit, moment)
    }

    /// What a bucket may hold: by the operator's word, else by the upstream's.
    pub fn limit(&self, bucket: &Bucket) -> Option<u64> {
        let configured = self.roster.limits.limit(bucket);
        configured.or_else(|| self.quotas.learned.get(bucket).map(|learned| learned.limit))
    }

    pub(super) fn lease(&mut self, requests: &[LeaseRequest], now: Now) -> Vec<LeaseReply> {
        let moment = self.quotas.moment(now);
        let Self { partition, roster, keys, blocks, quotas: Quotas { grantor, learned, .. }, .. } = self;
        let limit = |bucket: &Bucket| {
            if !owns(*partition, keys, bucket) {
                return Some(0);
            }
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

    /// Lets go of what ran out.
    pub(super) fn settle_quotas(&mut self, now: Now, notes: &mut Notes) {
        let moment = self.quotas.moment(now);
        self.quotas.grantor.sweep(moment);
        self.raise_limits(now, notes);
        self.quotas.external.forget(now.utc);
        let lapsed = self.quotas.learned.extract_if(|_, learned| learned.until <= now.utc);
        for (bucket, _) in lapsed {
            notes.changes.push(Change::Limited { bucket: bucket.clone(), limit: None });
            notes.touched.limits.insert(bucket);
        }
        self.tell_of_raised_limits(now, notes);
    }

    /// Whoever was told that a bucket has nothing left for a while, by midnight perhaps, asks again when it may hold
    /// more, whoever says so. What is blocked is told of when that is over.
    pub(super) fn tell_of_raised_limits(&mut self, now: Now, notes: &mut Notes) {
        let Self { roster, blocks, quotas: Quotas { grantor, learned, .. }, .. } = self;
        let subject = |bucket: &Bucket| match bucket {
            Bucket::Quota(project, model, _) => Some(Subject::Bucket(project.clone(), model.clone())),
            _ => None,
        };
        let raised = grantor.let_ask_again(|bucket, before| {
            let after = roster.limits.leasable(bucket);
            let after = after.or_else(|| learned.get(bucket).map(|learned| learned.limit));
            let blocked = || subject(bucket).and_then(|subject| blocks.get(&subject));
            after.is_none_or(|after| after > before) && !blocked().is_some_and(|block| block.holds(now))
        });
        // Who asked for a project's quota waits behind a gate; a client's has none.
        let of_client = |bucket: &&Bucket| matches!(bucket, Bucket::Client(_));
        let limit = roster.limits.client;
        let told = raised.iter().filter(of_client).cloned().map(|bucket| Change::Limited { bucket, limit });
        notes.changes.extend(told);
        let raised: BTreeSet<_> = raised.iter().filter_map(subject).collect();
        let cleared = raised.into_iter().map(|subject| Change::Cleared { subject, slow_start: false });
        notes.changes.extend(cleared);
    }
}
