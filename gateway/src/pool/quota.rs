//! Quota in hand: what an attempt draws before it is sent. Nothing here waits for the coordinator; `sync` talks to it.

mod slot;
mod spend;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

use keyfleet_core::id::{ClientName, Model, ProjectId, ReplicaId};
use keyfleet_core::message::Subject;
use keyfleet_core::quota::holder::{Drawn, Empty, Purse};
use keyfleet_core::quota::holders::Holders;
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest};
use keyfleet_core::quota::rules::Rules;
use keyfleet_core::quota::{Bucket, Dimension, Terms};
use keyfleet_core::time::Mono;
use keyfleet_service::clock;
use keyfleet_service::config::{Client, WhenUnleased};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::slot::Slot;
use self::spend::Parts;
pub(crate) use self::spend::Spend;

/// What of a request's body counts as one token, in bytes, until a tokenizer says it better. JSON around the text makes
/// it an estimate on the safe side for most languages.
const BYTES_PER_TOKEN: u64 = 4;
/// After so many questions without an answer it is said.
const SAY_AFTER: u64 = 5;
/// No longer than this may pass between drawing a permit and sending the request; see [`Terms::jitter`].
pub(crate) const JITTER: Duration = Terms::MINUTE.jitter;
/// When to come back for a lease that did not come.
pub(crate) const LEASE_RETRY: Duration = Duration::from_secs(1);

/// The purses of one project and model; empty where nobody knows a limit.
#[derive(Debug)]
pub(crate) struct Purses {
    project: ProjectId,
    model: Model,
    slots: [Slot; Dimension::ALL.len()],
}

/// What a purse that was empty leaves a request to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dry {
    /// A lease may be on its way.
    Cold,
    /// There is none before this moment.
    Until(Mono),
    /// There are not so many tokens before this moment; there may be enough for a smaller request.
    Large(Mono),
    /// There are never so many.
    TooLarge,
}

/// All quota of this replica.
pub(crate) struct Quota {
    holder: Mutex<Holders>,
    known: Mutex<HashMap<(ProjectId, Model), Arc<Purses>>>,
    clients: Mutex<HashMap<ClientName, Arc<Slot>>>,
    learned: Mutex<HashMap<Bucket, u64>>,
    /// Somebody should talk to the coordinator.
    pub(crate) low: Notify,
    /// Counts answers about leases.
    answers: AtomicU64,
    answered: Notify,
    /// The last question about leases had no answer.
    silent: AtomicBool,
    /// How many in a row had none.
    unanswered: AtomicU64,
    /// How often a request waited for leases.
    pub(crate) waits: AtomicU64,
    /// Draws that found nothing.
    pub(crate) refusals: AtomicU64,
}

impl Quota {
    pub(crate) fn new(replica: &ReplicaId) -> Self {
        Self {
            holder: Mutex::new(Holders::new(replica.clone(), Terms::MINUTE, clock::mono())),
            known: Mutex::default(),
            clients: Mutex::default(),
            learned: Mutex::default(),
            low: Notify::new(),
            answers: AtomicU64::new(0),
            answered: Notify::new(),
            silent: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        }
    }

    /// The purses of a project and model.
    pub(super) fn purses(&self, project: &ProjectId, model: &Model, rules: &Policy<'_>) -> Arc<Purses> {
        let mut known = self.known.lock();
        let pair = (project.clone(), model.clone());
        let purses = known.entry(pair).or_insert_with(|| {
            let slots = Default::default();
            Arc::new(Purses { project: project.clone(), model: model.clone(), slots })
        });
        self.limit(purses, rules);
        purses.clone()
    }

    /// Forgets purses that no lane needs.
    pub(super) fn forget_unused(&self) {
        self.known.lock().retain(|_, purses| Arc::strong_count(purses) > 1);
    }

    /// What each of these clients draws from.
    pub(super) fn allowances(&self, clients: &[Client], policy: &Policy<'_>) -> Vec<Arc<Slot>> {
        let mut known = self.clients.lock();
        let slots = clients.iter().map(|client| {
            let name = ClientName::new(client.name.as_str());
            let bucket = Bucket::Client(name.clone());
            let slot = known.entry(name).or_default().clone();
            let limited = policy.rules.limit(&bucket).is_some();
            slot.limit(
                limited.then(|| self.holder.lock().purse(&bucket, clock::mono())),
                &bucket,
                None,
                policy,
            );
            slot
        });
        let slots = slots.collect();
        known.retain(|_, slot| Arc::strong_count(slot) > 1);
        slots
    }

    /// Puts other rules in force.
    pub(super) fn follow(&self, rules: &Policy<'_>) {
        self.known.lock().values().for_each(|purses| self.limit(purses, rules));
    }

