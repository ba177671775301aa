//! Quota in hand: what an attempt draws before it is sent. Nothing here waits for the coordinator; `sync` talks to it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use keyfleet_core::id::{Model, ProjectId, ReplicaId};
use keyfleet_core::message::Subject;
use keyfleet_core::quota::holder::{Drawn, Empty, Holder, Purse};
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest};
use keyfleet_core::quota::rules::Rules;
use keyfleet_core::quota::{Bucket, Dimension, Terms};
use keyfleet_core::time::Mono;
use keyfleet_service::clock;
use keyfleet_service::config::WhenUnleased;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What of a request's body counts as one token, in bytes, until a tokenizer says it better. JSON around the text makes
/// it an estimate on the safe side for most languages.
const BYTES_PER_TOKEN: u64 = 4;
/// After so many questions without an answer it is said.
const SAY_AFTER: u64 = 5;
/// A day of the longest kind.
const DAY: Duration = Duration::from_hours(25);
/// No longer than this may pass between drawing a permit and sending the request; see [`Terms::jitter`].
pub(crate) const JITTER: Duration = Terms::MINUTE.jitter;

/// The purses of one project and model; empty where nobody knows a limit.
#[derive(Debug)]
pub(crate) struct Purses {
    project: ProjectId,
    model: Model,
    slots: [Slot; Dimension::ALL.len()],
}

#[derive(Debug, Default)]
struct Slot {
    purse: ArcSwapOption<Purse>,
    /// Without a lease, requests pass all the same.
    open: AtomicBool,
    /// No draw can ever be larger.
    most: AtomicU64,
    /// What passes without a lease of a share that is never leased.
    reserve: Mutex<Reserve>,
}

/// This replica's part of what is never leased: so many in any window, or in a day.
#[derive(Debug, Default)]
struct Reserve {
    size: u64,
    used: VecDeque<(Mono, u64)>,
}

