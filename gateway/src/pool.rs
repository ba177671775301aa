//! The hot-path view of the keys: which may be used now, and what became of those that were.
//!
//! [`Pool::acquire`] chooses by `keyfleet_core::select` without a lock. [`Permit::succeeded`] and
//! [`Permit::failed`] act on a finding at once (the next request of this replica knows it) and report it to the
//! coordinator, whose decisions come back through [`Pool::decide`].

mod lanes;
mod owners;
mod reports;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyfleet_core::block;
use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::id::{Egress, KeyId, Model, ProjectId};
use keyfleet_core::message::{Change, Record, Subject};
use keyfleet_core::outcome::{Cause, Outcome, Scope};
use keyfleet_core::select::{Dial, NoKey, Probes, Seat, Want};
use keyfleet_core::time::{Mono, Now};
use keyfleet_service::clock;
use parking_lot::Mutex;

use crate::live::{Live, LiveKey, ModelLane};
pub(crate) use owners::Owners;
pub(crate) use reports::Reports;

/// Failures of different projects within this time speak against what they share.
const TOGETHER: Duration = Duration::from_secs(5);
/// How many projects have to fail together before their way out is blamed.
const SUSPECTS: usize = 3;

/// The keys and what is known of them.
pub(crate) struct Pool {
    live: ArcSwap<Live>,
    gates: Mutex<HashMap<Subject, Arc<Gate>>>,
    dials: Mutex<HashMap<KeyId, Arc<Dial>>>,
    models: Mutex<HashMap<(String, Model), Arc<Breaker>>>,
    egresses: Mutex<HashMap<Egress, Arc<EgressState>>>,
    /// The blocks that hold, for lanes that are built later and for people.
    blocks: Mutex<HashMap<Subject, Blocked>>,
    last_validated: Mutex<Option<(KeyId, Mono)>>,
    /// Counts gates and probes that became free before their time.
    generation: AtomicU64,
    pub(crate) owners: Owners,
    pub(crate) reports: Reports,
}

/// Why traffic stays away from a subject.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocked {
    pub(crate) cause: Cause,
    pub(crate) until: Mono,
    pub(crate) probe: Option<Mono>,
    /// The coordinator has said so; else it is this replica's own finding, which the coordinator may not know yet.
    pub(crate) decided: bool,
}

/// A way out, and the projects that were refused on it lately.
#[derive(Default)]
pub(crate) struct EgressState {
    pub(crate) breaker: Arc<Breaker>,
    suspects: Mutex<Vec<(ProjectId, Mono)>>,
    suspected: AtomicBool,
}

/// The right to one attempt with one key. Whoever drops it unused gives back what it holds.
pub(crate) struct Permit {
    pool: Arc<Pool>,
    pub(crate) live: Arc<Live>,
    lane: Arc<ModelLane>,
    pub(crate) seat: usize,
    probes: Probes,
    /// An answer has begun, so many ms after it was asked for. It counts once it has ended without a failure.
    begun: Option<u32>,
}