    /// The upstream has told a limit, or it is believed no longer; or the operator has given clients another one.
    pub(super) fn learn(&self, bucket: &Bucket, limit: Option<u64>, rules: &Policy<'_>) {
        if let Bucket::Client(name) = bucket {
            if let Some(purse) = self.clients.lock().get(name).and_then(|slot| slot.purse().clone()) {
                purse.try_again();
            }
            return;
        }
        match limit {
            Some(limit) => self.learned.lock().insert(bucket.clone(), limit),
            None => self.learned.lock().remove(bucket),
        };
        if let Bucket::Quota(project, model, _) = bucket
            && let Some(purses) = self.known.lock().get(&(project.clone(), model.clone()))
        {
            self.limit(purses, rules);
        }
    }

    /// What refused leases said of a project and model does not hold any more.
    pub(super) fn try_again(&self, project: &ProjectId, model: &Model) {
        if let Some(purses) = self.known.lock().get(&(project.clone(), model.clone())) {
            purses.slots.iter().filter_map(|slot| slot.purse().clone()).for_each(|purse| purse.try_again());
        }
    }

    fn limit(&self, purses: &Purses, policy: &Policy<'_>) {
        if purses.model.as_str().is_empty() || purses.model.as_str().starts_with('#') {
            return; // it asks for no model, and the upstream counts none
        }
        for (dimension, slot) in Dimension::ALL.into_iter().zip(&purses.slots) {
            let bucket = Bucket::Quota(purses.project.clone(), purses.model.clone(), dimension);
            let configured = policy.rules.limit(&bucket).is_some();
            let learned = policy.learns && self.learned.lock().contains_key(&bucket);
            let told = self.learned.lock().get(&bucket).copied();
            let limited = configured || learned;
            let purse = limited.then(|| self.holder.lock().purse(&bucket, clock::mono()));
            slot.limit(purse, &bucket, told, policy);
        }
    }

    /// Draws what one request of so many bytes needs, all or nothing. `patient` requests may come back after a wait.
    pub(super) fn draw(
        &self,
        purses: &Purses,
        bytes: Option<u64>,
        patient: bool,
        now: Mono,
    ) -> Result<Spend, Dry> {
        let mut parts = Parts { at: now, ..Parts::default() };
        for ((dimension, slot), part) in Dimension::ALL.into_iter().zip(&purses.slots).zip(&mut parts.drawn) {
            let is_tokens = dimension == Dimension::Tpm;
            let n = if is_tokens { tokens(bytes) } else { 1 };
            if is_tokens && n > slot.most() && slot.purse().is_some() {
                parts.give_back();
                return Err(Dry::TooLarge);
            }
            match self.take(slot, n, patient, now) {
                Ok(drawn) => *part = drawn,
                Err(empty) => {
                    parts.give_back();
                    return Err(match empty {
                        Empty::Cold => Dry::Cold,
                        Empty::Spent(until) if is_tokens => Dry::Large(until),
                        Empty::Spent(until) => Dry::Until(until),
                    });
                }
            }
        }
        Ok(Spend::new(parts))
    }

    /// Draws the right to try what is blocked.
    pub(super) fn probe(&self, subject: &Subject, now: Mono) -> Result<Drawn, Empty> {
        let purse = self.holder.lock().purse(&Bucket::Probe(subject.clone()), now);
        let drawn = purse.draw(1, now);
        if !matches!(drawn, Err(Empty::Spent(_))) {
            self.low.notify_one();
        }
        drawn
    }

    /// Draws the right to one request of a client. For a lease that is not there yet it waits so long at most; what is
    /// left of that time.
    pub(crate) async fn admit(&self, slot: &Slot, patience: Duration) -> Result<Duration, Empty> {
        let deadline = clock::mono().plus(patience);
        let mut waited = false;
        loop {
            let seen = self.answers();
            let now = clock::mono();
            let patient = now < deadline && !self.silent.load(Acquire);
            // What is drawn is spent: from here on it counts, whatever becomes of the request.
            match self.take(slot, 1, patient, now) {
                Ok(_) => return Ok(deadline.since(now)),
                Err(Empty::Cold) if patient => {
                    if !std::mem::replace(&mut waited, true) {
                        self.waits.fetch_add(1, Relaxed);
                    }
                    self.another_answer(seen, deadline.since(now)).await;
                }
                Err(empty) => return Err(empty),
            }
        }
    }

    /// Draws from one bucket; nothing is drawn where nothing limits, or where it passes without a lease.
    fn take(
        &self,
        slot: &Slot,
        n: u64,
        patient: bool,
        now: Mono,
    ) -> Result<Option<(Arc<Purse>, Drawn)>, Empty> {
        let purse = slot.purse();
        let Some(purse) = &*purse else { return Ok(None) };
        match purse.draw(n, now) {
            Ok(drawn) => {
                if purse.is_low() {
                    self.low.notify_one();
                }
                Ok(Some((purse.clone(), drawn)))
            }
            Err(spent @ Empty::Spent(_)) => {
                self.refusals.fetch_add(1, Relaxed);
                Err(spent)
            }
            Err(Empty::Cold) => {
                self.low.notify_one();
                let given_up = !patient || self.silent.load(Acquire);
                let passes = given_up && slot.passes(purse.bucket(), n, now);
                if passes { Ok(None) } else { Err(Empty::Cold) }
            }
        }
    }

