//! One attempt with one key, and what follows from how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release, SeqCst};
use std::time::Duration;

use keyfleet_core::block;
use keyfleet_core::error_body::StatedLimit;
use keyfleet_core::id::{Host, Model, ProjectId};
use keyfleet_core::latency::Latencies;
use keyfleet_core::message::{Record, Subject};
use keyfleet_core::outcome::{Cause, Outcome, Retry, Scope};
use keyfleet_core::select::{Probes, Seat};
use keyfleet_core::time::{Mono, Now};
use keyfleet_core::trace::{SpanId, TraceId, TraceParent};
use keyfleet_service::clock;
use keyfleet_service::telemetry;
use tracing::field::{DisplayValue, display};

use super::quota::Spend;
use super::trial::{self, Trial};
use super::{Blocked, EgressState, LastFailure, Pool};
use crate::live::{Live, LiveKey, ModelLane};

/// Failures of different projects within this time speak against what they share.
const TOGETHER: Duration = Duration::from_secs(5);
/// How many projects have to fail together before their way out is blamed.
const SUSPECTS: usize = 3;
/// So much earlier than by our clock the upstream may find that a caller's time is over.
const SKEW: Duration = Duration::from_millis(100);
/// What a key, its project and its quota are tried for.
const OWN: [Probes; 4] = [Probes::KEY, Probes::KEY_MODEL, Probes::BUCKET, Probes::PROJECT];

/// The right to one attempt with one key. Whoever drops it unused gives back what it holds.
pub(crate) struct Permit {
    pub(super) pool: Arc<Pool>,
    pub(crate) live: Arc<Live>,
    pub(super) lane: Arc<ModelLane>,
    pub(crate) seat: usize,
    pub(super) probes: Probes,
    /// The right to them.
    pub(super) trial: Trial,
    /// The size of the body, if it bounds the tokens.
    pub(super) bytes: Option<u64>,
    /// An answer has begun, so many ms after it was asked for. It counts once it has ended without a failure.
    pub(super) begun: Option<u32>,
    /// The quota that it drew.
    pub(super) spend: Spend,
    /// When the caller's own limit for the upstream ends, if it set one.
    pub(crate) callers_end: Option<Mono>,
    /// The step of a trace that the attempt is, for what follows from a failure.
    pub(crate) trace: Option<TraceParent>,
    /// How long what the failure was about stays away from traffic, as far as this replica knows; the longest time is
    /// one without an end.
    pub(super) cooldown: Option<Duration>,
}

impl Permit {
    pub(crate) fn key(&self) -> &LiveKey {
        &self.live.keys[self.seat().key as usize]
    }

    /// For log lines about what the attempt leads to.
    pub(crate) fn trace_id(&self) -> Option<DisplayValue<TraceId>> {
        self.trace.map(|trace| display(trace.trace_id()))
    }

    /// The same; unless this process traces, the step is the client's, and not shown.
    pub(crate) fn span_id(&self) -> Option<DisplayValue<SpanId>> {
        telemetry::get()?;
        self.trace.map(|trace| display(trace.span_id()))
    }

    /// The key's place in the tables of the configuration.
    pub(crate) fn key_number(&self) -> u32 {
        self.seat().key
    }

    pub(crate) fn project(&self) -> &ProjectId {
        &self.live.projects[self.seat().project as usize]
    }

    /// The model as this key's upstream calls it, with the part of its quota.
    fn bucket_model(&self) -> &Model {
        &self.lane.upstream[self.key().group as usize]
    }

    fn host(&self) -> &Host {
        &self.live.groups[self.key().group as usize].host
    }

    fn egress(&self) -> &EgressState {
        &self.lane.egresses[self.key().egress as usize]
    }

    fn seat(&self) -> &Seat {
        &self.lane.lane.seats()[self.seat]
    }

    /// How long what a failure was about stays away from traffic, by this replica's own decision.
    pub(crate) fn cooldown(&self) -> Option<Duration> {
        self.cooldown
    }

    /// The quota of this attempt.
    pub(crate) fn spend(&self) -> &Spend {
        &self.spend
    }

    /// The upstream has told how many input tokens it counted.
    pub(crate) fn settle(&self, input_tokens: u64) {
        self.spend.settle(input_tokens);
    }

