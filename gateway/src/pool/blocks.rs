//! What keeps traffic away from keys, projects and models: the coordinator's decisions, what other replicas have found,
//! and what this one finds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Release};
use std::time::Duration;

use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::id::{Host, Model, ProjectId};
use keyfleet_core::message::{Change, Hint, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::time::{Mono, Now};

use super::{Blocked, Pool};
use crate::live::LiveKey;

impl Pool {
    /// Takes a decision of the coordinator over.
    pub(crate) fn decide(&self, change: &Change, now: Now) {
        match change {
            Change::Blocked { subject, cause, ttl_ms, probe_ms } => {
                let at = |ms: u64| now.mono.plus(Duration::from_millis(ms));
                let until = ttl_ms.map_or(Mono::FOREVER, at);
                let probe = probe_ms.map(at);
                self.close(subject, Blocked { cause: *cause, until, probe, decided: true }, None, now.mono);
                if let Some(at) = probe {
                    self.on_gates(subject, |gate| gate.schedule_probe(at));
                    self.generation.fetch_add(1, AcqRel);
                }
            }
            Change::Cleared { subject, slow_start } => self.open(subject, *slow_start, now.mono),
            Change::Scored { key, score } => self.dial(key).set_score(*score),
            Change::Owned(owned) => self.owners.insert(owned, now.mono),
            Change::Limited { bucket, limit } => {
                self.quota.learn(bucket, *limit, &self.live().quota_policy());
            }
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

    /// Closes a subject that another replica has found closed, for as long as the leader cannot have spoken.
    pub(crate) fn heed(&self, hint: &Hint, now: Now, led: bool) {
        let Some(ttl) = self.herald.believe(hint, led) else { return };
        let known =
            self.blocks.lock().get(&hint.subject).is_some_and(|known| known.until > now.mono.plus(ttl));
        if !known {
            let until = now.mono.plus(ttl);
            let blocked = Blocked { cause: hint.cause, until, probe: None, decided: false };
            self.close(&hint.subject, blocked, None, now.mono);
            let trace_id = hint.trace.map(|trace| tracing::field::display(trace.trace_id()));
            tracing::debug!(cause = hint.cause.as_str(), trace_id, "another replica's hint is heeded");
        }
    }

    /// Closes the gate of a subject, here and now; `bytes` is the size of the body that was refused, if it is known.
    pub(super) fn close(&self, subject: &Subject, blocked: Blocked, bytes: Option<u64>, now: Mono) {
        match (subject, blocked.cause) {
            (Subject::Model(host, model), _) => {
                let probe = blocked.probe.unwrap_or(Mono::FOREVER);
                self.breaker(host, model).trip(&self.live().breaker, probe);
            }
            (_, Cause::InputTokensPerMinute) => {
                self.on_gates(subject, |gate| gate.close_to_large(bytes, blocked.until, now));
            }
            _ => self.on_gates(subject, |gate| gate.close(blocked.until, blocked.probe)),
        }
        if let (Subject::Bucket(project, _), Cause::PerDay) = (subject, blocked.cause) {
            self.spent(project).close(blocked.until, None);
        }
        let mut blocks = self.blocks.lock();
        let known = blocks.entry(subject.clone()).or_insert(blocked);
        if blocked.until >= known.until {
            // The coordinator does not say again what holds already.
            let decided = blocked.decided || (known.decided && known.until == blocked.until);
            *known = Blocked { decided, ..blocked };
        }
    }

    pub(super) fn open(&self, subject: &Subject, slow_start: bool, now: Mono) {
        match subject {
            Subject::Model(host, model) => self.breaker(host, model).open(),
            _ => self.on_gates(subject, Gate::open),
        }
        self.blocks.lock().remove(subject);
        if let Subject::Bucket(project, model) = subject {
            self.look_again_whether_spent(project);
            self.quota.try_again(project, model);
        }
        if slow_start {
            let live = self.live();
            let concerned = |key: &&LiveKey| match subject {
                Subject::Key(id) | Subject::KeyModel(id, _) => key.id == *id,
                Subject::Project(project) | Subject::Bucket(project, _) => {
                    live.projects[key.project as usize] == *project
                }
                Subject::Model(..) => false,
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

    /// A subject's gate, or its gates: a key has one per model that it serves.
    fn on_gates(&self, subject: &Subject, act: impl Fn(&Gate)) {
        match subject {
            Subject::KeyModel(key, model) => self.seats_of(key, model, |seat| act(&seat.gates.key_model)),
            Subject::Model(host, model) => act(&self.breaker(host, model).gate),
            _ => act(&self.gate(subject)),
        }
    }

    /// The breaker of a model, closed to traffic if a block is known.
    pub(super) fn breaker(&self, host: &Host, model: &Model) -> Arc<Breaker> {
        let mut models = self.models.lock();
        let known = models.entry((host.clone(), model.clone()));
        let breaker = known.or_insert_with(|| {
            let breaker = Arc::<Breaker>::default();
            if let Some(blocked) = self.blocks.lock().get(&Subject::Model(host.clone(), model.clone())) {
                breaker.trip(&self.live().breaker, blocked.probe.unwrap_or(Mono::FOREVER));
            }
            breaker
        });
        breaker.clone()
    }

    /// The coordinator was heard.
    pub(crate) fn heard(&self, now: Mono) {
        self.heard_at.store(now.as_ms(), Release);
    }

    pub(super) fn spent(&self, project: &ProjectId) -> Arc<Gate> {
        self.spent.lock().entry(project.clone()).or_default().clone()
    }

    /// One of the project's quotas is back; others may still be used up.
    fn look_again_whether_spent(&self, project: &ProjectId) {
        let spent = self.spent(project);
        let blocks = self.blocks.lock();
        let of_day = blocks.iter().filter(|(subject, blocked)| {
            blocked.cause == Cause::PerDay && matches!(subject, Subject::Bucket(owner, _) if owner == project)
        });
        let until = of_day.map(|(_, blocked)| blocked.until).max();
        spent.open();
        if let Some(until) = until {
            spent.close(until, None);
        }
    }
}
