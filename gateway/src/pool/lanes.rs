//! Lanes are made when a model is first asked for. Names come from clients, so their number is bounded, and those
//! that no upstream has answered for make room first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::id::Model;
use keyfleet_core::message::Subject;
use keyfleet_core::quota::rules::covers;
use keyfleet_core::select::{FULL_SHARE, Gates, Lane, Seat, name_hash};
use keyfleet_core::time::Mono;

use super::Pool;
use crate::live::{Lanes, LastRefusal, Live, LiveKey, ModelLane, Tally, Times};

/// The most models that have a lane at one time.
const MAX_LANES: usize = 256;

impl Pool {
    /// The lane of a model.
    pub(super) fn lane(&self, live: &Live, model: &Model, now: Mono) -> Arc<ModelLane> {
        if let Some(lane) = live.lanes.load().get(model) {
            lane.used.store(now.as_ms(), Relaxed);
            return lane.clone();
        }
        let lane = Arc::new(self.build(live, model, now));
        let mut removed = None;
        live.lanes.rcu(|lanes| {
            let mut lanes = Lanes::clone(lanes);
            removed = if lanes.len() >= MAX_LANES { make_room(&mut lanes) } else { None };
            lanes.entry(model.clone()).or_insert_with(|| lane.clone());
            lanes
        });
        if let Some(removed) = removed {
            removed.retired.store(true, SeqCst);
            self.gather_lane(live, &removed);
        }
        self.forget_unused_gates();
        live.lanes.load().get(model).cloned().unwrap_or_else(|| {
            lane.retired.store(true, SeqCst);
            lane
        })
    }

    fn build(&self, live: &Live, model: &Model, now: Mono) -> ModelLane {
        let (name, quota) = model.as_str().rsplit_once('#').unwrap_or((model.as_str(), ""));
        let name = Model::new(name);
        let upstream: Vec<_> = (0..live.groups.len())
            .map(|group| match (live.upstream_model(group, &name), quota) {
                (upstream, "") => upstream,
                (upstream, quota) => Model::new(format!("{upstream}#{quota}")),
            })
            .collect();
        let mut priorities: Vec<u32> = live.config.groups.iter().map(|group| group.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let tiers =
            priorities.into_iter().map(|priority| self.tier(live, &name, &upstream, priority)).collect();
        let lane = Lane::new(tiers, fastrand::u64(..));
        self.close_known(live, &lane, &upstream);
        let policy = live.quota_policy();
        let purses = lane.seats().iter().map(|seat| {
            let key = &live.keys[seat.key as usize];
            let project = &live.projects[key.project as usize];
            self.quota.purses(project, &upstream[key.group as usize], &policy)
        });
        let purses = purses.collect();
        let tallies = lane.seats().iter().map(|_| Tally::default()).collect();
        let egresses = live.egresses.iter().map(|(egress, _)| self.egress(egress)).collect();
        ModelLane {
            lane,
            upstream,
            egresses,
            purses,
            tallies,
            times: live.groups.iter().map(|_| Times::default()).collect(),
            served: AtomicBool::new(false),
            used: AtomicU64::new(now.as_ms()),
            retired: AtomicBool::new(false),
            refused: LastRefusal::default(),
        }
    }

    /// The seats of all groups of one priority. A group's weight is shared among its keys by theirs.
    fn tier(&self, live: &Live, name: &Model, upstream: &[Model], priority: u32) -> Vec<Seat> {
        let mut shares: Vec<(usize, f64)> = Vec::new();
        for (number, group) in live.config.groups.iter().enumerate() {
            if group.priority != priority || !serves(&group.models, name) {
                continue;
            }
            let of_group = |key: &&LiveKey| key.group as usize == number;
            let sum: f64 = live.keys.iter().filter(of_group).map(|key| f64::from(key.weight)).sum();
            for (index, key) in live.keys.iter().enumerate().filter(|(_, key)| of_group(key)) {
                shares.push((index, f64::from(group.weight) * f64::from(key.weight) / sum));
            }
        }
        let heaviest = shares.iter().map(|(_, share)| *share).fold(0.0, f64::max);
        let mut breakers: HashMap<u32, Arc<Breaker>> = HashMap::new();
        let seats = shares.into_iter().filter(|(_, share)| *share > 0.0);
        seats
            .map(|(index, share)| {
                let key = &live.keys[index];
                let group = key.group as usize;
                let model = breakers
                    .entry(key.group)
                    .or_insert_with(|| self.breaker(&live.groups[group].host, &upstream[group]));
                self.seat(live, index, share / heaviest, &upstream[group], model.clone())
            })
            .collect()
    }

    fn seat(&self, live: &Live, index: usize, share: f64, model: &Model, breaker: Arc<Breaker>) -> Seat {
        let key = &live.keys[index];
        let project = &live.projects[key.project as usize];
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share is between 0 and 1"
        )]
        let share = (share * f64::from(FULL_SHARE)).round() as u32;
        Seat {
            key: u32::try_from(index).unwrap_or(u32::MAX),
            project: key.project,
            home: name_hash(project.as_str()),
            share: share.clamp(1, FULL_SHARE),
            dial: self.dial(&key.id),
            gates: Gates {
                key: self.gate(&Subject::Key(key.id.clone())),
                key_model: Gate::default(),
                bucket: self.gate(&Subject::Bucket(project.clone(), model.clone())),
                project: self.gate(&Subject::Project(project.clone())),
                model: breaker,
                egress: self.egress(&live.egresses[key.egress as usize].0).breaker.clone(),
                spent: self.spent(project),
            },
        }
    }

    /// What has no gate of its own is closed by what is known.
    fn close_known(&self, live: &Live, lane: &Lane, upstream: &[Model]) {
        for (subject, blocked) in &*self.blocks.lock() {
            let Subject::KeyModel(id, model) = subject else { continue };
            let concerned = |seat: &&Seat| {
                let key = &live.keys[seat.key as usize];
                key.id == *id && upstream[key.group as usize] == *model
            };
            lane.seats()
                .iter()
                .filter(concerned)
                .for_each(|seat| seat.gates.key_model.close(blocked.until, blocked.probe));
        }
    }

    /// Drops the gates that neither a lane nor a block needs.
    fn forget_unused_gates(&self) {
        let blocks = self.blocks.lock();
        self.gates.lock().retain(|subject, gate| Arc::strong_count(gate) > 1 || blocks.contains_key(subject));
        drop(blocks);
        self.quota.forget_unused();
        self.models.lock().retain(|_, breaker| Arc::strong_count(breaker) > 1);
    }
}

fn make_room(lanes: &mut Lanes) -> Option<Arc<ModelLane>> {
    let first = lanes.iter().min_by_key(|(_, lane)| (lane.served.load(Relaxed), lane.used.load(Relaxed)));
    let first = first.map(|(model, _)| model.clone())?;
    lanes.remove(&first)
}

/// True if a group's patterns cover a model; a request without a model is everybody's.
fn serves(patterns: &[String], model: &Model) -> bool {
    model.as_str().is_empty() || covers(patterns, model)
}
