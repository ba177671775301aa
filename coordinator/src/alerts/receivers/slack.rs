//! An incoming webhook of Slack: blocks in an attachment, which alone has a coloured bar.

use serde_json::{Value, json};

use super::Undelivered;
use super::answer::Answer;
use super::text::{self, MAX_LABELS, length, line, plain};
use crate::alerts::notice::{Item, Notice};

/// Slack's own limits are 50 blocks, 3,000 for a text, ten fields of 2,000, 150 for a header; messages whose blocks
/// come to some 13,000 characters in total are refused as well.
const MAX_HEADER: usize = 150;
const MAX_SHOWN: usize = 10;
/// Of all blocks as JSON.
const MAX_TOTAL: usize = 10_000;
/// Of that, for what comes after the alerts.
const TAIL: usize = 4_000;

pub(super) fn payload(notice: &Notice) -> Value {
    let title = text::title(notice, MAX_HEADER, plain);
    let mut blocks = vec![json!({"type": "header", "text": {"type": "plain_text", "text": title}})];
    let mut used = size(&blocks[0]);
    let mut shown = 0;
    for item in text::ordered(notice).take(MAX_SHOWN) {
        let block = section(notice, item);
        used += size(&block);
        if used > MAX_TOTAL - TAIL {
            break;
        }
        blocks.push(block);
        shown += 1;
    }
    let hidden = notice.alerts.len() - shown;
    if hidden > 0 {
        blocks.push(context(&text::more(hidden)));
    }
    let advice: Vec<_> = text::advice(notice).into_iter().map(|text| line(text, 400, escape)).collect();
    if !advice.is_empty() {
        blocks.push(
            json!({"type": "section", "text": mrkdwn(&format!("*What to do*\n{}", advice.join("\n")))}),
        );
    }
    let (rule, cluster) = (line(&notice.rule, 100, escape), line(&notice.cluster, 100, escape));
    blocks.push(context(&format!("{} · {rule} · {cluster}", notice.severity.as_str())));
    json!({
        "text": text::headline(notice, MAX_HEADER, escape),
        "attachments": [{"color": format!("#{:06x}", text::colour(notice)), "blocks": blocks}],
    })
}

fn size(block: &Value) -> usize {
    length(&block.to_string())
}

fn section(notice: &Notice, item: &Item) -> Value {
    let summary = text::summary(notice, item, 500, escape);
    let mut block = json!({
        "type": "section",
        "text": mrkdwn(&format!("*{summary}*\n{}", text::state(item, escape))),
    });
    let fields = item.labels.iter().take(MAX_LABELS);
    let fields: Vec<_> = fields
        .map(|(name, value)| mrkdwn(&format!("*{}*\n{}", line(name, 60, escape), line(value, 200, escape))))
        .collect();
    if !fields.is_empty() {
        block["fields"] = Value::from(fields);
    }
    block
}

fn context(text: &str) -> Value {
    json!({"type": "context", "elements": [mrkdwn(text)]})
}

/// Without links and mentions made of what only looks like one.
fn mrkdwn(text: &str) -> Value {
    json!({"type": "mrkdwn", "text": text, "verbatim": true})
}

/// What begins a mention or a link, and what writes it.
fn escape(c: char) -> Option<&'static str> {
    match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        _ => None,
    }
}

/// Slack has taken a message when it says `ok`.
pub(super) fn judge(answer: &Answer) -> Result<(), Undelivered> {
    match answer.status.as_u16() {
        200 if answer.body.trim() == "ok" => Ok(()),
        200 => {
            let body = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
            if body["ok"] == true { Ok(()) } else { Err(answer.later(None)) }
        }
        401 | 403 => Err(answer.never()),
        status if (201..300).contains(&status) => Err(answer.later(None)),
        _ => answer.usual(),
    }
}