    /// The upstream began to answer; `ttfb` is the time to its first byte. What goes wrong later is told to
    /// [`Permit::failed`]; else dropping the permit counts the answer.
    pub(crate) fn succeeded(&mut self, ttfb: Duration, now: Mono) {
        let probes = std::mem::take(&mut self.probes);
        let mut trial = std::mem::take(&mut self.trial);
        self.answered(probes, &mut trial, now);
        if self.egress().suspected.load(Relaxed) && self.egress().suspected.swap(false, AcqRel) {
            self.egress().suspects.lock().clear();
        }
        if probes.any() {
            self.pool.generation.fetch_add(1, AcqRel);
        }
        let probes = probes.without(Probes::MODEL).without(Probes::EGRESS);
        self.lane.served.store(true, Relaxed);
        let ttfb_ms = u32::try_from(ttfb.as_millis()).unwrap_or(u32::MAX);
        if !probes.any() {
            self.begun = Some(ttfb_ms);
            return;
        }
        for probe in OWN.into_iter().filter(|probe| probes.has(*probe)) {
            if let Some(subject) = trial::subject(&self.live, &self.lane, self.seat(), probe) {
                self.pool.open(&subject, probe != Probes::BUCKET, now);
            }
        }
        let (key, model) = (self.key().id.clone(), self.bucket_model().clone());
        let mut time = Latencies::default();
        time.count(1, ttfb_ms);
        self.pool.reports.took(&model, &time);
        self.pool.reports.push(Record::Succeeded { key, model, n: 1, ttfb_ms, probe: true });
        trial.judged(probes, &self.pool.reports);
    }

    /// What a failure means for this attempt. A deadline that the caller itself has set says nothing about the model,
    /// and nobody is there any more for whom to ask again.
    pub(crate) fn judge(&self, outcome: Outcome, now: Mono) -> Outcome {
        match self.callers_end {
            Some(end) if outcome.cause == Cause::Deadline && now.plus(SKEW) >= end => {
                Outcome { scope: Scope::Client, retry: Retry::Never, ..outcome }
            }
            _ => outcome,
        }
    }

    /// The attempt failed. Everything that follows from it holds when this returns.
    /// `stated`: the limits that the error told.
    pub(crate) fn failed(&mut self, outcome: &Outcome, stated: &[StatedLimit], now: Now) {
        self.begun = None;
        let probes = std::mem::take(&mut self.probes);
        let mut trial = std::mem::take(&mut self.trial);
        let draw = fastrand::u32(..);
        let concerned = self.act_on(outcome, probes, draw, now);
        if probes.any() {
            self.seat().return_probes(probes.without(concerned), now.mono);
            // Settled or given back, the next probe is due at another time than seats that were met closed expect.
            self.pool.generation.fetch_add(1, AcqRel);
        }
        if outcome.scope == Scope::Client {
            return;
        }
        let (key, model) = (self.key().id.clone(), self.bucket_model().clone());
        self.pool.remember(LastFailure { at: now.mono, key, model, cause: outcome.cause });
        let failed = Record::Failed {
            key: self.key().id.clone(),
            model: self.bucket_model().clone(),
            scope: outcome.scope,
            cause: outcome.cause,
            n: 1,
            retry_after_ms: outcome.retry_after.and_then(|span| u64::try_from(span.as_millis()).ok()),
            draw,
            probe: OWN.iter().any(|probe| probes.has(*probe) && concerned.has(*probe)),
            limits: stated
                .iter()
                .filter(|_| self.live.config.quota.learn_limits && outcome.scope == Scope::Bucket)
                .filter_map(|stated| Some((stated.dimension.quota()?, stated.limit)))
                .collect(),
            in_a_row: None,
            age_ms: 0,
        };
        self.pool.reports.push_traced(failed, self.trace);
        trial.judged(concerned, &self.pool.reports);
    }

    /// Closes what the outcome closes; returns the gate that it was about.
    fn act_on(&mut self, outcome: &Outcome, probes: Probes, draw: u32, now: Now) -> Probes {
        let seat = self.seat();
        let policy = &self.live.breaker;
        let (key, project) = (&self.key().id, self.project());
        let (subject, concerned) = match outcome.scope {
            Scope::Client => return Probes::default(),
            Scope::Model => {
                let opened = seat.gates.model.failed(policy, now.mono);
                if opened {
                    tracing::warn!(
                        model = %self.bucket_model(), cause = outcome.cause.as_str(),
                        trace_id = self.trace_id(), span_id = self.span_id(), "the model's breaker opens"
                    );
                }
                let probe = probes.has(Probes::MODEL);
                if opened || probe {
                    let tripped = Record::Tripped {
                        host: self.host().clone(),
                        model: self.bucket_model().clone(),
                        cause: outcome.cause,
                        recovery_ms: u64::try_from(policy.recovery.as_millis()).unwrap_or(u64::MAX),
                        draw,
                        probe,
                        age_ms: 0,
                    };
                    self.pool.reports.push_traced(tripped, self.trace);
                    self.cooldown = Some(policy.recovery);
                }
                return Probes::MODEL;
            }
            Scope::Egress => {
                self.blame_egress(outcome, probes, now);
                return Probes::EGRESS;
            }
            Scope::Key => (Subject::Key(key.clone()), Probes::KEY),
            Scope::KeyModel => {
                (Subject::KeyModel(key.clone(), self.bucket_model().clone()), Probes::KEY_MODEL)
            }
            Scope::Bucket => (Subject::Bucket(project.clone(), self.bucket_model().clone()), Probes::BUCKET),
            Scope::Project | Scope::BillingAccount => (Subject::Project(project.clone()), Probes::PROJECT),
        };
        // Somebody answered, so the way out is there. It was not the model: keys and quota are looked at before it.
        if outcome.cause == Cause::BareRateLimit {
            self.blame_egress(outcome, probes, now);
        } else {
            self.reached(now.mono);
        }
        // The coordinator knows how often it has struck, and prolongs this.
        let mut cooldown = None;
        if let Some(window) = block::window(outcome, 0, &self.live.blocks, now.utc, draw) {
            let until = now.mono_at(window.until);
            cooldown = Some(if until == Mono::FOREVER { Duration::MAX } else { until.since(now.mono) });
            let probe = window.probe_after.map(|span| now.mono.plus(span));
            let blocked = Blocked { cause: outcome.cause, until, probe, decided: false };
            self.pool.close(&subject, blocked, self.bytes, now.mono);
            self.pool.herald.tell(&subject, outcome.cause, until, self.trace, now.mono);
        }
        if outcome.cause.is_terminal() {
            tracing::warn!(
                key = %key, %project, cause = outcome.cause.as_str(),
                trace_id = self.trace_id(), span_id = self.span_id(), "out of rotation until a check succeeds"
            );
        }
        self.cooldown = cooldown;
        concerned
    }

