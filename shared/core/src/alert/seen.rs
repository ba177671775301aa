//! What rules read from what a leader observes.

use std::time::Duration;

use super::{Labels, Reading, Rule};
use crate::id::{Host, KeyId, Model, ProjectId, ReplicaId};

/// The share of a pool that can serve a model below which it is low, in hundredths; and from which on it is not.
const LOW: (usize, usize) = (20, 25);
/// A rate says nothing of fewer attempts.
const MIN_ATTEMPTS: u64 = 20;
/// Refusals that others caused, lately, that are no coincidence.
const MIN_REFUSALS: u64 = 3;
/// A message is tried so often in vain before that is worth another one.
pub(super) const MIN_FAILED: u32 = 3;
/// The most alerts that one observation can give per rule that names something.
const MOST: usize = 5_000;
/// The models that are named one by one; those that are asked for least are left out.
const MOST_MODELS: usize = 64;

/// Where rules fire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// More keys than this below a score of 0.5.
    pub unhealthy_keys: usize,
    /// A larger share of failed attempts than this.
    pub error_rate: f64,
    /// A longer time to the first byte than this, for one answer out of twenty.
    pub response_time: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { unhealthy_keys: 3, error_rate: 0.1, response_time: Duration::from_secs(5) }
    }
}

/// What a leader observes at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Seen {
    /// Models that are asked for.
    pub models: Vec<ModelSeen>,
    /// The attempts for all of them.
    pub overall: Traffic,
    /// Keys with a score below 0.5.
    pub unhealthy_keys: usize,
    /// All keys.
    pub keys: usize,
    /// Models that are left alone, and where.
    pub breakers: Vec<(Host, Model)>,
    /// Keys that are out until somebody acts, and why.
    pub disabled: Vec<(KeyId, &'static str)>,
    /// Gateways that were at work and are silent.
    pub lost: Vec<ReplicaId>,
    /// Another one led until a moment ago.
    pub leader_changed: bool,
    /// NATS is away.
    pub bus_down: bool,
    /// Quotas of a minute are held back, since the store may have lost writes.
    pub store_suspect: bool,
    /// Quotas that were refused lately though something was left of them, and how often.
    pub external: Vec<(ProjectId, Model, u64)>,
    /// What the disk holds as configuration has a mistake.
    pub config_rejected: bool,
    /// Receivers that do not take what they are sent, how often that was tried, and why.
    pub failing: Vec<(String, u32, String)>,
}

/// One model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSeen {
    /// Which.
    pub model: Model,
    /// Keys that can serve it today.
    pub usable: usize,
    /// Those of them that have quota left for this minute.
    pub ready: usize,
    /// Keys that may serve it at all.
    pub all: usize,
    /// The attempts for it.
    pub traffic: Traffic,
}

/// What became of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Attempts of the last minute.
    pub attempts: u64,
    /// Those of them that failed otherwise than by quota.
    pub failed: u64,
    /// The time to the first byte that 19 of 20 answers of the last minute kept to.
    pub p95: Option<Duration>,
}

impl Seen {
    /// What every rule reads of it.
    pub fn readings(&self, at: &Thresholds) -> Vec<Reading> {
        let mut models: Vec<_> = self.models.iter().collect();
        models.sort_by(|a, b| (b.traffic.attempts, &a.model).cmp(&(a.traffic.attempts, &b.model)));
        // Of one alone it would say the same twice.
        let several = models.iter().filter(|model| model.traffic.attempts > 0).count() > 1;
        models.truncate(MOST_MODELS);
        let mut readings: Vec<Reading> = models.into_iter().flat_map(|model| model.readings(at)).collect();
        readings.extend(several.then(|| self.overall.readings(None, at)).into_iter().flatten());
        readings.extend(self.of_the_pool(at));
        readings.extend(self.of_the_deployment());
        readings
    }

    fn of_the_pool(&self, at: &Thresholds) -> Vec<Reading> {
        let count = self.unhealthy_keys;
        let unhealthy = (count > 0 && count >= at.unhealthy_keys).then(|| {
            let summary = format!("{count} of {} keys have a score below 0.5", self.keys);
            reading(Rule::UnhealthyKeys, [], count > at.unhealthy_keys, summary, Some(count.to_string()))
        });
        let disabled = self.disabled.iter().take(MOST).map(|(key, reason)| {
            let labels = [("key", key.as_str()), ("reason", reason)];
            reading(Rule::KeyDisabled, labels, true, format!("key {key} is out: {reason}"), None)
        });
        let external = self.external.iter().filter(|(.., times)| *times >= MIN_REFUSALS).take(MOST);
        let external = external.map(|(project, model, times)| {
            let labels = [("project", project.as_str()), ("model", model.as_str())];
            let summary =
                format!("{project} was refused {model} {times} times though some of its quota was left");
            reading(Rule::ExternalUse, labels, true, summary, Some(times.to_string()))
        });
        unhealthy.into_iter().chain(disabled).chain(external).collect()
    }