impl Reserve {
    fn draw(&mut self, n: u64, window: Duration, now: Mono) -> bool {
        while self.used.front().is_some_and(|(at, _)| now.since(*at) >= window) {
            self.used.pop_front();
        }
        let used: u64 = self.used.iter().map(|(_, n)| n).sum();
        let fits = used + n <= self.size;
        if fits {
            self.used.push_back((now, n));
        }
        fits
    }
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

/// What one attempt drew, if anything counts it. When the last clone is dropped, what was not sent is given back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spend(Option<Arc<Drawing>>);

#[derive(Debug)]
struct Drawing {
    parts: Mutex<Parts>,
    sent: AtomicBool,
    lapsed: AtomicBool,
}

#[derive(Debug, Default)]
struct Parts {
    drawn: [Option<(Arc<Purse>, Drawn)>; Dimension::ALL.len()],
    at: Mono,
}

/// All quota of this replica.
pub(crate) struct Quota {
    holder: Mutex<Holder>,
    known: Mutex<HashMap<(ProjectId, Model), Arc<Purses>>>,
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
    /// Requests that waited for a lease.
    pub(crate) waits: AtomicU64,
    /// Draws that found nothing.
    pub(crate) refusals: AtomicU64,
}

impl Quota {
    pub(crate) fn new(replica: &ReplicaId) -> Self {
        Self {
            holder: Mutex::new(Holder::new(replica.clone(), Terms::MINUTE, clock::mono())),
            known: Mutex::default(),
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

    /// Puts other rules in force.
    pub(super) fn follow(&self, rules: &Policy<'_>) {
        self.known.lock().values().for_each(|purses| self.limit(purses, rules));
    }

    /// The upstream has told a limit, or it is believed no longer.
    pub(super) fn learn(&self, bucket: &Bucket, limit: Option<u64>, rules: &Policy<'_>) {
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
            purses.slots.iter().filter_map(|slot| slot.purse.load_full()).for_each(|purse| purse.try_again());
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
            let when = if configured { policy.configured } else { policy.learned };
            slot.open.store(when == WhenUnleased::Open, Release);
            let kept = policy.rules.limit(&bucket).map_or(0, |limit| policy.rules.reserve(limit));
            slot.reserve.lock().size = kept / u64::from(policy.max_replicas);
            let told = self.learned.lock().get(&bucket).copied();
            let most = policy.rules.leasable(&bucket).or(told).unwrap_or(u64::MAX);
            slot.most.store(most, Release);
            if configured || learned {
                let purse = self.holder.lock().purse(&bucket, clock::mono());
                slot.purse.store(Some(purse));
            } else {
                slot.purse.store(None);
            }
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
            let purse = slot.purse.load();
            let Some(purse) = &*purse else { continue };
            let n = if dimension == Dimension::Tpm { tokens(bytes) } else { 1 };
            if n > slot.most.load(Acquire) && dimension == Dimension::Tpm {
                parts.give_back();
                return Err(Dry::TooLarge);
            }
            match purse.draw(n, now) {
                Ok(drawn) => {
                    if purse.is_low() {
                        self.low.notify_one();
                    }
                    *part = Some((purse.clone(), drawn));
                }
                Err(Empty::Spent(until)) => {
                    parts.give_back();
                    self.refusals.fetch_add(1, Relaxed);
                    return Err(if dimension == Dimension::Tpm {
                        Dry::Large(until)
                    } else {
                        Dry::Until(until)
                    });
                }
                Err(Empty::Cold) => {
                    self.low.notify_one();
                    let given_up = !patient || self.silent.load(Acquire);
                    let window =
                        if dimension == Dimension::Rpd { DAY } else { Terms::MINUTE.window + JITTER };
                    let passes = || slot.open.load(Acquire) || slot.reserve.lock().draw(n, window, now);
                    if given_up && passes() {
                        continue;
                    }
                    parts.give_back();
                    return Err(Dry::Cold);
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

    /// How many answers about leases have come: to be read before drawing, for [`Quota::wait`].
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Acquire)
    }

    /// Waits until another answer about leases is there than the `seen` ones, or for so long.
    pub(crate) async fn wait(&self, seen: u64, patience: Duration) {
        if self.silent.load(Acquire) {
            return;
        }
        self.waits.fetch_add(1, Relaxed);
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

    /// The last request: everything is given back.
    pub(crate) fn leave(&self) -> LeaseRequest {
        self.holder.lock().leave(clock::mono())
    }

    /// Lets go of buckets that nobody draws from.
    pub(crate) fn forget_idle(&self) {
        self.holder.lock().forget_idle(clock::mono());
    }
}

impl Purses {
    /// How many tokens there may be of, if a body of so many bytes has more.
    pub(super) fn exceeded_by(&self, bytes: Option<u64>) -> Option<u64> {
        let slot = Dimension::ALL
            .iter()
            .position(|dimension| *dimension == Dimension::Tpm)
            .map(|at| &self.slots[at])?;
        let most = slot.most.load(Acquire);
        (slot.purse.load().is_some() && tokens(bytes) > most).then_some(most)
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

impl Spend {
    fn new(parts: Parts) -> Self {
        let counts = parts.drawn.iter().any(Option::is_some);
        Self(counts.then(|| {
            let (sent, lapsed) = (AtomicBool::new(false), AtomicBool::new(false));
            Arc::new(Drawing { parts: Mutex::new(parts), sent, lapsed })
        }))
    }

    /// Whether anything counts this attempt.
    pub(crate) fn counts(&self) -> bool {
        self.0.is_some()
    }

    /// To be asked at the last moment before the request is on its way; from then on the permits are spent. A permit
    /// that was drawn too long ago is drawn anew, so that the book never thinks it used earlier than the upstream does.
    /// False if that fails: the request must not be sent.
    pub(crate) fn board(&self, now: Mono) -> bool {
        let Some(drawing) = &self.0 else { return true };
        if drawing.sent.load(Acquire) {
            return true;
        }
        let mut parts = drawing.parts.lock();
        let fresh = now.since(parts.at) < JITTER;
        let may_go = (fresh && parts.drawn.iter().flatten().all(|(_, drawn)| drawn.is_live(now)))
            || parts.draw_anew(now);
        if may_go {
            drawing.sent.store(true, Release);
        } else {
            drawing.lapsed.store(true, Release);
        }
        may_go
    }

    /// Whether [`Spend::board`] has said no.
    pub(crate) fn lapsed(&self) -> bool {
        self.0.as_ref().is_some_and(|drawing| drawing.lapsed.load(Acquire))
    }

    /// The upstream has told how many input tokens it counted.
    pub(crate) fn settle(&self, input_tokens: u64) {
        let Some(drawing) = &self.0 else { return };
        let tokens = Dimension::ALL.iter().position(|dimension| *dimension == Dimension::Tpm);
        if let Some((purse, drawn)) = tokens.and_then(|place| drawing.parts.lock().drawn[place].take()) {
            drawn.settle(input_tokens, &purse);
        }
    }
}

impl Parts {
    fn give_back(&mut self) {
        for (_, drawn) in self.drawn.iter_mut().filter_map(Option::take) {
            drawn.give_back();
        }
    }

    fn draw_anew(&mut self, now: Mono) -> bool {
        for part in &mut self.drawn {
            let Some((purse, drawn)) = part.take() else { continue };
            let n = drawn.permits();
            drawn.give_back();
            match purse.draw(n, now) {
                Ok(drawn) => *part = Some((purse, drawn)),
                Err(_) => return false,
            }
        }
        self.at = now;
        true
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        if !*self.sent.get_mut() {
            self.parts.get_mut().give_back();
        }
    }
}

/// How many input tokens a request may have.
fn tokens(bytes: Option<u64>) -> u64 {
    bytes.unwrap_or_default().div_ceil(BYTES_PER_TOKEN).max(1)
}