    /// The upstream was reached and the model spoke: what their breakers count starts anew.
    fn answered(&self, probes: Probes, trial: &mut Trial, now: Mono) {
        let gates = &self.seat().gates;
        let policy = &self.live.breaker;
        if gates.model.succeeded(policy, probes.has(Probes::MODEL), now) {
            tracing::info!(
                model = %self.bucket_model(), trace_id = self.trace_id(), span_id = self.span_id(),
                "the model's breaker closes"
            );
            let (host, model) = (self.host().clone(), self.bucket_model().clone());
            self.pool.open(&Subject::Model(host.clone(), model.clone()), false, now);
            self.pool.reports.push(Record::Recovered { host, model });
            trial.judged(Probes::MODEL, &self.pool.reports);
        }
        self.reached(now);
    }

    /// The upstream was reached.
    fn reached(&self, now: Mono) {
        if self.seat().gates.egress.succeeded(&self.live.breaker, true, now) {
            self.pool.generation.fetch_add(1, AcqRel);
        }
    }

    /// Connect errors count one by one; refusals that a single project may also deserve count once several
    /// projects get them together.
    fn blame_egress(&self, outcome: &Outcome, probes: Probes, now: Now) {
        let (egress, _) = &self.live.egresses[self.key().egress as usize];
        let state = self.egress();
        if matches!(outcome.cause, Cause::Connect | Cause::Reset | Cause::Timeout) {
            if state.breaker.failed(&self.live.breaker, now.mono) {
                tracing::warn!(
                    %egress, cause = outcome.cause.as_str(), trace_id = self.trace_id(), span_id = self.span_id(),
                    "the way out fails: its breaker opens"
                );
            }
            return;
        }
        let rests_until = now.mono.plus(2 * self.live.breaker.recovery);
        if probes.has(Probes::EGRESS) {
            // It was tried whether this is over, and it is not.
            state.breaker.trip(&self.live.breaker, rests_until);
            return;
        }
        let mut suspects = state.suspects.lock();
        suspects.retain(|(_, at)| now.mono.since(*at) <= TOGETHER);
        state.suspected.store(true, Release);
        if !suspects.iter().any(|(project, _)| project == self.project()) && suspects.len() < SUSPECTS {
            suspects.push((self.project().clone(), now.mono));
        }
        if suspects.len() >= SUSPECTS.min(self.live.projects.len()).max(2) {
            suspects.clear();
            tracing::warn!(
                %egress, cause = outcome.cause.as_str(), trace_id = self.trace_id(), span_id = self.span_id(),
                "several projects are refused together: the way out rests"
            );
            state.breaker.trip(&self.live.breaker, rests_until);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ttfb_ms) = self.begun {
            let tally = &self.lane.tallies[self.seat];
            tally.ttfb_ms.fetch_add(u64::from(ttfb_ms), Relaxed);
            let group = self.key().group as usize;
            self.lane.times[group].count(ttfb_ms);
            tally.answers.fetch_add(1, SeqCst);
            // Whoever retires a lane gathers it afterwards: one of the two sees what the other did.
            if self.live.retired.load(SeqCst) || self.lane.retired.load(SeqCst) {
                self.pool.gather_seat(&self.live, &self.lane, self.seat);
                self.pool.gather_times(&self.lane, group);
            }
        }
        if self.probes.any() {
            self.seat().return_probes(self.probes, clock::mono());
            self.pool.generation.fetch_add(1, AcqRel);
        }
    }
}
