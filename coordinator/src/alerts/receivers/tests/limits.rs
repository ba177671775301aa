//! The documented limits of every receiver, with 5,000 alerts at once and names that somebody else has chosen.

use keyfleet_service::config::Secret;
use serde_json::Value;

use super::super::text::length;
use super::super::{alertmanager, discord, pagerduty, slack, teams, webhook};
use super::*;

fn hostile() -> Vec<String> {
    let mut names: Vec<String> = [
        "gemini-2.5-flash",
        "",
        " ",
        "<!channel> <!here> <@U123> <#C123> <https://evil.example|click>",
        "a & b &amp; &lt;!channel&gt;",
        "@everyone @here <@&1> [click](https://evil.example) **bold** `code` ||spoiler|| # head\n> quote",
        "tab\tline\r\nnull\u{0}escape\u{1b}[31m bell\u{7}",
        "right\u{202e}left\u{2066}",
        "quote\" backslash\\ \\u0000",
        "*_~` }} {{ ]] </at>",
    ]
    .map(str::to_owned)
    .into();
    for part in ["x", "🔥", "&", "<", "\"", "*", "é", "👩‍👩‍👧‍👦", "\u{0}"] {
        names.push(part.repeat(10_000));
        // The cut is before, inside and after an emoji.
        names.push(format!("{}🔥{}", part.repeat(149), part.repeat(9_000)));
    }
    names
}

/// Messages with every name in every place; of a few alerts, and of 5,000.
fn notices() -> Vec<Notice> {
    let names = hostile();
    let mut notices = Vec::new();
    for (turn, name) in names.iter().enumerate() {
        let number = if turn % 14 == 0 { 5_000 } else { turn % 4 };
        // Of 5,000 only a few are long, so that the test is not.
        let named = |number: usize| {
            let name = &names[if number > 20 { number % 10 } else { (turn + number) % names.len() }];
            let labels =
                (0..if number > 20 { 1 } else { 40 }).map(|label| (format!("{label}{name}"), name.clone()));
            let labels = labels.chain([("key".to_owned(), number.to_string())]);
            Item {
                labels: labels.collect(),
                advice: name.clone(),
                summary: name.clone(),
                value: Some(name.clone()),
                ..item(number, "")
            }
        };
        let firing = Notice {
            title: name.clone(),
            cluster: name.clone(),
            rule: name.clone(),
            severity: [Severity::Critical, Severity::Warning, Severity::Info][turn % 3],
            ..notice((0..number).map(named).collect())
        };
        notices.push(resolved(&firing, NOW));
        notices.push(firing);
    }
    notices
}

/// Every text of a JSON value, with the name of its field.
fn texts<'v>(value: &'v Value, name: &'v str, out: &mut Vec<(&'v str, &'v str)>) {
    match value {
        Value::String(text) => out.push((name, text)),
        Value::Array(items) => items.iter().for_each(|item| texts(item, name, out)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| texts(value, name, out)),
        _ => {}
    }
}

fn clean(value: &Value) {
    let mut all = Vec::new();
    texts(value, "", &mut all);
    for (name, text) in all {
        let bad =
            text.chars().find(|c| (c.is_control() && *c != '\n') || matches!(c, '\u{202e}' | '\u{2066}'));
        assert_eq!(bad, None, "{name}: {text:?}");
    }
}

/// How many alerts are shown and how many are said to be left out.
fn counted(shown: usize, text: &str) -> usize {
    let left_out = text.split_once('+').and_then(|(_, rest)| rest.split_once(" more"));
    shown + left_out.map_or(0, |(number, _)| number.parse().unwrap())
}

