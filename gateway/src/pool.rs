//! The hot-path view of the keys: which may be used now, and what became of those that were.
//!
//! [`Pool::acquire`] chooses by `keyfleet_core::select` without a lock. [`Permit::succeeded`] and
//! [`Permit::failed`] act on a finding at once (the next request of this replica knows it) and report it to the
//! coordinator, whose decisions come back through [`Pool::decide`].

mod lanes;
mod owners;
mod permit;
mod reports;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::id::{Egress, KeyId, Model, ProjectId};
use keyfleet_core::message::{Change, Record, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::select::{Dial, NoKey, Seat, Want};
use keyfleet_core::time::{Mono, Now};
use keyfleet_service::clock;
use parking_lot::Mutex;

use crate::live::{Live, LiveKey};
pub(crate) use owners::Owners;
pub(crate) use permit::Permit;
pub(crate) use reports::Reports;

/// How many failed attempts are kept for people to look at.
const LAST_FAILURES: usize = 20;

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
    last_failures: Mutex<VecDeque<LastFailure>>,
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
            last_failures: Mutex::default(),
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
                    self.generation.fetch_add(1, AcqRel);
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
