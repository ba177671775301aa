//! What `coordinator alerts` prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use coordinator::alerts::view::{Alert, GivenUp, View};
use keyfleet_core::time::Utc;

use super::table::plain;

pub(super) fn list(view: &View) -> String {
    let mut text = String::new();
    if view.alerts.is_empty() {
        text.push_str("nothing is wrong\n");
    }
    for Alert { rule, state, severity, labels, summary, advice, seconds, muted, .. } in &view.alerts {
        let muted = muted.as_ref().map_or_else(String::new, |why| format!(", {}", plain(why)));
        let (rule, state, severity) = (plain(rule), plain(state), plain(severity));
        let _ = writeln!(text, "{severity:<8} {rule}{}: {state} for {seconds} s{muted}", labelled(labels));
        let _ = writeln!(text, "    {}", plain(summary));
        if state == "firing" {
            let _ = writeln!(text, "    {}", plain(advice));
        }
    }
    for silence in &view.silences {
        let (of, by, why) = (labelled(&silence.matchers), plain(&silence.author), plain(&silence.reason));
        let (number, left) = (silence.number, silence.seconds_left);
        let _ = writeln!(text, "silence {number}{of}: {left} s left; {why} ({by})");
    }
    for waiting in &view.outbox {
        let (to, rule, attempts) = (plain(&waiting.receiver), plain(&waiting.rule), waiting.attempts);
        let why = waiting.why.as_deref().map_or_else(|| "not tried yet".to_owned(), plain);
        let _ = writeln!(
            text,
            "undelivered: {rule} to {to} for {} s, {attempts} attempts: {why}",
            waiting.seconds
        );
    }
    for GivenUp { receiver, rule, alerts, seconds_ago, why } in &view.given_up {
        let (to, rule, why) = (plain(receiver), plain(rule), plain(why));
        let _ = writeln!(text, "given up {seconds_ago} s ago: {rule} to {to}, {alerts} alerts: {why}");
    }
    if view.overflow > 0 {
        let _ = writeln!(text, "{} more were left out for want of room", view.overflow);
    }
    text
}

pub(super) fn history(view: &View) -> String {
    let mut text = String::new();
    if view.history.is_empty() {
        text.push_str("nothing was wrong\n");
    }
    for past in &view.history {
        let at = started(past.started_ms);
        let (rule, of, summary) = (plain(&past.rule), labelled(&past.labels), plain(&past.summary));
        let _ = writeln!(text, "{at}  {rule}{of}: {summary}, for {} s", past.seconds);
    }
    text
}

/// As a date.
fn started(ms: i64) -> String {
    Utc::from_ms(ms).to_string()
}

fn labelled(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<_> =
        labels.iter().map(|(name, value)| format!("{}={}", plain(name), plain(value))).collect();
    if labels.is_empty() { String::new() } else { format!(" {}", labels.join(" ")) }
}

#[cfg(test)]
mod tests {
    use coordinator::alerts::view::{Past, Waiting};

    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_what_to_do_and_no_name_can_break_it() {
        let alert = Alert {
            fingerprint: "f".to_owned(),
            rule: "pool_low".to_owned(),
            state: "firing".to_owned(),
            severity: "warning".to_owned(),
            labels: [("model".to_owned(), "m\u{1b}[2J".to_owned())].into(),
            summary: "1 of 10 keys can serve it".to_owned(),
            advice: "Add projects.".to_owned(),
            seconds: 61,
            muted: Some("silenced".to_owned()),
        };
        let waiting = Waiting {
            receiver: "ops".to_owned(),
            rule: "pool_low".to_owned(),
            attempts: 2,
            seconds: 7,
            why: Some("status 503".to_owned()),
        };
        let given_up = GivenUp {
            receiver: "ops".to_owned(),
            rule: "pool_low".to_owned(),
            alerts: 3,
            seconds_ago: 9,
            why: "status 400".to_owned(),
        };
        let past = Past {
            rule: "pool_low".to_owned(),
            labels: BTreeMap::new(),
            summary: "gone".to_owned(),
            started_ms: 0,
            ended_ms: 5_000,
            seconds: 5,
        };
        let view = View {
            alerts: vec![alert],
            outbox: vec![waiting],
            given_up: vec![given_up],
            history: vec![past],
            ..View::default()
        };
        assert_eq!(
            list(&view).lines().collect::<Vec<_>>(),
            [
                "warning  pool_low model=m\u{fffd}[2J: firing for 61 s, silenced",
                "    1 of 10 keys can serve it",
                "    Add projects.",
                "undelivered: pool_low to ops for 7 s, 2 attempts: status 503",
                "given up 9 s ago: pool_low to ops, 3 alerts: status 400",
            ]
        );
        assert_eq!(history(&view), "1970-01-01T00:00:00Z  pool_low: gone, for 5 s\n");
        assert_eq!(list(&View::default()), "nothing is wrong\n");
    }
}
