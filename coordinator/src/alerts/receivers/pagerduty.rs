//! Events of `PagerDuty`, version 2. An incident is a rule of a deployment: it begins and ends with that.

use keyfleet_service::config::Secret;
use serde_json::{Value, json};

use super::text::{self, line, plain, rfc3339};
use crate::alerts::notice::{Notice, Severity, Status};

const MAX_SUMMARY: usize = 1_024;
/// An event may have 512 KB.
const MAX_SHOWN: usize = 50;

pub(super) fn payload(notice: &Notice, routing_key: &Secret) -> Value {
    // At most 255 characters.
    let (rule, cluster) = (line(&notice.rule, 100, plain), line(&notice.cluster, 128, plain));
    let event = json!({
        "routing_key": routing_key.expose(),
        "event_action": if notice.status == Status::Firing { "trigger" } else { "resolve" },
        "dedup_key": format!("keyfleet/{cluster}/{rule}"),
    });
    if notice.status == Status::Resolved {
        return event;
    }
    let mut event = event;
    let first = text::ordered(notice).next();
    let summary = first.map(|item| format!(": {}", text::summary(notice, item, 300, plain)));
    let summary = format!("{}{}", text::title(notice, 300, plain), summary.unwrap_or_default());
    let alerts = text::ordered(notice).take(MAX_SHOWN).map(|item| {
        let (summary, state) = (text::summary(notice, item, 300, plain), text::state(item, plain));
        format!("{summary} ({state}) {}", text::labels(item, plain))
    });
    let severity = match notice.severity {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    event["client"] = "Keyfleet".into();
    event["payload"] = json!({
        "summary": line(&summary, MAX_SUMMARY, plain),
        "source": cluster,
        "severity": severity,
        "class": rule,
        "component": "keyfleet",
        "timestamp": first.map(|item| rfc3339(item.started_ms)),
        "custom_details": {
            "alerts": alerts.collect::<Vec<_>>(),
            "alerts_left_out": notice.alerts.len().saturating_sub(MAX_SHOWN),
            "what_to_do": text::advice(notice).iter().map(|text| line(text, 1_000, plain)).collect::<Vec<_>>(),
        },
    });
    event
}