impl Pool {
    pub(crate) fn new(live: Live) -> Arc<Self> {
        Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            gates: Mutex::default(),
            dials: Mutex::default(),
            models: Mutex::default(),
            egresses: Mutex::default(),
            blocks: Mutex::default(),
            last_validated: Mutex::default(),
            generation: AtomicU64::new(1),
            owners: Owners::default(),
            reports: Reports::default(),
        })
    }

    /// The configuration in force.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another configuration in force. Requests under way keep theirs.
    pub(crate) fn replace(&self, mut live: Live) {
        live.keep_counts_of(&self.live());
        let old = self.live.swap(Arc::new(live));
        self.gather(&old);
    }

    /// Turns the answers since the last time into records.
    pub(crate) fn gather(&self, live: &Live) {
        for lane in live.lanes.load().values() {
            for (seat, tally) in lane.lane.seats().iter().zip(&lane.tallies) {
                let n = tally.answers.swap(0, AcqRel);
                if n == 0 {
                    continue;
                }
                let sum = tally.ttfb_ms.swap(0, AcqRel);
                let key = &live.keys[seat.key as usize];
                self.reports.push(Record::Succeeded {
                    key: key.id.clone(),
                    model: lane.upstream[key.group as usize].clone(),
                    n,
                    ttfb_ms: u32::try_from(sum / u64::from(n)).unwrap_or(u32::MAX),
                    probe: false,
                });
            }
        }
    }

    /// Chooses a key for `model`, which may be none; `again` is a seat to use once more if it still can be.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        live: &Arc<Live>,
        model: &Model,
        want: &Want<'_>,
        again: Option<usize>,
        now: Now,
    ) -> Result<Permit, NoKey> {
        let lane = self.lane(live, model, now.mono);
        let same = again.and_then(|index| Some((index, lane.lane.seats().get(index)?.admit(now.mono)?)));
        let (seat, probes) = if let Some(found) = same {
            found
        } else {
            let pick = lane.lane.select(want, self.generation.load(Acquire), now.mono)?;
            (pick.index, pick.probes)
        };
        Ok(Permit { pool: self.clone(), live: live.clone(), lane, seat, probes, begun: None })
    }

    /// True if any key may ever serve this model.
    pub(crate) fn serves(&self, live: &Arc<Live>, model: &Model) -> bool {
        !self.lane(live, model, clock::mono()).lane.seats().is_empty()
    }

    /// Takes a decision of the coordinator over.
    pub(crate) fn decide(&self, change: &Change, now: Now) {
        match change {
            Change::Blocked { subject, cause, ttl_ms, probe_ms } => {
                let at = |ms: u64| now.mono.plus(Duration::from_millis(ms));
                let until = ttl_ms.map_or(Mono::FOREVER, at);
                let probe = probe_ms.map(at);
                self.close(subject, Blocked { cause: *cause, until, probe, decided: true });
                if let Some(at) = probe {
                    self.on_gates(subject, |gate| gate.schedule_probe(at));
                }
            }
            Change::Cleared { subject, slow_start } => self.open(subject, *slow_start, now.mono),
            Change::Scored { key, score } => self.dial(key).set_score(*score),
            Change::Owned(owned) => self.owners.insert(owned, now.mono),
            Change::Validated { key } => *self.last_validated.lock() = Some((key.clone(), now.mono)),
        }
    }

    /// Takes over everything that holds: what was decided before and is not part of it is over.
    pub(crate) fn decide_all(&self, changes: &[Change], now: Now) {
        let blocked = |change: &Change| match change {
            Change::Blocked { subject, .. } => Some(subject.clone()),
            _ => None,
        };
        let holds: HashSet<Subject> = changes.iter().filter_map(blocked).collect();
        let decided = self.blocks(now.mono).into_iter().filter(|(_, blocked)| blocked.decided);
        let over = decided.filter(|(subject, _)| !holds.contains(subject));
        over.for_each(|(subject, _)| self.open(&subject, false, now.mono));
        for change in changes {
            self.decide(change, now);
        }
    }

    /// Closes the gate of a subject, here and now.
    fn close(&self, subject: &Subject, blocked: Blocked) {
        self.on_gates(subject, |gate| gate.close(blocked.until, blocked.probe));
        let mut blocks = self.blocks.lock();
        let known = blocks.entry(subject.clone()).or_insert(blocked);
        if blocked.until >= known.until {
            *known = blocked;
        }
    }

    fn open(&self, subject: &Subject, slow_start: bool, now: Mono) {
        self.on_gates(subject, Gate::open);
        self.blocks.lock().remove(subject);
        if slow_start {
            let live = self.live();
            let concerned = |key: &&LiveKey| match subject {
                Subject::Key(id) | Subject::KeyModel(id, _) => key.id == *id,
                Subject::Project(project) | Subject::Bucket(project, _) => {
                    live.projects[key.project as usize] == *project
                }
            };
            live.keys.iter().filter(concerned).for_each(|key| self.dial(&key.id).recovered(now));
        }
        self.generation.fetch_add(1, AcqRel);
    }

    /// The blocks that hold at `now`; those that are over are forgotten.
    pub(crate) fn blocks(&self, now: Mono) -> HashMap<Subject, Blocked> {
        let mut blocks = self.blocks.lock();
        blocks.retain(|_, blocked| blocked.until > now);
        blocks.clone()
    }

    /// The key that the prober last found valid, and when.
    pub(crate) fn last_validated(&self) -> Option<(KeyId, Mono)> {
        self.last_validated.lock().clone()
    }

    /// The health of a key.
    pub(crate) fn dial(&self, key: &KeyId) -> Arc<Dial> {
        self.dials.lock().entry(key.clone()).or_default().clone()
    }

    /// A subject's gate, or its gates: a key has one per model that it serves.
    fn on_gates(&self, subject: &Subject, act: impl Fn(&Gate)) {
        match subject {
            Subject::KeyModel(key, model) => self.seats_of(key, model, |seat| act(&seat.gates.key_model)),
            _ => act(&self.gate(subject)),
        }
    }

    fn gate(&self, subject: &Subject) -> Arc<Gate> {
        self.gates.lock().entry(subject.clone()).or_default().clone()
    }

    fn egress(&self, egress: &Egress) -> Arc<EgressState> {
        self.egresses.lock().entry(egress.clone()).or_default().clone()
    }

    fn seats_of(&self, key: &KeyId, model: &Model, act: impl Fn(&Seat)) {
        let live = self.live();
        for lane in live.lanes.load().values() {
            for seat in lane.lane.seats() {
                let live_key = &live.keys[seat.key as usize];
                if live_key.id == *key && lane.upstream[live_key.group as usize] == *model {
                    act(seat);
                }
            }
        }
    }
}

