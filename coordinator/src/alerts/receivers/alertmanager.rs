//! The API of Alertmanager, version 2. It groups and repeats by itself, so it gets every alert.

use std::collections::BTreeMap;

use reqwest::Url;
use serde_json::{Map, Value, json};

use super::text::{line, plain, rfc3339};
use crate::alerts::notice::{Item, Notice, Status};

const PATH: &str = "api/v2/alerts";
/// Alerts in one request, and requests for one message. What is beyond both is left out.
const BATCH: usize = 500;
const MAX_BATCHES: usize = 20;
const MAX_LABELS: usize = 32;
const MAX_TEXT: usize = 1_000;
/// Alertmanager takes an alert for over when nobody repeats it in time. That must be long after the next repetition, of
/// which there is none in quiet hours, and is what ends the alerts of a deployment that is gone for good.
const EXPIRES_MS: i64 = 48 * 3_600_000;

/// Adds the path of the API to the address of a server.
pub(super) fn complete(url: &mut Url) {
    let path = url.path().trim_end_matches('/');
    if !path.ends_with(PATH) {
        let path = format!("{path}/{PATH}");
        url.set_path(&path);
    }
}

pub(super) fn payloads(notice: &Notice, now_ms: i64) -> Vec<String> {
    let room = BATCH * MAX_BATCHES;
    if notice.alerts.len() > room {
        let left_out = notice.alerts.len() - room;
        tracing::warn!(rule = notice.rule, left_out, "too many alerts for one message to Alertmanager");
    }
    let batches = notice.alerts.chunks(BATCH).take(MAX_BATCHES);
    batches
        .map(|items| items.iter().map(|item| alert(notice, item, now_ms)).collect::<Value>().to_string())
        .collect()
}

fn alert(notice: &Notice, item: &Item, now_ms: i64) -> Value {
    let ends = match item.status {
        Status::Firing => now_ms.saturating_add(EXPIRES_MS),
        // It may not end before it began, nor later than now: then it would fire until then.
        Status::Resolved => item.ended_ms.unwrap_or(now_ms).min(now_ms).max(item.started_ms),
    };
    let mut annotations = Map::new();
    for (name, text) in [
        ("summary", Some(&item.summary)),
        ("description", Some(&item.advice)),
        ("value", item.value.as_ref()),
    ] {
        if let Some(text) = text {
            annotations.insert(name.to_owned(), line(text, MAX_TEXT, plain).into());
        }
    }
    json!({
        "labels": labels(notice, item),
        "annotations": annotations,
        "startsAt": rfc3339(item.started_ms),
        "endsAt": rfc3339(ends),
    })
}

/// The labels are what an alert is known by: they are the same when it is over, and those of two alerts differ.
fn labels(notice: &Notice, item: &Item) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("alertname".to_owned(), alertname(&notice.rule)),
        ("severity".to_owned(), notice.severity.as_str().to_owned()),
        ("cluster".to_owned(), line(&notice.cluster, MAX_TEXT, plain)),
    ]);
    // What is left out or cut might have been the difference.
    let mut whole = item.labels.len() <= MAX_LABELS;
    // One that has no value is none.
    for (name, value) in item.labels.iter().filter(|(_, value)| !value.is_empty()).take(MAX_LABELS) {
        let mut name = label_name(name);
        while labels.contains_key(&name) {
            name.push('_');
        }
        let cut = line(value, MAX_TEXT, plain);
        whole &= cut == *value;
        labels.insert(name, cut);
    }
    if !whole {
        labels.insert("fingerprint".to_owned(), item.fingerprint.clone());
    }
    labels
}

/// As names of alerts are written: `pool_exhausted` is `KeyfleetPoolExhausted`.
fn alertname(rule: &str) -> String {
    let words = rule.split('_').map(|word| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    });
    line(&format!("Keyfleet{}", words.collect::<String>()), MAX_TEXT, plain)
}

/// Letters, digits and `_`, no digit first.
fn label_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut clean: String = name.chars().take(MAX_TEXT).map(letter).collect();
    if clean.is_empty() || clean.starts_with(|c: char| c.is_ascii_digit()) {
        clean.insert(0, '_');
    }
    clean
}
