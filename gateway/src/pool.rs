//! The hot-path view of the keys: which may be used now, and what became of those that were.
//!
//! [`Pool::acquire`] chooses by `keyfleet_core::select` without a lock. [`Permit::succeeded`] and
//! [`Permit::failed`] act on a finding at once (the next request of this replica knows it) and report it to the
//! coordinator, whose decisions come back through [`Pool::decide`].

mod blocks;
mod herald;
mod lanes;
mod owners;
mod permit;
pub(crate) mod quota;
mod reports;
mod trial;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::SeqCst};

use arc_swap::ArcSwap;
use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::id::{Egress, Host, KeyId, Model, ProjectId, ReplicaId};
use keyfleet_core::message::{Record, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::select::{Blame, Dial, NoKey, Probes, Seat, Want};
use keyfleet_core::time::{Mono, Now};
use keyfleet_fabric::bus::GatewayBus;
use keyfleet_service::clock;
use parking_lot::Mutex;

use crate::live::{Live, ModelLane};
use herald::Herald;
pub(crate) use owners::{Owners, is_combined, named, operation};
pub(crate) use permit::Permit;
use quota::Spend;
pub(crate) use quota::{Dry, LEASE_RETRY, Quota};
pub(crate) use reports::{Reports, Taken};
use trial::{Lack, Trial};

/// How many failed attempts are kept for people to look at.
const LAST_FAILURES: usize = 20;

/// How many keys without a lease are passed over for one attempt by a request that may wait for leases, and how many by
/// one that has done so.
const MOST_COLD: [usize; 2] = [4, 64];

/// Why there is no permit.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// No key can be used.
    NoKey(NoKey),
    /// Keys could be used whose lease on quota is not there yet.
    Cold,
}

/// The keys and what is known of them.
pub(crate) struct Pool {
    live: ArcSwap<Live>,
    gates: Mutex<HashMap<Subject, Arc<Gate>>>,
    dials: Mutex<HashMap<KeyId, Arc<Dial>>>,
    models: Mutex<HashMap<(Host, Model), Arc<Breaker>>>,
    egresses: Mutex<HashMap<Egress, Arc<EgressState>>>,
    /// Closed while a day quota of the project is used up; see `Gates::spent`.
    spent: Mutex<HashMap<ProjectId, Arc<Gate>>>,
    /// The blocks that hold, for lanes that are built later and for people.
    blocks: Mutex<HashMap<Subject, Blocked>>,
    last_validated: Mutex<Option<(KeyId, Mono)>>,
    last_failures: Mutex<VecDeque<LastFailure>>,
    /// Counts gates and probes that became free before their time.
    generation: AtomicU64,
    pub(crate) owners: Owners,
    pub(crate) reports: Reports,
    pub(crate) quota: Quota,
    herald: Herald,
    replica: ReplicaId,
    /// When the coordinator was last heard, on the process's clock in ms.
    heard_at: AtomicU64,
}

/// A seat that a request has used, and may use once more.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Again {
    /// It is to be the same, if it still can be.
    First(usize),
    /// It is to be another, but if there is none, the same is better than nothing.
    Last(usize),
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

/// A failed attempt, for people.
#[derive(Debug, Clone)]
pub(crate) struct LastFailure {
    pub(crate) at: Mono,
    pub(crate) key: KeyId,
    pub(crate) model: Model,
    pub(crate) cause: Cause,
}

/// A way out, and the projects that were refused on it lately.
#[derive(Default)]
pub(crate) struct EgressState {
    pub(crate) breaker: Arc<Breaker>,
    suspects: Mutex<Vec<(ProjectId, Mono)>>,
    suspected: AtomicBool,
}

/// The refusal of a request that is too large for every key, whenever it comes.
fn too_large(lane: &ModelLane, want: &Want<'_>) -> Option<NoKey> {
    let mut highest = None;
    let seats = lane.lane.seats().iter().zip(&lane.purses);
    for (_, purses) in seats.filter(|(seat, _)| want.project.is_none_or(|project| seat.project == project)) {
        highest = highest.max(Some(purses.exceeded_by(want.bytes)?));
    }
    highest.map(|limit| NoKey { blame: Blame::Large(limit), retry_at: Mono::FOREVER })
}

