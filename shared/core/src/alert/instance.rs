//! One thing that a rule watches: not wrong, wrong for a while, firing, over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stored::Place;
use super::{Alerts, Labels, MAX_HISTORY, MAX_INSTANCES, Past, Policy, Rule, Timing, digest};
use crate::id::{Model, ReplicaId};
use crate::time::Utc;

/// What a rule reads of one thing that it watches. What is not read is clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The rule.
    pub rule: Rule,
    /// What it is about.
    pub labels: Labels,
    /// Whether it is beyond the point where the rule fires; else it is only not yet back where it is clear.
    pub fires: bool,
    /// What is wrong, in a sentence.
    pub summary: String,
    /// The figure, if there is one.
    pub value: Option<String>,
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is wrong, but not for long enough.
    Pending {
        /// Since when.
        since: Utc,
    },
    /// It has been wrong for long enough.
    Firing {
        /// It has been clear since then, if it is.
        clear: Option<Utc>,
    },
    /// It is over, and some receiver still has to be told so.
    Resolved {
        /// It is wrong again since then, if it is.
        again: Option<Utc>,
    },
}

/// One thing that a rule watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The rule.
    pub rule: Rule,
    /// What it is about.
    pub labels: Labels,
    /// What is wrong, in a sentence.
    pub summary: String,
    /// The figure, if there is one.
    pub value: Option<String>,
    /// Where it stands.
    pub phase: Phase,
    /// When it fired last; before it fires, when it began to be wrong.
    pub started: Utc,
    /// When it was resolved, if it is.
    pub ended: Option<Utc>,
}

impl Reading {
    /// What tells this instance from all others, in every release.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.rule, &self.labels)
    }
}

/// What tells an instance of a rule from all others, in every release.
fn fingerprint(rule: Rule, labels: &Labels) -> String {
    let labels = labels.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    digest([rule.as_str()].into_iter().chain(labels))
}

impl Instance {
    /// Whether it fires.
    pub fn fires(&self) -> bool {
        matches!(self.phase, Phase::Firing { .. })
    }

    /// Whether it is wrong, but not for long enough to fire.
    pub fn pends(&self) -> bool {
        matches!(self.phase, Phase::Pending { .. } | Phase::Resolved { again: Some(_) })
    }

    /// Takes in what its rule says; false if there is nothing left of it.
    fn step(&mut self, level: Level, timing: Timing, now: Utc) -> bool {
        let waits_from = |since: Option<Utc>| match level {
            Level::Wrong => since.or(Some(now)),
            Level::Unknown => since,
            Level::Between | Level::Clear => None,
        };
        match self.phase {
            Phase::Pending { since } => match waits_from(Some(since)) {
                None => return false,
                Some(since) if level == Level::Wrong && now.since(since) >= timing.wait => self.fire(now),
                Some(_) => {}
            },
            Phase::Resolved { again } => match waits_from(again) {
                Some(since) if level == Level::Wrong && now.since(since) >= timing.wait => self.fire(now),
                again => self.phase = Phase::Resolved { again },
            },
            Phase::Firing { clear } => {
                let clear = if level == Level::Clear { clear.or(Some(now)) } else { None };
                let over = clear.is_some_and(|since| now.since(since) >= timing.keep);
                if over {
                    self.ended = Some(now);
                    self.phase = Phase::Resolved { again: None };
                } else {
                    self.phase = Phase::Firing { clear };
                }
            }
        }
        true
    }

    fn fire(&mut self, now: Utc) {
        self.phase = Phase::Firing { clear: None };
        self.started = now;
        self.ended = None;
    }

    fn past(&self, ended: Utc) -> Past {
        Past {
            rule: self.rule,
            labels: self.labels.clone(),
            summary: self.summary.clone(),
            started: self.started,
            ended,
        }
    }
}

/// What a rule says of an instance now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Wrong,
    /// Not beyond where it fires any more, and not back where it is clear.
    Between,
    Clear,
    Unknown,
}

impl Alerts {
    pub(super) fn read(
        &mut self,
        readings: Vec<Reading>,
        known: impl Fn(Rule) -> bool,
        policy: &Policy,
        now: Utc,
    ) {
        let readings = readings.into_iter().filter(|reading| policy.timing(reading.rule).enabled);
        let readings: BTreeMap<_, _> = readings.map(|reading| (reading.fingerprint(), reading)).collect();
        self.overflow = 0;
        for (fingerprint, reading) in &readings {
            if reading.fires && !self.instances.contains_key(fingerprint) {
                self.begin(fingerprint, reading, now);
            }
        }
        let mut over = Vec::new();
        let touched = &mut self.touched;
        self.instances.retain(|fingerprint, instance| {
            let timing = policy.timing(instance.rule);
            let level = match readings.get(fingerprint) {
                Some(reading) => {
                    instance.summary.clone_from(&reading.summary);
                    instance.value.clone_from(&reading.value);
                    if reading.fires { Level::Wrong } else { Level::Between }
                }
                None if timing.enabled && !known(instance.rule) => Level::Unknown,
                None => Level::Clear,
            };
            let (phase, fired) = (instance.phase, instance.fires());
            let stays = instance.step(level, timing, now);
            if fired && !instance.fires() {
                over.push(instance.past(now));
            }
            if !stays || phase != instance.phase {
                touched.insert(Place::Instance(fingerprint.clone()));
            }
            stays
        });
        for past in over {
            self.remember(past);
        }
    }

    fn begin(&mut self, fingerprint: &str, reading: &Reading, now: Utc) {
        if self.instances.len() >= MAX_INSTANCES {
            self.overflow += 1;
            return;
        }
        let instance = Instance {
            rule: reading.rule,
            labels: reading.labels.clone(),
            summary: reading.summary.clone(),
            value: reading.value.clone(),
            phase: Phase::Pending { since: now },
            started: now,
            ended: None,
        };
        self.instances.insert(fingerprint.to_owned(), instance);
        self.touched.insert(Place::Instance(fingerprint.to_owned()));
    }

    /// The models whose pools are, or may soon be, said to be exhausted or low.
    pub fn pools(&self) -> Vec<Model> {
        let of_pools = self.instances.values().filter(|instance| {
            matches!(instance.rule, Rule::PoolExhausted | Rule::PoolLow)
                && (instance.fires() || instance.pends())
        });
        of_pools
            .filter_map(|instance| instance.labels.get("model"))
            .map(|name| Model::new(name.as_str()))
            .collect()
    }

    /// The gateways that are said to be lost.
    pub fn lost(&self) -> Vec<ReplicaId> {
        let lost = self.instances.values().filter(|one| one.rule == Rule::ReplicaLost && one.fires());
        lost.filter_map(|instance| instance.labels.get("replica"))
            .map(|name| ReplicaId::new(name.as_str()))
            .collect()
    }

    /// Adds to the history what is over. It may have been another machine's.
    pub fn remember(&mut self, past: Past) {
        let number = self.next_number();
        self.history.push_back((number, past));
        self.touched.insert(Place::Past(number));
        while self.history.len() > MAX_HISTORY {
            self.touched.extend(self.history.pop_front().map(|(number, _)| Place::Past(number)));
        }
    }
}
