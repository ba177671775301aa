//! How a message gets to a receiver: one POST of JSON to a webhook.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use keyfleet_service::config::Receiver;
use serde_json::json;

use super::notice::Notice;

/// For the whole exchange.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a message was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// Try again, not before this.
    Later { after: Option<Duration>, why: String },
    /// It will never be accepted.
    Never { why: String },
}

/// Delivers a message. What is said of a failure holds nothing of the address, which may be a secret.
pub(crate) async fn deliver(
    client: &reqwest::Client,
    receiver: &Receiver,
    notice: &Notice,
    now_ms: i64,
) -> Result<(), Undelivered> {
    let alerts = notice.alerts.iter().map(|item| {
        json!({
            "fingerprint": item.fingerprint,
            "status": item.status.as_str(),
            "labels": item.labels,
            "summary": item.summary,
            "advice": item.advice,
            "value": item.value,
            "started_ms": item.started_ms,
            "ended_ms": item.ended_ms,
        })
    });
    let alerts: Vec<_> = alerts.collect();
    let body = json!({
        "type": format!("alert.{}", notice.status.as_str()),
        "timestamp_ms": now_ms,
        "data": {
            "id": notice.id,
            "rule": notice.rule,
            "title": notice.title,
            "severity": notice.severity.as_str(),
            "status": notice.status.as_str(),
            "cluster": notice.cluster,
            "alerts": alerts,
        },
    });
    let request = client.post(receiver.url.expose()).timeout(PATIENCE).header("webhook-id", &notice.id);
    let sent = request.header(CONTENT_TYPE, "application/json").body(body.to_string()).send().await;
    let status = sent.map_err(|error| {
        let why = if error.is_timeout() { "no answer in time" } else { "cannot be reached" };
        Undelivered::Later { after: None, why: why.to_owned() }
    })?;
    let status = status.status();
    match status.as_u16() {
        200..=299 => Ok(()),
        404 | 410 => Err(Undelivered::Never { why: format!("status {status}") }),
        _ => Err(Undelivered::Later { after: None, why: format!("status {status}") }),
    }
}
