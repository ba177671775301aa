//! What operators are shown of alerts, in the form in which it travels.

use std::collections::BTreeMap;

use keyfleet_core::alert::{Alerts, Phase, Policy};
use keyfleet_core::time::Utc;
use serde::{Deserialize, Serialize};

/// All that is known of alerts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct View {
    /// What is wrong, or was and is still to be told.
    pub alerts: Vec<Alert>,
    /// What nobody is told of.
    pub silences: Vec<Silence>,
    /// What is not delivered.
    pub outbox: Vec<Waiting>,
    /// What was given up, the latest first.
    #[serde(default)]
    pub given_up: Vec<GivenUp>,
    /// What was wrong, the latest first.
    pub history: Vec<Past>,
    /// How often something went wrong that there was no room for.
    pub overflow: u64,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What tells it from all others.
    pub fingerprint: String,
    /// Its rule.
    pub rule: String,
    /// `pending`, `firing` or `resolved`.
    pub state: String,
    /// How bad it is.
    pub severity: String,
    /// What it is about.
    pub labels: BTreeMap<String, String>,
    /// What is wrong.
    pub summary: String,
    /// What to do.
    pub advice: String,
    /// For how long, in seconds.
    pub seconds: u64,
    /// Why nobody is told: `silenced`, `inhibited` or `quiet_hours`.
    pub muted: Option<String>,
}

/// One silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// What it is ended by.
    pub number: u64,
    /// What these labels have to be.
    pub matchers: BTreeMap<String, String>,
    /// Who wants it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// For how long yet.
    pub seconds_left: u64,
}

/// A message that is not delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// To whom.
    pub receiver: String,
    /// Of which rule.
    pub rule: String,
    /// How often it was tried.
    pub attempts: u32,
    /// For how long.
    pub seconds: u64,
    /// Why it was not delivered.
    pub why: Option<String>,
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Who did not get it.
    pub receiver: String,
    /// Of which rule.
    pub rule: String,
    /// Of how many alerts.
    pub alerts: usize,
    /// How long ago, in seconds.
    pub seconds_ago: u64,
    /// Why it was not delivered.
    pub why: String,
}

/// An alert that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its rule.
    pub rule: String,
    /// What it was about.
    pub labels: BTreeMap<String, String>,
    /// What was wrong.
    pub summary: String,
    /// When it fired, in ms since the Unix epoch.
    pub started_ms: i64,
    /// When it was resolved.
    pub ended_ms: i64,
    /// For how long it fired.
    pub seconds: u64,
}

impl View {
    /// What there is to see.
    pub fn of(machine: &Alerts, policy: &Policy, now: Utc) -> Self {
        let strong = machine.strong();
        let alerts = machine.instances().map(|(fingerprint, instance)| {
            let (state, since) = match instance.phase {
                Phase::Pending { since } => ("pending", since),
                Phase::Firing { .. } => ("firing", instance.started),
                Phase::Resolved { .. } => ("resolved", instance.ended.unwrap_or(now)),
            };
            Alert {
                fingerprint: fingerprint.clone(),
                rule: instance.rule.as_str().to_owned(),
                state: state.to_owned(),
                severity: policy.timing(instance.rule).severity.as_str().to_owned(),
                labels: instance.labels.clone(),
                summary: instance.summary.clone(),
                advice: instance.rule.advice().to_owned(),
                seconds: now.since(since).as_secs(),
                muted: machine.muted(instance, &strong, policy, now).map(str::to_owned),
            }
        });
        let silences = machine.silences().map(|(number, silence)| Silence {
            number,
            matchers: silence.matchers.clone(),
            author: silence.author.clone(),
            reason: silence.reason.clone(),
            seconds_left: silence.until.since(now).as_secs(),
        });
        let outbox = machine.outbox().map(|queued| Waiting {
            receiver: queued.receiver.clone(),
            rule: queued.rule.as_str().to_owned(),
            attempts: queued.attempts,
            seconds: now.since(queued.made).as_secs(),
            why: queued.why.clone(),
        });
        let given_up = machine.given_up().rev().map(|given_up| GivenUp {
            receiver: given_up.receiver.clone(),
            rule: given_up.rule.as_str().to_owned(),
            alerts: given_up.alerts,
            seconds_ago: now.since(given_up.at).as_secs(),
            why: given_up.why.clone(),
        });
        let mut history: Vec<_> = machine.history().map(past).collect();
        history.reverse();
        Self {
            alerts: alerts.collect(),
            silences: silences.collect(),
            outbox: outbox.collect(),
            given_up: given_up.collect(),
            history,
            overflow: machine.overflow(),
        }
    }
}

fn past(past: &keyfleet_core::alert::Past) -> Past {
    Past {
        rule: past.rule.as_str().to_owned(),
        labels: past.labels.clone(),
        summary: past.summary.clone(),
        started_ms: past.started.as_ms(),
        ended_ms: past.ended.as_ms(),
        seconds: past.ended.since(past.started).as_secs(),
    }
}
