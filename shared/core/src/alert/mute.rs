//! What keeps a message back: a stronger alert that explains it, a silence, the night.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::pipeline::is_quiet;
use super::stored::Place;
use super::{Alerts, Instance, Labels, MAX_SILENCES, Policy, Rule, Severity};
use crate::time::Utc;

/// Alerts that say nothing new while another fires or is about to, and the labels in which both have to agree.
const EXPLAINED: [(Rule, Rule, &[&str]); 8] = [
    (Rule::PoolExhausted, Rule::PoolLow, &["model"]),
    (Rule::PoolExhausted, Rule::ErrorRate, &["model"]),
    (Rule::PoolExhausted, Rule::UnhealthyKeys, &[]),
    (Rule::PoolExhausted, Rule::KeyDisabled, &[]),
    (Rule::BreakerOpen, Rule::ErrorRate, &["model"]),
    (Rule::BusUnreachable, Rule::ReplicaLost, &[]),
    (Rule::BusUnreachable, Rule::LeaderChanged, &[]),
    (Rule::StoreSuspect, Rule::LeaderChanged, &[]),
];

/// The longest text of a silence.
const MAX_TEXT: usize = 500;
/// The most conditions of a silence.
const MAX_MATCHERS: usize = 10;
/// The longest silence.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Alerts that nobody is told of for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// What these labels have to be; `rule` and `severity` count as labels.
    pub matchers: Labels,
    /// Who wants it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// Until when.
    pub until: Utc,
}

/// A part of every day in which only critical alerts are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuietHours {
    /// Its beginning, in minutes after midnight.
    pub from: u16,
    /// Its end. If it is not later than the beginning, it is on the next day.
    pub to: u16,
    /// Where the clock hangs.
    pub zone: TimeZone,
}

impl QuietHours {
    /// Between two minutes of the day, in a zone by its name; `None`: there is no such zone.
    pub fn in_zone(from: u16, to: u16, zone: &str) -> Option<Self> {
        TimeZone::get(zone).ok().map(|zone| Self { from, to, zone })
    }

