//! `alerts`: who is told, and how.

use std::fmt;

use keyfleet_core::alert::Policy;
use keyfleet_core::alert::seen::Thresholds;

use super::Secret;

/// `alerts`, and `monitoring.alert_thresholds`
#[derive(Debug, Clone, PartialEq)]
pub struct Alerts {
    /// When who is told
    pub policy: Policy,
    /// Where rules fire
    pub thresholds: Thresholds,
    /// How each of [`Policy::receivers`] is told
    pub receivers: Vec<Receiver>,
    /// `proxy_url`: the way out to the heartbeat, and to receivers that name no other
    pub proxy_url: Option<Secret>,
    /// `heartbeat_url`: asked for every minute by the leader, so that its silence is noticed elsewhere
    pub heartbeat_url: Option<Secret>,
}

/// `alerts.receivers[]`: how it is told
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// `name`, unique
    pub name: String,
    /// `type`, with what it needs
    pub wire: Wire,
    /// `proxy_url` of its own, else that of all
    pub proxy_url: Option<Secret>,
}

/// What a receiver understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// An incoming webhook of Slack.
    Slack {
        /// `url`
        url: Secret,
    },
    /// JSON, signed as Standard Webhooks says.
    Webhook {
        /// `url`
        url: Secret,
        /// `secret`: each signs; empty: not signed
        keys: Vec<SigningKey>,
    },
    /// Events of `PagerDuty`, version 2.
    PagerDuty {
        /// `url`, default that of their service in the US
        url: Secret,
        /// `routing_key`
        routing_key: Secret,
    },
    /// The API of Alertmanager, version 2.
    Alertmanager {
        /// `url`: that of the server; its API is below
        url: Secret,
    },
    /// A webhook of Discord.
    Discord {
        /// `url`
        url: Secret,
    },
    /// A workflow of Microsoft Teams.
    Teams {
        /// `url`
        url: Secret,
    },
}

impl Wire {
    /// Where messages go.
    pub fn url(&self) -> &Secret {
        match self {
            Self::Slack { url }
            | Self::Webhook { url, .. }
            | Self::PagerDuty { url, .. }
            | Self::Alertmanager { url }
            | Self::Discord { url }
            | Self::Teams { url } => url,
        }
    }

    /// As `type` says it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Slack { .. } => "slack",
            Self::Webhook { .. } => "webhook",
            Self::PagerDuty { .. } => "pagerduty",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Discord { .. } => "discord",
            Self::Teams { .. } => "teams",
        }
    }
}

/// What signs the messages of a webhook; it never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

impl SigningKey {
    /// Wraps a key.
    pub fn new(key: Vec<u8>) -> Self {
        Self(key)
    }

    /// The key itself, for the one place that signs.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