impl Refusal {
    /// The refusal in the words of the selection. A lease that does not come within a moment may come within seconds.
    pub(crate) fn no_key(&self, now: Mono) -> NoKey {
        match self {
            Self::NoKey(refusal) => *refusal,
            Self::Cold => NoKey { blame: Blame::Quota, retry_at: now.plus(LEASE_RETRY) },
        }
    }
}

impl Pool {
    pub(crate) fn new(mut live: Live, bus: Arc<dyn GatewayBus>, replica: &ReplicaId) -> Arc<Self> {
        let quota = Quota::new(replica);
        live.allowances = quota.allowances(&live.config.server.clients, &live.quota_policy());
        Arc::new(Self {
            live: ArcSwap::from_pointee(live),
            gates: Mutex::default(),
            dials: Mutex::default(),
            models: Mutex::default(),
            egresses: Mutex::default(),
            spent: Mutex::default(),
            blocks: Mutex::default(),
            last_validated: Mutex::default(),
            last_failures: Mutex::default(),
            generation: AtomicU64::new(1),
            owners: Owners::default(),
            reports: Reports::default(),
            quota,
            herald: Herald::new(bus, replica.clone()),
            replica: replica.clone(),
            heard_at: AtomicU64::new(clock::mono().as_ms()),
        })
    }

    /// The configuration in force.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another configuration in force. Requests under way keep theirs.
    pub(crate) fn replace(&self, mut live: Live) {
        live.keep_counts_of(&self.live());
        live.allowances = self.quota.allowances(&live.config.server.clients, &live.quota_policy());
        let old = self.live.swap(Arc::new(live));
        self.quota.follow(&self.live().quota_policy());
        old.retired.store(true, SeqCst);
        self.gather(&old);
    }

    /// Lets go of quota that nobody draws from.
    pub(crate) fn forget_idle_quota(&self) {
        self.quota.forget_idle(&self.live().quota_policy());
    }

    /// Turns the answers since the last time into records.
    pub(crate) fn gather(&self, live: &Live) {
        live.lanes.load().values().for_each(|lane| self.gather_lane(live, lane));
    }

    fn gather_lane(&self, live: &Live, lane: &ModelLane) {
        (0..lane.tallies.len()).for_each(|seat| self.gather_seat(live, lane, seat));
        (0..lane.times.len()).for_each(|group| self.gather_times(lane, group));
    }

    fn gather_times(&self, lane: &ModelLane, group: usize) {
        self.reports.took(&lane.upstream[group], &lane.times[group].take());
    }

    fn gather_seat(&self, live: &Live, lane: &ModelLane, seat: usize) {
        let tally = &lane.tallies[seat];
        let n = tally.answers.swap(0, SeqCst);
        if n == 0 {
            return;
        }
        let sum = tally.ttfb_ms.swap(0, AcqRel);
        let key = &live.keys[lane.lane.seats()[seat].key as usize];
        self.reports.push(Record::Succeeded {
            key: key.id.clone(),
            model: lane.upstream[key.group as usize].clone(),
            n,
            ttfb_ms: u32::try_from(sum / u64::from(n)).unwrap_or(u32::MAX),
            probe: false,
        });
    }

