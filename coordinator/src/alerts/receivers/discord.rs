//! A webhook of Discord.

use std::time::Duration;

use serde_json::{Value, json};

use super::Undelivered;
use super::answer::Answer;
use super::text::{self, length, line};
use crate::alerts::notice::Notice;

/// Discord allows 2,000.
const MAX_CONTENT: usize = 256;
/// Discord allows 4,096, and 6,000 for all of an embed.
const MAX_DESCRIPTION: usize = 4_000;
/// Of that, for what comes after the alerts.
const TAIL: usize = 1_000;
const MAX_SHOWN: usize = 10;

pub(super) fn payload(notice: &Notice) -> Value {
    let mut description = String::new();
    let mut used = 0;
    let mut shown = 0;
    for item in text::ordered(notice).take(MAX_SHOWN) {
        let (summary, state) = (text::summary(notice, item, 500, escape), text::state(item, escape));
        let text = format!("**{summary}**\n{state}\n{}\n", text::labels(item, escape));
        used += length(&text);
        if used > MAX_DESCRIPTION - TAIL {
            break;
        }
        description.push_str(&text);
        shown += 1;
    }
    let hidden = notice.alerts.len() - shown;
    if hidden > 0 {
        description.push_str(&text::more(hidden));
        description.push('\n');
    }
    for advice in text::advice(notice) {
        description.push_str("→ ");
        description.push_str(&line(advice, 300, escape));
        description.push('\n');
    }
    let (rule, cluster) = (line(&notice.rule, 100, text::plain), line(&notice.cluster, 100, text::plain));
    json!({
        "content": text::headline(notice, MAX_CONTENT, escape),
        "embeds": [{
            "description": description,
            "color": text::colour(notice),
            "footer": {"text": format!("{} · {rule} · {cluster}", notice.severity.as_str())},
        }],
        "allowed_mentions": {"parse": []},
    })
}

/// What formats, links or mentions.
fn escape(c: char) -> Option<&'static str> {
    Some(match c {
        '\\' => "\\\\",
        '*' => "\\*",
        '_' => "\\_",
        '~' => "\\~",
        '`' => "\\`",
        '|' => "\\|",
        '<' => "\\<",
        '>' => "\\>",
        '[' => "\\[",
        ']' => "\\]",
        '(' => "\\(",
        ')' => "\\)",
        '#' => "\\#",
        '@' => "\\@",
        _ => return None,
    })
}

/// Its 429 says in the body how long to wait, more exactly than the header.
pub(super) fn judge(answer: &Answer) -> Result<(), Undelivered> {
    match answer.status.as_u16() {
        401 | 403 => Err(answer.never()),
        429 => {
            let body = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
            let seconds = body["retry_after"].as_f64();
            Err(answer.later(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())))
        }
        _ => answer.usual(),
    }
}