    /// How many answers about leases have come: to be read before drawing, for [`Quota::wait`].
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Acquire)
    }

    /// Waits until another answer about leases is there than the `seen` ones, or for so long; what is left of that time.
    pub(crate) async fn wait(&self, seen: u64, patience: Duration) -> Duration {
        if self.silent.load(Acquire) {
            return Duration::ZERO;
        }
        self.waits.fetch_add(1, Relaxed);
        let deadline = clock::mono().plus(patience);
        self.another_answer(seen, patience).await;
        deadline.since(clock::mono())
    }

    async fn another_answer(&self, seen: u64, patience: Duration) {
        let another = async {
            loop {
                let notified = self.answered.notified();
                if self.answers() != seen {
                    return;
                }
                notified.await;
            }
        };
        // The end of the patience is as good as an answer: either way the purse is looked into once more.
        let _ = tokio::time::timeout(patience, another).await;
    }

    /// The request about leases that is due, if one is.
    pub(crate) fn poll(&self) -> Option<LeaseRequest> {
        self.holder.lock().poll(clock::mono())
    }

    /// When the next one is due at the latest.
    pub(crate) fn next_poll(&self) -> Mono {
        self.holder.lock().next_poll()
    }

    /// Takes an answer.
    pub(crate) fn answered(&self, reply: &LeaseReply) {
        self.silent.store(false, Release);
        if self.unanswered.swap(0, Relaxed) >= SAY_AFTER {
            tracing::info!("the coordinator answers again: quota is leased as usual");
        }
        if self.holder.lock().answered(reply, clock::mono()) {
            self.answers.fetch_add(1, Release);
            self.answered.notify_waiters();
        }
    }

    /// No answer came.
    pub(crate) fn unanswered(&self) {
        self.holder.lock().give_up();
        self.silent.store(true, Release);
        if self.unanswered.fetch_add(1, Relaxed) + 1 == SAY_AFTER {
            tracing::warn!(
                "the coordinator does not answer (is it there, with NATS and Redis?): requests go on with the quota in \
                 hand; then limits hold or give way as quota.when_unleased says"
            );
        }
        self.answers.fetch_add(1, Release);
        self.answered.notify_waiters();
    }

    /// How many questions in a row had no answer.
    pub(crate) fn unanswered_so_far(&self) -> u64 {
        self.unanswered.load(Relaxed)
    }

    /// A leader of this epoch was heard of.
    pub(crate) fn saw_epoch(&self, epoch: u64) {
        self.holder.lock().saw_epoch(epoch);
    }

    /// What is in hand now of all buckets of each dimension.
    pub(crate) fn in_hand(&self, now: Mono) -> [(Dimension, u64); Dimension::ALL.len()] {
        let known = self.known.lock();
        let mut place = 0..;
        Dimension::ALL.map(|dimension| {
            let at = place.next().unwrap_or_default();
            let purses = known.values().filter_map(|purses| purses.slots[at].purse().clone());
            (dimension, purses.map(|purse| purse.in_hand(now)).sum())
        })
    }

    /// How many buckets can never be leased, for want of room.
    pub(crate) fn unleasable(&self) -> usize {
        self.holder.lock().refused()
    }

    /// The last requests: everything is given back.
    pub(crate) fn leave(&self) -> Vec<LeaseRequest> {
        self.holder.lock().leave(clock::mono())
    }

    /// Lets go of buckets that nobody draws from. Those that found no room before get what there is now.
    pub(super) fn forget_idle(&self, rules: &Policy<'_>) {
        let has_room_again = {
            let mut holder = self.holder.lock();
            holder.forget_idle(clock::mono());
            holder.has_room_again()
        };
        if has_room_again {
            self.follow(rules);
        }
    }
}

impl Purses {
    /// How many tokens there may be of, if a body of so many bytes has more.
    pub(super) fn exceeded_by(&self, bytes: Option<u64>) -> Option<u64> {
        let slot = Dimension::ALL
            .iter()
            .position(|dimension| *dimension == Dimension::Tpm)
            .map(|at| &self.slots[at])?;
        let most = slot.most();
        (slot.purse().is_some() && tokens(bytes) > most).then_some(most)
    }
}

/// What the operator chose about quotas.
pub(crate) struct Policy<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) learns: bool,
    pub(crate) configured: WhenUnleased,
    pub(crate) learned: WhenUnleased,
    pub(crate) max_replicas: u32,
}

/// How many input tokens a request may have.
fn tokens(bytes: Option<u64>) -> u64 {
    bytes.unwrap_or_default().div_ceil(BYTES_PER_TOKEN).max(1)
}