    /// Chooses a key for `model`, which may be none, and draws the quota that the attempt needs. A request that
    /// `waits` may be told to wait for a lease.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        live: &Arc<Live>,
        model: &Model,
        want: &Want<'_>,
        again: Option<Again>,
        waits: bool,
        now: Now,
    ) -> Result<Permit, Refusal> {
        let lane = self.lane(live, model, now.mono);
        // Keys that have no quota for this request; no allocation until there is one.
        let mut passed_over = Vec::new();
        // Every seat may turn out to be closed once. One that is free again after that is passed over as well.
        let mut closed = 0;
        // Some of them may have it in a moment.
        let mut cold = false;
        let mut again = again;
        loop {
            let all;
            let tried = if passed_over.is_empty() {
                want.tried
            } else {
                all = [want.tried, &passed_over[..]].concat();
                &all[..]
            };
            let want = Want { tried, ..*want };
            let (seat, probes) = match self.choose(&lane, &want, again.take(), now) {
                Ok(chosen) => chosen,
                Err(refusal) => {
                    return Err(match too_large(&lane, &want) {
                        Some(refusal) => Refusal::NoKey(refusal),
                        None if cold => Refusal::Cold,
                        None => Refusal::NoKey(refusal),
                    });
                }
            };
            let most_cold = MOST_COLD[usize::from(!waits)];
            let patient = waits && passed_over.len() < most_cold;
            match self.equip(live, &lane, seat, probes, want.bytes, patient, now.mono) {
                Ok((trial, spend)) => {
                    let (pool, live, bytes) = (self.clone(), live.clone(), want.bytes);
                    let (begun, callers_end, trace) = (None, None, None);
                    return Ok(Permit {
                        pool,
                        live,
                        lane,
                        seat,
                        probes,
                        trial,
                        bytes,
                        begun,
                        spend,
                        callers_end,
                        trace,
                        cooldown: None,
                    });
                }
                Err(Lack::Later) if closed < lane.lane.seats().len() => closed += 1,
                Err(Lack::Cold) if passed_over.len() >= most_cold => return Err(Refusal::Cold),
                Err(lack) => {
                    cold |= !matches!(lack, Lack::Room);
                    passed_over.push(lane.lane.seats()[seat].key);
                }
            }
        }
    }

    /// Draws what an attempt at a seat needs, all or nothing: the right to try what is blocked, and quota.
    #[expect(clippy::too_many_arguments, reason = "an attempt has this many sides")]
    fn equip(
        &self,
        live: &Live,
        lane: &ModelLane,
        seat: usize,
        probes: Probes,
        bytes: Option<u64>,
        patient: bool,
        now: Mono,
    ) -> Result<(Trial, Spend), Lack> {
        let chosen = &lane.lane.seats()[seat];
        let trial = self.trial(live, lane, chosen, probes, patient, now)?;
        let dry = match self.quota.draw(&lane.purses[seat], bytes, patient, now) {
            Ok(spend) => return Ok((trial, spend)),
            Err(dry) => dry,
        };
        if probes.any() {
            chosen.return_probes(probes, now);
            // Where the gate stays closed for longer than that, nothing else keeps its probe from being due again at once.
            if let Dry::Until(until) | Dry::Large(until) = dry
                && probes.has(Probes::BUCKET)
            {
                chosen.put_probe_off(Probes::BUCKET, until);
            }
            self.generation.fetch_add(1, AcqRel);
        }
        match dry {
            Dry::Until(until) => chosen.gates.bucket.close(until, None),
            Dry::Large(until) => chosen.gates.bucket.close_to_large(bytes, until, now),
            Dry::Cold => return Err(Lack::Cold),
            Dry::TooLarge => return Err(Lack::Room),
        }
        Err(Lack::Later)
    }

    fn choose(
        &self,
        lane: &ModelLane,
        want: &Want<'_>,
        again: Option<Again>,
        now: Now,
    ) -> Result<(usize, Probes), NoKey> {
        let same = |seat: usize| Some((seat, lane.lane.seats().get(seat)?.admit(want.bytes, now.mono)?));
        let other = || {
            let generation = self.generation.load(Acquire);
            let would_take_any = want.tried.is_empty() && want.project.is_none();
            if would_take_any && let Some(refusal) = lane.refused.holds(want.bytes, generation, now.mono) {
                return Err(refusal);
            }
            let pick = lane.lane.select(want, generation, now.mono);
            pick.map(|pick| (pick.index, pick.probes)).inspect_err(|refusal| {
                if would_take_any {
                    lane.refused.keep(want.bytes, generation, *refusal, now.mono);
                }
            })
        };
        match again {
            None => other(),
            Some(Again::First(seat)) => same(seat).map_or_else(other, Ok),
            Some(Again::Last(seat)) => other().or_else(|refusal| same(seat).ok_or(refusal)),
        }
    }

    /// True if any key may ever serve this model.
    pub(crate) fn serves(&self, live: &Arc<Live>, model: &Model) -> bool {
        !self.lane(live, model, clock::mono()).lane.seats().is_empty()
    }

    /// The key that the prober last found valid, and when.
    pub(crate) fn last_validated(&self) -> Option<(KeyId, Mono)> {
        self.last_validated.lock().clone()
    }

    /// The last failed attempts, the latest first.
    pub(crate) fn last_failures(&self) -> Vec<LastFailure> {
        self.last_failures.lock().iter().cloned().collect()
    }

    fn remember(&self, failure: LastFailure) {
        let mut last = self.last_failures.lock();
        last.truncate(LAST_FAILURES - 1);
        last.push_front(failure);
    }

    /// The health of a key.
    pub(crate) fn dial(&self, key: &KeyId) -> Arc<Dial> {
        self.dials.lock().entry(key.clone()).or_default().clone()
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