#[test]
fn slack_takes_it() {
    for notice in notices() {
        let payload = slack::payload(&notice);
        clean(&payload);
        let text = payload["text"].as_str().unwrap();
        assert!(!text.is_empty() && length(text) <= 3_000);
        let attachments = payload["attachments"].as_array().unwrap();
        let blocks = attachments[0]["blocks"].as_array().unwrap();
        assert_eq!(attachments.len(), 1);
        assert!(blocks.len() <= 50);
        assert!(length(&attachments[0]["blocks"].to_string()) <= 10_000);
        let mut shown = 0;
        for block in blocks {
            let text = block["text"]["text"].as_str().unwrap_or("none");
            assert!(!text.is_empty());
            match block["type"].as_str().unwrap() {
                "header" => assert!(length(text) <= 150 && block["text"]["type"] == "plain_text"),
                "section" => {
                    let fields = block["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
                    assert!(length(text) <= 3_000 && fields.len() <= 10);
                    assert!(fields.iter().all(|field| length(field["text"].as_str().unwrap()) <= 2_000));
                    shown += usize::from(!text.starts_with("*What to do*"));
                }
                "context" => assert!(block["elements"].as_array().unwrap().len() <= 10),
                other => panic!("{other}"),
            }
        }
        let all = payload.to_string();
        assert_eq!(counted(shown, &all.replace("*+", "")), notice.alerts.len());
        mentions_nobody(&payload);
    }
}

/// In what Slack takes for its markup nothing is one but what we write.
fn mentions_nobody(payload: &Value) {
    let mut all = Vec::new();
    // The header is no markup.
    for block in &payload["attachments"][0]["blocks"].as_array().unwrap()[1..] {
        texts(block, "", &mut all);
    }
    all.push(("text", payload["text"].as_str().unwrap()));
    for (_, text) in all {
        assert!(!text.contains(['<', '>']), "{text}");
        let rest = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
        assert!(!rest.contains('&'), "{text}");
    }
}

#[test]
fn discord_takes_it() {
    for notice in notices() {
        let payload = discord::payload(&notice);
        clean(&payload);
        let content = payload["content"].as_str().unwrap();
        let embeds = payload["embeds"].as_array().unwrap();
        let description = embeds[0]["description"].as_str().unwrap();
        let footer = embeds[0]["footer"]["text"].as_str().unwrap();
        assert!(!content.is_empty() && length(content) <= 2_000 && embeds.len() <= 10);
        assert!(length(description) <= 4_096 && length(footer) <= 2_048);
        assert!(length(description) + length(footer) <= 6_000);
        assert_eq!(payload["allowed_mentions"], serde_json::json!({"parse": []}));
        for mark in ["<", "@", "[", "||", "`", "#"] {
            let bare = content.matches(mark).count() + description.matches(mark).count();
            let escaped = format!("\\{}", &mark[..1]);
            let escaped = content.matches(&escaped).count() + description.matches(&escaped).count();
            assert!(bare <= escaped, "{mark} in {content}\n{description}");
        }
    }
}

#[test]
fn teams_takes_it() {
    for notice in notices() {
        let payload = teams::payload(&notice);
        clean(&payload);
        assert!(payload.to_string().len() <= 28_000);
        let card = &payload["attachments"][0];
        assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
        for block in card["content"]["body"].as_array().unwrap() {
            assert_eq!(block["type"], "RichTextBlock");
            assert!(block["inlines"].as_array().unwrap().iter().all(|run| run["type"] == "TextRun"));
        }
    }
}

#[test]
fn pagerduty_takes_it() {
    let key = Secret::new("0123456789abcdef0123456789abcdef");
    for notice in notices() {
        let event = pagerduty::payload(&notice, &key);
        clean(&event);
        assert!(event.to_string().len() <= 512_000);
        assert!(length(event["dedup_key"].as_str().unwrap()) <= 255);
        assert_eq!(event["routing_key"], key.expose());
        if notice.status == Status::Resolved {
            assert_eq!(event["event_action"], "resolve");
            continue;
        }
        assert_eq!(event["event_action"], "trigger");
        assert!(length(event["payload"]["summary"].as_str().unwrap()) <= 1_024);
        assert!(["critical", "warning", "info"].contains(&event["payload"]["severity"].as_str().unwrap()));
        let details = &event["payload"]["custom_details"];
        let shown = details["alerts"].as_array().unwrap().len() as u64;
        assert_eq!(shown + details["alerts_left_out"].as_u64().unwrap(), notice.alerts.len() as u64);
        let over = pagerduty::payload(&resolved(&notice, NOW), &key);
        assert_eq!(over["dedup_key"], event["dedup_key"]);
    }
}

#[test]
fn a_webhook_gets_what_fits() {
    for notice in notices() {
        let payload = webhook::payload(&notice);
        clean(&payload["data"]["alerts"]);
        assert!(payload.to_string().len() <= 100_000);
        let data = &payload["data"];
        let told = data["alerts"].as_array().unwrap().len();
        assert!(told > 0 || notice.alerts.is_empty());
        assert_eq!(told as u64 + data["alerts_left_out"].as_u64().unwrap(), notice.alerts.len() as u64);
    }
}

#[test]
fn labels_for_alertmanager_have_names_that_it_takes() {
    for notice in notices() {
        let mut known = std::collections::BTreeSet::new();
        for body in alertmanager::payloads(&notice, NOW) {
            for alert in serde_json::from_str::<Vec<Value>>(&body).unwrap() {
                clean(&alert);
                let labels = alert["labels"].as_object().unwrap();
                for name in labels.keys() {
                    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    assert!(!name.is_empty() && name.chars().all(good), "{name}");
                    assert!(!name.starts_with(|c: char| c.is_ascii_digit()), "{name}");
                }
                known.insert(alert["labels"].to_string());
                let ends = alert["endsAt"].as_str().unwrap();
                let over = notice.status == Status::Resolved;
                assert_eq!(ends <= "2015-10-21T07:28:00Z", over, "{ends}");
            }
        }
        assert_eq!(known.len(), notice.alerts.len());
    }
}

#[test]
fn labels_that_get_the_same_name_are_all_kept() {
    let names = ["a.b", "a-b", "a_b", "severity", "1st"];
    let labels = names.map(|name| (name.to_owned(), format!("of {name}"))).into();
    let bodies = alertmanager::payloads(&notice(vec![Item { labels, ..item(1, "") }]), NOW);
    let alerts: Value = serde_json::from_str(&bodies[0]).unwrap();
    let expected = serde_json::json!({
        "alertname": "KeyfleetKeyDisabled", "cluster": "keyfleet", "severity": "critical",
        "_1st": "of 1st", "a_b": "of a-b", "a_b_": "of a.b", "a_b__": "of a_b", "severity_": "of severity",
    });
    assert_eq!(alerts[0]["labels"], expected);
}

#[test]
fn a_message_says_what_happened_and_what_to_do() {
    let firing = notice(vec![item(1, "a"), item(2, "a")]);
    let [text, over] = [&firing, &resolved(&firing, NOW)].map(|notice| slack::payload(notice).to_string());
    for part in [
        "🔴 Critical: A key is disabled",
        "#e01e5a",
        "*Key 1 of a is disabled*",
        "0.3 · since 2015-10-21 07:27:00 UTC",
        "*model*\\na",
        "*What to do*\\nReplace the key.\"",
        "critical · key_disabled · keyfleet",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    for part in
        ["✅ Resolved: A key is disabled", "#2eb886", "over since 2015-10-21 07:28:00 UTC, after 1 min"]
    {
        assert!(over.contains(part), "no {part} in {over}");
    }
    for payload in [slack::payload, discord::payload, teams::payload] {
        assert!(payload(&firing).to_string().contains("Replace the key."));
        let over = payload(&resolved(&firing, NOW)).to_string();
        assert!(!over.contains("Replace the key.") && !over.contains("What to do"), "{over}");
    }
    let mut mixed = firing;
    mixed.alerts[0] = Item { status: Status::Resolved, ended_ms: Some(NOW), ..item(1, "a") };
    let mixed = slack::payload(&mixed).to_string();
    let (first, second) = (mixed.find("Key 2 of").unwrap(), mixed.find("✅ Key 1 of").unwrap());
    assert!(first < second, "{mixed}");
}