    fn of_the_deployment(&self) -> Vec<Reading> {
        let breakers = self.breakers.iter().take(MOST_MODELS).map(|(host, model)| {
            let labels = [("model", model.as_str()), ("host", host.as_str())];
            reading(Rule::BreakerOpen, labels, true, format!("{model} fails for every key at {host}"), None)
        });
        let lost = self.lost.iter().take(MOST).map(|replica| {
            let summary = format!("gateway {replica} had quota in hand and is silent");
            reading(Rule::ReplicaLost, [("replica", replica.as_str())], true, summary, None)
        });
        let failing = self.failing.iter().filter(|(_, attempts, _)| *attempts >= MIN_FAILED);
        let failing = failing.map(|(receiver, _, why)| {
            let summary = format!("{receiver} does not take alerts: {why}");
            reading(Rule::DeliveryFailing, [("receiver", receiver.as_str())], true, summary, None)
        });
        let plain = [
            (Rule::LeaderChanged, self.leader_changed, "another coordinator has taken the lead"),
            (Rule::BusUnreachable, self.bus_down, "the leader does not reach NATS"),
            (
                Rule::StoreSuspect,
                self.store_suspect,
                "Redis was restarted or replaced, and may have lost writes",
            ),
            (Rule::ConfigRejected, self.config_rejected, "the leader's configuration on disk has a mistake"),
        ];
        let plain = plain.into_iter().filter(|(_, holds, _)| *holds);
        let plain = plain.map(|(rule, _, summary)| reading(rule, [], true, summary.to_owned(), None));
        breakers.chain(lost).chain(failing).chain(plain).collect()
    }
}

impl ModelSeen {
    fn readings(&self, at: &Thresholds) -> Vec<Reading> {
        let Self { model, usable, ready, all, traffic } = self;
        let labels = || [("model", model.as_str())];
        let mut readings = Vec::new();
        if *all > 0 && *ready == 0 {
            let quota = if *usable > 0 { ": the quota of every one is spent" } else { "" };
            let summary = format!("none of {all} keys can serve {model}{quota}");
            readings.push(reading(Rule::PoolExhausted, labels(), true, summary, Some("0".to_owned())));
        }
        if usable * 100 < all * LOW.1 {
            let summary = format!("{usable} of {all} keys can serve {model}");
            let is_low = usable * 100 < all * LOW.0;
            readings.push(reading(Rule::PoolLow, labels(), is_low, summary, Some(usable.to_string())));
        }
        readings.extend(traffic.readings(Some(model), at));
        readings
    }
}

impl Traffic {
    /// Of one model, or of all together.
    fn readings(&self, model: Option<&Model>, at: &Thresholds) -> Vec<Reading> {
        let Self { attempts, failed, p95 } = *self;
        let name = model.map_or("all models", Model::as_str);
        let labels = || model.map(|model| ("model", model.as_str()));
        let mut readings = Vec::new();
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let rate = failed as f64 / attempts.max(1) as f64;
        if attempts >= MIN_ATTEMPTS && rate > at.error_rate / 2.0 {
            let summary = format!("{failed} of {attempts} attempts for {name} failed in the last minute");
            let value = Some(format!("{:.1} %", rate * 100.0));
            readings.push(reading(Rule::ErrorRate, labels(), rate > at.error_rate, summary, value));
        }
        if let Some(p95) = p95.filter(|p95| attempts >= MIN_ATTEMPTS && *p95 > at.response_time.mul_f64(0.8))
        {
            let seconds = format!("{:.1} s", p95.as_secs_f64());
            let summary = format!("one of 20 answers of {name} begins after {seconds} or later");
            let fires = p95 > at.response_time;
            readings.push(reading(Rule::ResponseTime, labels(), fires, summary, Some(seconds)));
        }
        readings
    }
}

fn reading<'l>(
    rule: Rule,
    labels: impl IntoIterator<Item = (&'l str, &'l str)>,
    fires: bool,
    summary: String,
    value: Option<String>,
) -> Reading {
    let labels = labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let labels: Labels = labels.collect();
    Reading { rule, labels, fires, summary, value }
}

/// Rules that a new leader knows nothing of before it has heard gateways for a while.
pub fn needs_reports(rule: Rule) -> bool {
    matches!(rule, Rule::ErrorRate | Rule::ResponseTime | Rule::ReplicaLost)
}
