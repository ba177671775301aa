//! What can be wrong, how long it has to be so, and what to do about it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look.
    Warning,
    /// Clients are refused, or will be.
    Critical,
}

impl Severity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    /// In the words of configuration, messages and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// How a rule is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Whether anybody is told.
    pub enabled: bool,
    /// How long it has to be so before it fires.
    pub wait: Duration,
    /// How long it has to be over before it is resolved.
    pub keep: Duration,
    /// How bad it is.
    pub severity: Severity,
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// No key of the pool can serve a model.
    PoolExhausted,
    /// Few keys of the pool can serve a model.
    PoolLow,
    /// Too many keys have a low score.
    UnhealthyKeys,
    /// Too many attempts fail.
    ErrorRate,
    /// Answers begin late.
    ResponseTime,
    /// A model is left alone since it fails for everybody.
    BreakerOpen,
    /// A key is out until somebody acts.
    KeyDisabled,
    /// A gateway that was at work is silent.
    ReplicaLost,
    /// Another coordinator leads.
    LeaderChanged,
    /// Redis does not answer.
    StoreUnreachable,
    /// NATS does not answer.
    BusUnreachable,
    /// The store may have lost writes.
    StoreSuspect,
    /// Somebody else uses a project's quota.
    ExternalUse,
    /// A changed configuration has a mistake.
    ConfigRejected,
    /// A receiver of alerts does not take them.
    DeliveryFailing,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::PoolExhausted,
        Self::PoolLow,
        Self::UnhealthyKeys,
        Self::ErrorRate,
        Self::ResponseTime,
        Self::BreakerOpen,
        Self::KeyDisabled,
        Self::ReplicaLost,
        Self::LeaderChanged,
        Self::StoreUnreachable,
        Self::BusUnreachable,
        Self::StoreSuspect,
        Self::ExternalUse,
        Self::ConfigRejected,
        Self::DeliveryFailing,
    ];

    /// In the words of configuration, messages and pages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PoolExhausted => "pool_exhausted",
            Self::PoolLow => "pool_low",
            Self::UnhealthyKeys => "unhealthy_keys",
            Self::ErrorRate => "error_rate",
            Self::ResponseTime => "response_time",
            Self::BreakerOpen => "breaker_open",
            Self::KeyDisabled => "key_disabled",
            Self::ReplicaLost => "replica_lost",
            Self::LeaderChanged => "leader_changed",
            Self::StoreUnreachable => "store_unreachable",
            Self::BusUnreachable => "bus_unreachable",
            Self::StoreSuspect => "store_suspect",
            Self::ExternalUse => "external_use",
            Self::ConfigRejected => "config_rejected",
            Self::DeliveryFailing => "delivery_failing",
        }
    }

    /// The rule of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == name)
    }

    /// What tells its instances apart: labels that one of them can have.
    pub const fn labels(self) -> &'static [&'static str] {
        match self {
            Self::PoolExhausted | Self::PoolLow | Self::ErrorRate | Self::ResponseTime => &["model"],
            Self::BreakerOpen => &["model", "host"],
            Self::KeyDisabled => &["key", "reason"],
            Self::ExternalUse => &["project", "model"],
            Self::ReplicaLost => &["replica"],
            Self::DeliveryFailing => &["receiver"],
            Self::UnhealthyKeys
            | Self::LeaderChanged
            | Self::StoreUnreachable
            | Self::BusUnreachable
            | Self::StoreSuspect
            | Self::ConfigRejected => &[],
        }
    }

    /// How it is handled unless the operator says otherwise.
    pub const fn timing(self) -> Timing {
        let (severity, wait, keep) = match self {
            Self::PoolExhausted => (Severity::Critical, 30, 60),
            Self::PoolLow
            | Self::UnhealthyKeys
            | Self::ErrorRate
            | Self::ResponseTime
            | Self::DeliveryFailing => (Severity::Warning, 60, 60),
            Self::BreakerOpen => (Severity::Warning, 30, 60),
            // Facts, which nothing but their end changes.
            Self::KeyDisabled | Self::ReplicaLost | Self::ConfigRejected => (Severity::Warning, 0, 0),
            Self::LeaderChanged => (Severity::Info, 0, 60),
            Self::StoreUnreachable | Self::BusUnreachable => (Severity::Critical, 10, 30),
            Self::StoreSuspect => (Severity::Critical, 0, 0),
            Self::ExternalUse => (Severity::Warning, 0, 300),
        };
        Timing { enabled: true, wait: Duration::from_secs(wait), keep: Duration::from_secs(keep), severity }
    }

    /// What is wrong, in a few words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::PoolExhausted => "No key can serve a model",
            Self::PoolLow => "Few keys are left for a model",
            Self::UnhealthyKeys => "Many keys are unhealthy",
            Self::ErrorRate => "Many attempts fail",
            Self::ResponseTime => "Answers begin late",
            Self::BreakerOpen => "A model fails for every key",
            Self::KeyDisabled => "A key is out until somebody acts",
            Self::ReplicaLost => "A gateway is gone",
            Self::LeaderChanged => "Another coordinator leads",
            Self::StoreUnreachable => "Redis does not answer",
            Self::BusUnreachable => "NATS does not answer",
            Self::StoreSuspect => "Redis may have lost writes",
            Self::ExternalUse => "Somebody else uses a project's quota",
            Self::ConfigRejected => "A changed configuration is not in force",
            Self::DeliveryFailing => "Alerts do not reach a receiver",
        }
    }

    /// What to do.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::PoolExhausted => {
                "Clients get 429 or 503 for this model. `coordinator keys` shows what keeps each key from work; add \
                 projects, raise limits, or set `fallbacks` for the model."
            }
            Self::PoolLow => {
                "`coordinator keys` shows what keeps the others from work; add projects before none is left."
            }
            Self::UnhealthyKeys => {
                "See `coordinator keys`: if they share a project or a way out, look there; if not, look at the \
                 upstream's status page."
            }
            Self::ErrorRate => {
                "Look at the causes in the gateways' logs and metrics; if all keys are concerned, the upstream is at \
                 fault, and `fallbacks` can spare clients."
            }
            Self::ResponseTime => {
                "Compare models: if one is slow, the upstream is; if all are, look at the network and the proxy."
            }
            Self::BreakerOpen => {
                "Wait for the upstream, which is tried again by itself, or set `fallbacks` for the model."
            }
            Self::KeyDisabled => {
                "Replace the key, or mend its project or its restrictions, then `coordinator enable` it; remove it \
                 from the configuration if it is gone for good."
            }
            Self::ReplicaLost => {
                "If it was not stopped on purpose, look at its log and its machine. Its share of the quotas is free \
                 again after 70 seconds."
            }
            Self::LeaderChanged => {
                "The one that led before did not hand over: look at its log and its machine."
            }
            Self::StoreUnreachable => {
                "Bring Redis back: until then nobody can lead, and gateways go on with the quota that they have."
            }
            Self::BusUnreachable => {
                "Bring NATS back: until then gateways get no leases and no decisions, and their reports wait."
            }
            Self::StoreSuspect => {
                "Nothing now: quotas of a minute are held back for 70 seconds, so that none is exceeded. Check that \
                 Redis keeps what it acknowledges (appendonly, replicas)."
            }
            Self::ExternalUse => {
                "Find who else uses the project, or lower its limit in `limits` to what is left for this gateway."
            }
            Self::ConfigRejected => {
                "The old one is still in force. `coordinator check-config` lists every mistake."
            }
            Self::DeliveryFailing => {
                "`coordinator alerts list` says why; correct the receiver's address, and try it with `coordinator \
                 alerts test`."
            }
        }
    }
}