    /// Whether it is quiet now.
    pub fn holds(&self, now: Utc) -> bool {
        let Ok(at) = Timestamp::from_millisecond(now.as_ms()) else { return false };
        let at = at.to_zoned(self.zone.clone());
        let minute = u16::try_from(i32::from(at.hour()) * 60 + i32::from(at.minute())).unwrap_or_default();
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl Silence {
    fn covers(&self, instance: &Instance, severity: Severity) -> bool {
        self.matchers.iter().all(|(name, value)| match name.as_str() {
            "rule" => instance.rule.as_str() == value,
            "severity" => severity.as_str() == value,
            name => instance.labels.get(name) == Some(value),
        })
    }

    fn mistake(&self, now: Utc) -> Option<String> {
        let texts = self.matchers.iter().flat_map(|(name, value)| [name, value]);
        let is_long = |text: &String| text.len() > MAX_TEXT;
        if self.matchers.is_empty() {
            Some("a silence needs a condition, such as rule=pool_low".to_owned())
        } else if self.matchers.len() > MAX_MATCHERS {
            Some(format!("a silence has {MAX_MATCHERS} conditions at most"))
        } else if texts.chain([&self.author, &self.reason]).any(is_long) {
            Some(format!("a text of a silence has {MAX_TEXT} bytes at most"))
        } else if self.until <= now || self.until.since(now) > LONGEST {
            Some("a silence ends within a year".to_owned())
        } else {
            self.misses()
        }
    }

    /// Why no alert can ever be covered.
    fn misses(&self) -> Option<String> {
        let rule = self.matchers.get("rule");
        let rules: Vec<_> =
            Rule::ALL.into_iter().filter(|known| rule.is_none_or(|rule| known.as_str() == rule)).collect();
        if rules.is_empty() {
            let known = Rule::ALL.map(Rule::as_str).join(", ");
            return Some(format!("there is no such rule; there are {known}"));
        }
        let severities = Severity::ALL.map(Severity::as_str);
        if self.matchers.get("severity").is_some_and(|severity| !severities.contains(&severity.as_str())) {
            return Some(format!("there is no such severity; there are {}", severities.join(", ")));
        }
        let of_rules: BTreeSet<_> = rules.iter().flat_map(|rule| rule.labels()).copied().collect();
        let known: Vec<_> = ["rule", "severity"].into_iter().chain(of_rules).collect();
        let stranger = self.matchers.keys().find(|name| !known.contains(&name.as_str()))?;
        let whose = rule.map_or("an alert", |rule| rule.as_str());
        Some(format!("{whose} has no label {stranger}; there are {}", known.join(", ")))
    }
}

impl Alerts {
    /// The silences that hold, by number.
    pub fn silences(&self) -> impl Iterator<Item = (u64, &Silence)> {
        self.silences.iter().map(|(number, silence)| (*number, silence))
    }

    /// Keeps a silence; its number, or why it cannot be.
    pub fn silence(&mut self, silence: Silence, now: Utc) -> Result<u64, String> {
        if let Some(mistake) = silence.mistake(now) {
            return Err(mistake);
        }
        self.end_silences(now);
        if self.silences.len() >= MAX_SILENCES {
            return Err(format!("there are {MAX_SILENCES} silences already: end one first"));
        }
        let number = self.next_number();
        self.silences.insert(number, silence);
        self.touched.insert(Place::Silence(number));
        Ok(number)
    }

    /// Holds back what another machine does by these silences of it, and nothing else.
    pub fn silence_as(&mut self, other: &BTreeMap<u64, Silence>) {
        let gone = self.silences.keys().filter(|number| !other.contains_key(number));
        self.touched.extend(gone.chain(other.keys()).map(|number| Place::Silence(*number)));
        self.silences.clone_from(other);
    }

    /// Ends a silence; false if there is none of that number.
    pub fn end_silence(&mut self, number: u64) -> bool {
        let was_there = self.silences.remove(&number).is_some();
        if was_there {
            self.touched.insert(Place::Silence(number));
        }
        was_there
    }

    pub(super) fn end_silences(&mut self, now: Utc) {
        let over = self.silences.extract_if(.., |_, silence| silence.until <= now);
        self.touched.extend(over.map(|(number, _)| Place::Silence(number)));
    }

    /// What fires, or is about to, and explains others: whoever is told of the others first is told twice of one thing.
    pub fn strong(&self) -> Vec<&Instance> {
        let explains = |instance: &&Instance| {
            (instance.fires() || instance.pends())
                && EXPLAINED.iter().any(|(strong, ..)| *strong == instance.rule)
        };
        self.instances.values().filter(explains).collect()
    }

    /// Why nobody is told of an instance now, but those who are told at any time, if that is so; `strong` is what
    /// [`Self::strong`] gave.
    pub fn muted(
        &self,
        instance: &Instance,
        strong: &[&Instance],
        policy: &Policy,
        now: Utc,
    ) -> Option<&'static str> {
        let quiet = is_quiet(instance.rule, policy, now).then_some("quiet_hours");
        self.hushed(instance, strong, policy, now).or(quiet)
    }

    /// Why nobody at all is told of it.
    pub(super) fn hushed(
        &self,
        instance: &Instance,
        strong: &[&Instance],
        policy: &Policy,
        now: Utc,
    ) -> Option<&'static str> {
        let severity = policy.timing(instance.rule).severity;
        let explained = strong.iter().any(|strong| {
            let pairs = EXPLAINED.iter().filter(|(by, of, _)| (*by, *of) == (strong.rule, instance.rule));
            pairs.into_iter().any(|(.., same)| {
                same.iter().all(|label| strong.labels.get(*label) == instance.labels.get(*label))
            })
        });
        if self.silences.values().any(|silence| silence.until > now && silence.covers(instance, severity)) {
            Some("silenced")
        } else if explained {
            Some("inhibited")
        } else {
            None
        }
    }
}
