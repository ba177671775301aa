//! JSON for programs, signed as Standard Webhooks 1.0 says.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyfleet_service::config::SigningKey;
use serde_json::{Map, Value, json};

use super::text::{self, line, plain, rfc3339};
use crate::alerts::notice::{Item, Notice};

/// Most servers take no more than 100 kB. Alerts beyond it are counted, not told.
const MAX_BYTES: usize = 64 << 10;
/// So that one alert at least is told.
const MAX_TEXT: usize = 500;
const MAX_NAME: usize = 100;
const MAX_LABELS: usize = 20;

pub(super) fn payload(notice: &Notice) -> Value {
    let mut alerts = Vec::new();
    let mut used = 0;
    for item in text::ordered(notice) {
        let alert = alert(item);
        used += alert.to_string().len();
        if used > MAX_BYTES {
            break;
        }
        alerts.push(alert);
    }
    let at = notice.alerts.iter().map(|item| item.ended_ms.unwrap_or(item.started_ms)).max();
    json!({
        "type": format!("alert.{}", notice.status.as_str()),
        "timestamp": rfc3339(at.unwrap_or_default()),
        "data": {
            "id": notice.id,
            "rule": line(&notice.rule, MAX_NAME, plain),
            "title": line(&notice.title, MAX_TEXT, plain),
            "severity": notice.severity.as_str(),
            "status": notice.status.as_str(),
            "cluster": line(&notice.cluster, MAX_TEXT, plain),
            "alerts_left_out": notice.alerts.len() - alerts.len(),
            "alerts": alerts,
        },
    })
}

fn alert(item: &Item) -> Value {
    let labels = item.labels.iter().take(MAX_LABELS);
    let labels: Map<_, _> = labels
        .map(|(name, value)| (line(name, MAX_NAME, plain), line(value, MAX_TEXT, plain).into()))
        .collect();
    json!({
        "fingerprint": item.fingerprint,
        "status": item.status.as_str(),
        "labels": labels,
        "summary": line(&item.summary, MAX_TEXT, plain),
        "advice": line(&item.advice, MAX_TEXT, plain),
        "value": item.value.as_ref().map(|value| line(value, MAX_TEXT, plain)),
        "started_at": rfc3339(item.started_ms),
        "ended_at": item.ended_ms.map(rfc3339),
    })
}

/// Who sent it and when: the identity stays over retries, the time is that of the attempt. Every key signs, so that a
/// receiver may go over to a new one at its leisure.
pub(super) fn headers(keys: &[SigningKey], id: &str, now_ms: i64, body: &str) -> Vec<(&'static str, String)> {
    let seconds = now_ms.div_euclid(1_000);
    let mut headers = vec![("webhook-id", id.to_owned()), ("webhook-timestamp", seconds.to_string())];
    if !keys.is_empty() {
        let signed = format!("{id}.{seconds}.{body}");
        let signatures: Vec<_> = keys.iter().map(|key| signature(key, &signed)).collect();
        headers.push(("webhook-signature", signatures.join(" ")));
    }
    headers
}

fn signature(key: &SigningKey, signed: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
    format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
}
