//! What a receiver is told.

use std::collections::BTreeMap;

pub(crate) use keyfleet_core::alert::Severity;
use keyfleet_core::alert::pipeline::Queued;

/// One message to one receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Stable over retries and leaders.
    pub(crate) id: String,
    /// The name of the rule, as in the configuration.
    pub(crate) rule: String,
    pub(crate) title: String,
    pub(crate) severity: Severity,
    /// Whether anything fires of which the receiver knows then: what it was told of before need not be in here.
    pub(crate) status: Status,
    pub(crate) alerts: Vec<Item>,
    /// Which deployment.
    pub(crate) cluster: String,
}

/// Whether it is wrong or over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Firing,
    Resolved,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// What tells it from all others.
    pub(crate) fingerprint: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What is wrong.
    pub(crate) summary: String,
    /// What to do.
    pub(crate) advice: String,
    pub(crate) value: Option<String>,
    pub(crate) status: Status,
    /// Since the Unix epoch.
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: Option<i64>,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }

    fn of(fires: bool) -> Self {
        if fires { Self::Firing } else { Self::Resolved }
    }
}

impl Notice {
    /// What is in the outbox, for the world.
    pub(crate) fn of(queued: &Queued, cluster: &str) -> Self {
        let items = queued.items.iter().map(|item| Item {
            fingerprint: item.fingerprint.clone(),
            labels: item.labels.clone(),
            summary: item.summary.clone(),
            advice: queued.rule.advice().to_owned(),
            value: item.value.clone(),
            status: Status::of(item.ended.is_none()),
            started_ms: item.started.as_ms(),
            ended_ms: item.ended.map(keyfleet_core::time::Utc::as_ms),
        });
        Self {
            id: queued.id.clone(),
            rule: queued.rule.as_str().to_owned(),
            title: queued.rule.title().to_owned(),
            severity: queued.severity,
            status: Status::of(queued.still_fires || queued.items.iter().any(|item| item.ended.is_none())),
            alerts: items.collect(),
            cluster: cluster.to_owned(),
        }
    }

    /// What an operator sends to see whether messages arrive.
    pub(crate) fn test(id: String, cluster: &str, now_ms: i64) -> Self {
        let item = Item {
            fingerprint: id.clone(),
            labels: BTreeMap::from([("test".to_owned(), "true".to_owned())]),
            summary: "an operator asked for this message".to_owned(),
            advice: "Nothing: alerts reach this receiver.".to_owned(),
            value: None,
            status: Status::Firing,
            started_ms: now_ms,
            ended_ms: None,
        };
        Self {
            id,
            rule: "test".to_owned(),
            title: "A test of this receiver".to_owned(),
            severity: Severity::Info,
            status: Status::Firing,
            alerts: vec![item],
            cluster: cluster.to_owned(),
        }
    }

    /// The same, over by now.
    pub(crate) fn over(&self, now_ms: i64) -> Self {
        let end = |item: &Item| Item { status: Status::Resolved, ended_ms: Some(now_ms), ..item.clone() };
        let alerts = self.alerts.iter().map(end).collect();
        Self { id: format!("{}-over", self.id), status: Status::Resolved, alerts, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use keyfleet_core::alert::Rule;
    use keyfleet_core::alert::pipeline;
    use keyfleet_core::time::Utc;

    use super::*;

    #[test]
    fn it_is_over_when_nothing_fires_of_which_the_receiver_knows() {
        let at = Utc::from_ms(1_800_000_000_000);
        let item = |ended| pipeline::Item {
            fingerprint: "f".to_owned(),
            labels: BTreeMap::new(),
            summary: "x is wrong".to_owned(),
            value: None,
            started: at,
            ended,
        };
        let (fires, over) = (item(None), item(Some(at)));
        for (items, still_fires, expected) in [
            (vec![fires.clone()], false, Status::Firing),
            (vec![fires, over.clone()], false, Status::Firing),
            (vec![over.clone()], false, Status::Resolved),
            (vec![over], true, Status::Firing),
        ] {
            let queued = Queued {
                id: "msg".to_owned(),
                receiver: "a".to_owned(),
                rule: Rule::KeyDisabled,
                severity: Severity::Critical,
                items,
                still_fires,
                made: at,
                attempts: 0,
                next: at,
                why: None,
            };
            let notice = Notice::of(&queued, "keyfleet");
            let of_items: Vec<_> = queued.items.iter().map(|item| Status::of(item.ended.is_none())).collect();
            assert_eq!(notice.status, expected, "{queued:?}");
            assert_eq!(notice.alerts.iter().map(|item| item.status).collect::<Vec<_>>(), of_items);
        }
    }
}
