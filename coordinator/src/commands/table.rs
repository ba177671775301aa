//! Answers as people read them. Names of models come from clients: nothing in them reaches the terminal as more than
//! text.

use std::fmt::Write as _;

use keyfleet_core::outcome::Cause;
use keyfleet_core::quota::Dimension;

use crate::shown::{Blocked, BucketUse, Key, Listing, Status};

/// A text without anything that a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

pub(super) fn status(status: &Status) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let up = |up: bool| if up { "up" } else { "DOWN" }.to_owned();
    let leader = match (status.role.as_str(), &status.leader) {
        ("leading", Some(leader)) => format!("{} (this one)", plain(leader)),
        (_, Some(leader)) => plain(leader),
        (_, None) => "nobody is known to lead".to_owned(),
    };
    let quota = match status.blind_seconds_left {
        0 => "granted".to_owned(),
        left => format!("minute quotas are held back for {left} s: the store may have lost writes"),
    };
    let mut rows = vec![
        ("leader", leader),
        ("epoch", status.epoch.to_string()),
        ("revision", status.revision.to_string()),
        ("lag", or_dash(status.lag.map(|lag| lagging(lag, status.lag_ms.unwrap_or_default())))),
        ("lost", format!("{} reports", status.reports_lost)),
        (
            "ledger time",
            or_dash(status.ledger_time_ms.map(|ms| format!("{}.{:03} s", ms / 1_000, ms % 1_000))),
        ),
        ("quota", quota),
        ("buckets", or_dash(status.buckets.map(|n| n.to_string()))),
        ("open lots", or_dash(status.open_lots.map(|n| n.to_string()))),
        ("store", up(status.store_up)),
        ("bus", up(status.bus_up)),
    ];
    match &status.replicas {
        None => rows.push(("replicas", "only the leader knows".to_owned())),
        Some(replicas) => {
            rows.push(("replicas", replicas.len().to_string()));
            for replica in replicas {
                rows.push(("", format!("{}  heard {} s ago", plain(&replica.id), replica.heard_seconds_ago)));
            }
        }
    }
    rows.into_iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
        text
    })
}

fn lagging(reports: u64, ms: u64) -> String {
    format!("{reports} reports; the last one was read after {}.{:03} s", ms / 1_000, ms % 1_000)
}

pub(super) fn keys(keys: &Listing) -> String {
    let head = ["KEY", "PROJECT", "STATE", "SCORE", "ANSWERED", "FAILED"].map(str::to_owned);
    let rows: Vec<[String; 6]> = keys.keys.iter().map(row).collect();
    let mut widths = head.clone().map(|cell| cell.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    line(&mut text, &head, &widths);
    for (key, row) in keys.keys.iter().zip(&rows) {
        line(&mut text, row, &widths);
        key.blocks.iter().for_each(|block| {
            let _ = writeln!(text, "    {}", blocked(block));
        });
        key.buckets.iter().for_each(|bucket| {
            let _ = writeln!(text, "    {}", used(bucket));
        });
    }
    for client in &keys.clients {
        let (name, of) = (plain(&client.client), limit(client.limit));
        let _ = writeln!(text, "client {name}: {} used + {} out of {of} a minute", client.used, client.open);
    }
    text
}

fn row(key: &Key) -> [String; 6] {
    [
        plain(&key.id),
        plain(&key.project),
        plain(&key.state),
        format!("{:.1}", key.score),
        key.answered.to_string(),
        key.failed.to_string(),
    ]
}

/// Texts to the left, numbers to the right.
fn line(text: &mut String, row: &[String; 6], widths: &[usize; 6]) {
    let mut cells = String::new();
    for (place, (cell, width)) in row.iter().zip(widths).enumerate() {
        let _ = if place < 3 { write!(cells, "{cell:<width$}  ") } else { write!(cells, "{cell:>width$}  ") };
    }
    let _ = writeln!(text, "{}", cells.trim_end());
}

fn blocked(block: &Blocked) -> String {
    let what = match (block.scope.as_str(), &block.model) {
        (_, Some(model)) => format!("{} on {}", plain(&block.reason), plain(model)),
        ("project", None) => format!("{} of the project", plain(&block.reason)),
        _ => plain(&block.reason),
    };
    let until = match (block.seconds_left, block.probe_in_seconds) {
        (Some(left), _) => format!("{left} s left"),
        (None, Some(probe)) => format!("until a probe succeeds, the next in {probe} s"),
        (None, None) if block.reason == Cause::ByOperator.as_str() => "until it is enabled".to_owned(),
        (None, None) => "until it is enabled or found to work".to_owned(),
    };
    format!("blocked: {what}, {until}")
}

fn used(bucket: &BucketUse) -> String {
    let (model, of) = (plain(&bucket.model), limit(bucket.limit));
    let dimension = match bucket.dimension {
        Dimension::Rpm => "rpm",
        Dimension::Tpm => "tpm",
        Dimension::Rpd => "rpd",
    };
    let others = bucket.external.as_ref().map_or_else(String::new, |external| {
        let (refused, ago) = (external.refused, external.last_seconds_ago);
        format!("; others use it too: refused {refused} times while some was left, {ago} s ago at last")
    });
    format!("{model} {dimension}: {} used + {} out of {of}{others}", bucket.used, bucket.open)
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "?".to_owned(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shown::ExternalUse;

    #[test]
    fn keys_are_a_table_that_no_name_can_break() {
        let block = Blocked {
            scope: "quota".to_owned(),
            model: Some("m\u{1b}[2J\n".to_owned()),
            reason: "per_day".to_owned(),
            seconds_left: Some(7),
            probe_in_seconds: Some(3),
        };
        let bucket = BucketUse {
            model: "flash".to_owned(),
            dimension: Dimension::Rpm,
            used: 7,
            open: 2,
            limit: Some(10),
            external: Some(ExternalUse { refused: 3, last_seconds_ago: 12 }),
        };
        let key = Key {
            id: "k1".to_owned(),
            project: "a-project".to_owned(),
            state: "perfect".to_owned(),
            score: 1.0,
            answered: 12,
            failed: 0,
            blocks: vec![block],
            buckets: vec![bucket],
        };
        let shown = keys(&Listing { source: "leader".to_owned(), keys: vec![key], clients: Vec::new() });
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "KEY  PROJECT    STATE    SCORE  ANSWERED  FAILED",
                "k1   a-project  perfect    1.0        12       0",
                "    blocked: per_day on m\u{fffd}[2J\u{fffd}, 7 s left",
                "    flash rpm: 7 used + 2 out of 10; others use it too: refused 3 times while some was left, 12 s ago at last",
            ]
        );
    }
}