impl Permit {
    pub(crate) fn key(&self) -> &LiveKey {
        &self.live.keys[self.seat().key as usize]
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

    fn egress(&self) -> &EgressState {
        &self.lane.egresses[self.key().egress as usize]
    }

    fn seat(&self) -> &Seat {
        &self.lane.lane.seats()[self.seat]
    }

    /// The upstream began to answer; `ttfb` is the time to its first byte. What goes wrong later is told to
    /// [`Permit::failed`]; else dropping the permit counts the answer.
    pub(crate) fn succeeded(&mut self, ttfb: Duration, now: Mono) {
        self.answered(now);
        if self.egress().suspected.load(Relaxed) && self.egress().suspected.swap(false, AcqRel) {
            self.egress().suspects.lock().clear();
        }
        let probes = std::mem::take(&mut self.probes).without(Probes::MODEL).without(Probes::EGRESS);
        self.lane.served.store(true, Relaxed);
        let ttfb_ms = u32::try_from(ttfb.as_millis()).unwrap_or(u32::MAX);
        if !probes.any() {
            self.begun = Some(ttfb_ms);
            return;
        }
        let (key, model, project) =
            (self.key().id.clone(), self.bucket_model().clone(), self.project().clone());
        for (probe, subject) in [
            (Probes::KEY, Subject::Key(key.clone())),
            (Probes::KEY_MODEL, Subject::KeyModel(key.clone(), model.clone())),
            (Probes::BUCKET, Subject::Bucket(project.clone(), model.clone())),
            (Probes::PROJECT, Subject::Project(project)),
        ] {
            if probes.has(probe) {
                self.pool.open(&subject, probe != Probes::BUCKET, now);
            }
        }
        self.pool.reports.push(Record::Succeeded { key, model, n: 1, ttfb_ms, probe: true });
    }

    /// The attempt failed. Everything that follows from it holds when this returns.
    pub(crate) fn failed(&mut self, outcome: &Outcome, now: Now) {
        self.begun = None;
        let probes = std::mem::take(&mut self.probes);
        let draw = fastrand::u32(..);
        let concerned = self.act_on(outcome, draw, now);
        let left = probes.without(concerned);
        if left.any() {
            self.seat().return_probes(left, now.mono);
            self.pool.generation.fetch_add(1, AcqRel);
        }
        if outcome.scope == Scope::Client {
            return;
        }
        let own = [Probes::KEY, Probes::KEY_MODEL, Probes::BUCKET, Probes::PROJECT];
        self.pool.reports.push(Record::Failed {
            key: self.key().id.clone(),
            model: self.bucket_model().clone(),
            scope: outcome.scope,
            cause: outcome.cause,
            retry_after_ms: outcome.retry_after.and_then(|span| u64::try_from(span.as_millis()).ok()),
            draw,
            probe: own.iter().any(|probe| probes.has(*probe) && concerned.has(*probe)),
        });
    }

    /// Closes what the outcome closes; returns the gate that it was about.
    fn act_on(&self, outcome: &Outcome, draw: u32, now: Now) -> Probes {
        let seat = self.seat();
        let policy = &self.live.breaker;
        let (key, project) = (&self.key().id, self.project());
        let (subject, concerned) = match outcome.scope {
            Scope::Client => return Probes::default(),
            Scope::Model => {
                if seat.gates.model.failed(policy, now.mono) {
                    tracing::warn!(model = %self.bucket_model(), cause = outcome.cause.as_str(), "the model's breaker opens");
                }
                return Probes::MODEL;
            }
            Scope::Egress => {
                self.blame_egress(outcome, now);
                return Probes::EGRESS;
            }
            Scope::Key => (Subject::Key(key.clone()), Probes::KEY),
            Scope::KeyModel => {
                (Subject::KeyModel(key.clone(), self.bucket_model().clone()), Probes::KEY_MODEL)
            }
            Scope::Bucket => (Subject::Bucket(project.clone(), self.bucket_model().clone()), Probes::BUCKET),
            Scope::Project | Scope::BillingAccount => (Subject::Project(project.clone()), Probes::PROJECT),
        };
        // Something answered: model and way out are there, whatever they think of the key.
        self.answered(now.mono);
        if outcome.cause == Cause::BareRateLimit {
            self.blame_egress(outcome, now);
        }
        // The coordinator knows how often it has struck, and prolongs this.
        if let Some(window) = block::window(outcome, 0, &self.live.blocks, now.utc, draw) {
            let until = now.mono_at(window.until);
            let probe = window.probe_after.map(|span| now.mono.plus(span));
            self.pool.close(&subject, Blocked { cause: outcome.cause, until, probe, decided: false });
        }
        if outcome.cause.is_terminal() {
            tracing::warn!(key = %key, %project, cause = outcome.cause.as_str(), "out of rotation until a check succeeds");
        }
        concerned
    }

    /// The upstream was reached and the model spoke: what their breakers count starts anew.
    fn answered(&self, now: Mono) {
        let gates = &self.seat().gates;
        let policy = &self.live.breaker;
        let model = gates.model.succeeded(policy, now);
        if model {
            tracing::info!(model = %self.bucket_model(), "the model's breaker closes");
        }
        if model | gates.egress.succeeded(policy, now) {
            self.pool.generation.fetch_add(1, AcqRel);
        }
    }

    /// Connect errors count one by one; refusals that a single project may also deserve count once several
    /// projects get them together.
    fn blame_egress(&self, outcome: &Outcome, now: Now) {
        let (egress, _) = &self.live.egresses[self.key().egress as usize];
        let state = self.egress();
        if matches!(outcome.cause, Cause::Connect | Cause::Reset | Cause::Timeout) {
            if state.breaker.failed(&self.live.breaker, now.mono) {
                tracing::warn!(%egress, cause = outcome.cause.as_str(), "the way out fails: its breaker opens");
            }
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
            tracing::warn!(%egress, cause = outcome.cause.as_str(), "several projects are refused together: the way out rests");
            state.breaker.trip(&self.live.breaker, now.mono.plus(2 * self.live.breaker.recovery));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ttfb_ms) = self.begun {
            let tally = &self.lane.tallies[self.seat];
            tally.answers.fetch_add(1, Relaxed);
            tally.ttfb_ms.fetch_add(u64::from(ttfb_ms), Relaxed);
        }
        if self.probes.any() {
            self.seat().return_probes(self.probes, clock::mono());
            self.pool.generation.fetch_add(1, AcqRel);
        }
    }
}
