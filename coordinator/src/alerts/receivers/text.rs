//! Texts for people. Names come from outside: they may hold anything, and be of any length.

use jiff::Timestamp;

use crate::alerts::notice::{Item, Notice, Severity, Status};

/// Of the labels of one alert.
pub(super) const MAX_LABELS: usize = 10;
/// Pieces of advice in one message: a message is about one rule, which gives one as a rule.
const MAX_ADVICE: usize = 3;

/// How a character is written, if not as itself.
pub(super) type Escape = fn(char) -> Option<&'static str>;

/// Every character as itself.
pub(super) fn plain(_: char) -> Option<&'static str> {
    None
}

/// The length of a text as those count it who count most: in units of UTF-16.
pub(super) fn length(text: &str) -> usize {
    text.encode_utf16().count()
}

/// A text on one line, escaped, and cut between two characters if it is longer than `max` then.
///
/// Control characters are left out, and so are those that turn the direction of what follows.
pub(super) fn line(text: &str, max: usize, escape: Escape) -> String {
    let mut out = String::new();
    let mut used = 0;
    // Where it still ends well with an ellipsis.
    let mut end = 0;
    for c in text.chars() {
        let c = if c.is_whitespace() { ' ' } else { c };
        if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            continue;
        }
        let escaped = escape(c);
        used += escaped.map_or(c.len_utf16(), length);
        if used > max {
            out.truncate(end);
            out.push('…');
            return out;
        }
        match escaped {
            Some(text) => out.push_str(text),
            None => out.push(c),
        }
        if used < max {
            end = out.len();
        }
    }
    out
}

/// What happened, in a few words.
pub(super) fn headline(notice: &Notice, max: usize, escape: Escape) -> String {
    let mark = match (notice.status, notice.severity) {
        (Status::Resolved, _) => "✅ Resolved",
        (Status::Firing, Severity::Critical) => "🔴 Critical",
        (Status::Firing, Severity::Warning) => "🟠 Warning",
        (Status::Firing, Severity::Info) => "🔵 Info",
    };
    format!("{mark}: {}", title(notice, max - length(mark) - 2, escape))
}

/// What kind of thing happened; never nothing, which Slack refuses.
pub(super) fn title(notice: &Notice, max: usize, escape: Escape) -> String {
    or(line(&notice.title, max, escape), || "Alert".to_owned())
}

fn or(text: String, otherwise: impl FnOnce() -> String) -> String {
    if text.trim().is_empty() { otherwise() } else { text }
}

/// For the bar beside a message.
pub(super) fn colour(notice: &Notice) -> u32 {
    match (notice.status, notice.severity) {
        (Status::Resolved, _) => 0x002e_b886,
        (Status::Firing, Severity::Critical) => 0x00e0_1e5a,
        (Status::Firing, Severity::Warning) => 0x00ec_b22e,
        (Status::Firing, Severity::Info) => 0x0036_c5f0,
    }
}

/// The alerts, those first that fire.
pub(super) fn ordered(notice: &Notice) -> impl Iterator<Item = &Item> {
    let of = |status| notice.alerts.iter().filter(move |item| item.status == status);
    of(Status::Firing).chain(of(Status::Resolved))
}

/// What an alert says, `✅` before it when it is over while others are not.
pub(super) fn summary(notice: &Notice, item: &Item, max: usize, escape: Escape) -> String {
    let mark = if item.status == notice.status { "" } else { "✅ " };
    let text =
        or(line(&item.summary, max - length(mark), escape), || title(notice, max - length(mark), escape));
    format!("{mark}{text}")
}

/// Its value, and since when or for how long.
pub(super) fn state(item: &Item, escape: Escape) -> String {
    let value = item.value.as_ref().map(|value| format!("{} · ", line(value, 100, escape)));
    let when = match (item.status, item.ended_ms) {
        (Status::Firing, _) => format!("since {}", utc(item.started_ms)),
        (Status::Resolved, None) => "over".to_owned(),
        (Status::Resolved, Some(ended)) => {
            format!("over since {}, after {}", utc(ended), span(ended.saturating_sub(item.started_ms)))
        }
    };
    format!("{}{when}", value.unwrap_or_default())
}

/// Its labels on one line.
pub(super) fn labels(item: &Item, escape: Escape) -> String {
    let pairs = item.labels.iter().take(MAX_LABELS);
    let pairs: Vec<_> = pairs
        .map(|(name, value)| format!("{}: {}", line(name, 60, escape), line(value, 120, escape)))
        .collect();
    pairs.join(" · ")
}

/// What to do, each advice once; nothing when it is over.
pub(super) fn advice(notice: &Notice) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::new();
    if notice.status == Status::Resolved {
        return all;
    }
    for item in &notice.alerts {
        let advice = item.advice.trim();
        if !advice.is_empty() && !all.contains(&advice) {
            all.push(advice);
            if all.len() == MAX_ADVICE {
                break;
            }
        }
    }
    all
}

/// What follows the alerts that are shown.
pub(super) fn more(count: usize) -> String {
    format!("+{count} more")
}

/// A moment for people.
fn utc(ms: i64) -> String {
    moment(ms).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A moment for programs.
pub(super) fn rfc3339(ms: i64) -> String {
    moment(ms).to_string()
}

/// Beyond the years of the calendar there is nothing that could be said better.
fn moment(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min"),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stars(c: char) -> Option<&'static str> {
        (c == '*').then_some("\\*")
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        for (text, max, expected) in [
            ("", 5, ""),
            ("12345", 5, "12345"),
            ("123456", 5, "1234…"),
            ("äöüäöü", 5, "äöüä…"),
            // An emoji is two units.
            ("12🔥4", 5, "12🔥4"),
            ("123🔥5", 5, "123…"),
            ("1234🔥", 5, "1234…"),
            ("🔥🔥🔥", 5, "🔥🔥…"),
            // An escape is not taken apart.
            ("12*4", 5, "12\\*4"),
            ("123*5", 5, "123…"),
            ("1234*", 5, "1234…"),
            ("a\nb\t\u{0}c\u{202e}d\u{1b}[0m", 20, "a b cd[0m"),
        ] {
            let cut = line(text, max, stars);
            assert_eq!(cut, expected, "{text:?}");
            assert!(length(&cut) <= max, "{text:?}");
        }
    }

    #[test]
    fn how_long_it_took_is_told_in_two_units() {
        for (seconds, expected) in [
            (-5, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_599, "59 min"),
            (3_900, "1 h 5 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds * 1_000), expected);
        }
        assert_eq!(utc(1_445_412_480_000), "2015-10-21 07:28:00 UTC");
        assert_eq!(rfc3339(i64::MAX), "1970-01-01T00:00:00Z");
    }
}
