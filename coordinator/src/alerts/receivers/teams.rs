//! A workflow of Microsoft Teams, which takes Adaptive Cards.

use serde_json::{Value, json};

use super::text::{self, line, plain};
use crate::alerts::notice::{Notice, Severity, Status};

/// Teams takes 28 KB.
const MAX_BYTES: usize = 20_000;
/// Of that, for what comes after the alerts.
const TAIL: usize = 6_000;
const MAX_SHOWN: usize = 10;

pub(super) fn payload(notice: &Notice) -> Value {
    let colour = match (notice.status, notice.severity) {
        (Status::Resolved, _) => "good",
        (Status::Firing, Severity::Critical) => "attention",
        (Status::Firing, Severity::Warning) => "warning",
        (Status::Firing, Severity::Info) => "accent",
    };
    let title = text::headline(notice, 200, plain);
    let title =
        json!({"type": "TextRun", "text": title, "size": "large", "weight": "bolder", "color": colour});
    let mut body = vec![block(&[title])];
    let mut used = body[0].to_string().len();
    let mut shown = 0;
    for item in text::ordered(notice).take(MAX_SHOWN) {
        let summary = text::summary(notice, item, 500, plain);
        let details = format!("\n{}\n{}", text::state(item, plain), text::labels(item, plain));
        let block = block(&[json!({"type": "TextRun", "text": summary, "weight": "bolder"}), run(&details)]);
        used += block.to_string().len();
        if used > MAX_BYTES - TAIL {
            break;
        }
        body.push(block);
        shown += 1;
    }
    let hidden = notice.alerts.len() - shown;
    if hidden > 0 {
        body.push(block(&[run(&text::more(hidden))]));
    }
    let advice = text::advice(notice).into_iter();
    body.extend(advice.map(|advice| block(&[run(&line(advice, 400, plain))])));
    let (rule, cluster) = (line(&notice.rule, 100, plain), line(&notice.cluster, 100, plain));
    body.push(block(&[run(&format!("{} · {rule} · {cluster}", notice.severity.as_str()))]));
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "msteams": {"width": "Full"},
                "body": body,
            },
        }],
    })
}

/// Rich text has no markdown in it, so that a name is shown as it is.
fn block(runs: &[Value]) -> Value {
    json!({"type": "RichTextBlock", "separator": true, "inlines": runs})
}

fn run(text: &str) -> Value {
    json!({"type": "TextRun", "text": text})
}
