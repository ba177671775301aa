//! What people are told when something is wrong, once for a whole deployment.
//!
//! [`seen`] turns what the leader observes into readings of rules, one for each thing that a rule watches. [`Alerts`]
//! is the machine: an instance of a rule is pending for as long as the rule asks, then fires, and is resolved when the
//! rule has been clear for long enough. What a receiver does not know yet is put together in one message per rule
//! ([`pipeline`]), which stays in the outbox until it is delivered or given up ([`delivery`]). Silences, quiet hours and stronger alerts keep
//! messages back ([`mute`]).
//!
//! A receiver is told of what fires when its message is made. What has begun and ended before that is only in the
//! history. It is told of an end only if it was told of the beginning, and of everything at least once: a message that
//! another leader finds undelivered is sent again, under the same id.
//!
//! All of it is stored with the leader's commits. Times are the calendar's, which outlives a leader.

pub mod delivery;
mod instance;
pub mod mute;
pub mod pipeline;
mod rule;
pub mod seen;
mod stored;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Utc;
use delivery::{GivenUp, Receiver};
pub use instance::{Instance, Phase, Reading};
use mute::{QuietHours, Silence};
use pipeline::{Group, Queued};
pub use rule::{Rule, Severity, Timing};
use stored::Place;

/// The most instances that are kept. What goes wrong beyond that is not told one by one, only counted.
pub const MAX_INSTANCES: usize = 10_000;
/// The most alerts that the history keeps; beyond it the oldest go.
pub const MAX_HISTORY: usize = 1_000;
/// The most silences.
pub const MAX_SILENCES: usize = 100;

/// What the operator chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How long the first news of a group wait for more.
    pub group_wait: Duration,
    /// How long after a message the next one of the same group comes at the earliest.
    pub group_interval: Duration,
    /// After this, what still fires is told again.
    pub repeat_interval: Duration,
    /// When only critical alerts are told.
    pub quiet_hours: Option<QuietHours>,
    /// How long each rule waits, and how bad it is.
    pub timings: BTreeMap<Rule, Timing>,
    /// Who is told.
    pub receivers: Vec<Recipient>,
}

/// Who is told, and of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// A name that no other has.
    pub name: String,
    /// How bad it has to be; empty: whatever it is.
    pub severities: Vec<Severity>,
    /// Of which rules; empty: of all.
    pub rules: Vec<Rule>,
    /// Also of an end.
    pub send_resolved: bool,
    /// Also in quiet hours.
    pub ignore_quiet_hours: bool,
    /// It forgets what is not repeated, and passes on only what is new to it: it is told again after this.
    pub refresh: Option<Duration>,
}

impl Recipient {
    /// One that is told everything, except in quiet hours.
    pub fn named(name: impl Into<String>) -> Self {
        let (severities, rules) = (Vec::new(), Vec::new());
        Self {
            name: name.into(),
            severities,
            rules,
            send_resolved: true,
            ignore_quiet_hours: false,
            refresh: None,
        }
    }

    fn repeats_after(&self, policy: &Policy) -> Duration {
        self.refresh.map_or(policy.repeat_interval, |refresh| refresh.min(policy.repeat_interval))
    }

    /// Whether it is told of a rule at all.
    pub fn wants(&self, rule: Rule, severity: Severity) -> bool {
        (self.severities.is_empty() || self.severities.contains(&severity))
            && (self.rules.is_empty() || self.rules.contains(&rule))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            group_wait: Duration::from_secs(30),
            group_interval: Duration::from_mins(5),
            repeat_interval: Duration::from_hours(4),
            quiet_hours: None,
            timings: BTreeMap::new(),
            receivers: Vec::new(),
        }
    }
}

impl Policy {
    /// How a rule is handled.
    pub fn timing(&self, rule: Rule) -> Timing {
        self.timings.get(&rule).copied().unwrap_or_else(|| rule.timing())
    }
}

/// An alert that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its rule.
    pub rule: Rule,
    /// What it was about.
    pub labels: Labels,
    /// What was wrong.
    pub summary: String,
    /// When it fired.
    pub started: Utc,
    /// When it was resolved.
    pub ended: Utc,
}

/// What tells the instances of one rule apart.
pub type Labels = BTreeMap<String, String>;

/// The machine.
#[derive(Debug, Default)]
pub struct Alerts {
    instances: BTreeMap<String, Instance>,
    groups: BTreeMap<(Rule, String), Group>,
    outbox: BTreeMap<u64, Queued>,
    silences: BTreeMap<u64, Silence>,
    history: VecDeque<(u64, Past)>,
    given_up: VecDeque<(u64, GivenUp)>,
    receivers: BTreeMap<String, Receiver>,
    /// The epoch of the last leader that gave up the lead because its process was to end.
    handed_over: Option<u64>,
    /// The last number that was given to a message, a silence or an entry of the history.
    number: u64,
    /// How much is wrong now that there is no room for.
    overflow: u64,
    touched: BTreeSet<Place>,
}

impl Alerts {
    /// Takes in what rules read now, and puts together what receivers have to know. Rules of which nothing is `known`
    /// now leave their instances as they are. Returns the receivers of the messages that are given up now.
    pub fn tick(
        &mut self,
        readings: Vec<Reading>,
        known: impl Fn(Rule) -> bool,
        policy: &Policy,
        now: Utc,
    ) -> Vec<String> {
        self.read(readings, known, policy, now);
        self.end_silences(now);
        let given_up = self.give_up_the_old(now);
        self.spread(policy, now);
        self.forget_the_told();
        given_up
    }

    /// The instances of rules that are pending, fire, or are resolved while somebody still has to hear of that.
    pub fn instances(&self) -> impl Iterator<Item = (&String, &Instance)> {
        self.instances.iter()
    }

    /// What was wrong and is over, the latest last.
    pub fn history(&self) -> impl Iterator<Item = &Past> {
        self.history.iter().map(|(_, past)| past)
    }

    /// Takes out of the history what there is, for another machine to [`Self::remember`].
    pub fn hand_on(&mut self) -> impl Iterator<Item = Past> {
        let history = std::mem::take(&mut self.history);
        self.touched.extend(history.iter().map(|(number, _)| Place::Past(*number)));
        history.into_iter().map(|(_, past)| past)
    }

    /// The leader of this epoch gives up the lead because its process is to end.
    pub fn hand_over(&mut self, epoch: u64) {
        self.handed_over = Some(epoch);
        self.touched.insert(Place::HandedOver);
    }

    /// Whether the leader of this epoch did: it is no news that another one leads.
    pub fn was_handed_over(&self, epoch: u64) -> bool {
        self.handed_over == Some(epoch)
    }

    /// How much is wrong now that there is no room for.
    pub fn overflow(&self) -> u64 {
        self.overflow
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.touched.insert(Place::Number);
        self.number
    }
}

/// A name of few letters for a text, the same in every release (64-bit FNV-1a).
fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // No text holds this byte, so that it keeps the parts apart.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests;
