//! Reads `alerts`, and where rules fire from `monitoring.alert_thresholds`.

use std::collections::BTreeMap;
use std::time::Duration;

use keyfleet_core::alert::mute::QuietHours;
use keyfleet_core::alert::seen::Thresholds;
use keyfleet_core::alert::{Policy, Rule, Severity, Timing};

use super::groups::proxy_url;
use super::print::quoted;
use super::reader::{Field, Section};
use super::receivers;
use super::schema::Alerts;

const DAY: u64 = 86_400;
pub(super) const SEVERITIES: [(&str, Severity); 3] =
    [("info", Severity::Info), ("warning", Severity::Warning), ("critical", Severity::Critical)];

pub(super) fn alerts(s: &mut Section<'_>, thresholds: Thresholds) -> Alerts {
    let mut alerts = s.section("alerts");
    let proxy_url = proxy_url(&mut alerts);
    let receivers = receivers::read(&alerts.field("receivers"), proxy_url.as_ref());
    let (recipients, receivers) = receivers.into_iter().unzip();
    let policy = Policy {
        group_wait: alerts.seconds("group_wait_secs", 0..=DAY, 30),
        group_interval: alerts.seconds("group_interval_secs", 0..=DAY, 300),
        repeat_interval: alerts.seconds("repeat_interval_secs", 1..=30 * DAY, 4 * 3_600),
        quiet_hours: quiet_hours(&alerts.field("quiet_hours")),
        timings: timings(alerts.section("rules")),
        receivers: recipients,
    };
    let heartbeat_url = receivers::url(&mut alerts, "heartbeat_url");
    alerts.finish();
    Alerts { policy, thresholds, receivers, proxy_url, heartbeat_url }
}

fn quiet_hours(field: &Field<'_>) -> Option<QuietHours> {
    if !field.is_set() {
        field.show("null");
        return None;
    }
    let mut hours = field.section();
    let (from, to, zone) = (hours.field("from"), hours.field("to"), hours.field("zone"));
    hours.finish();
    for (name, time) in [("from", &from), ("to", &to)] {
        if !time.is_set() && !field.has_mistake() {
            field.problem(format_args!("`{name}` is missing; add it, such as \"22:00\""));
        }
    }
    let name = zone.name().unwrap_or_else(|| "UTC".to_owned());
    let (from, until) = (minute(&from)?, minute(&to)?);
    if from == until {
        // As a span it would be all day, and no warning would ever be told.
        to.problem("the same time as `from`; give a later or an earlier one, or remove `quiet_hours`");
        return None;
    }
    zone.show(quoted(&name));
    let found = QuietHours::in_zone(from, until, &name);
    if found.is_none() {
        zone.problem("no time zone of that name; give one such as Europe/Berlin");
    }
    found
}

/// A time of the day, in minutes after midnight.
fn minute(field: &Field<'_>) -> Option<u16> {
    let text = field.name()?;
    let time = || {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
        (hour < 24 && minute < 60).then_some(hour * 60 + minute)
    };
    field.show(quoted(&text));
    time().or_else(|| field.expected("a time of the day such as \"22:00\""))
}

fn timings(mut rules: Section<'_>) -> BTreeMap<Rule, Timing> {
    let mut timings = BTreeMap::new();
    for rule in Rule::ALL {
        let field = rules.field(rule.as_str());
        if !field.is_set() {
            continue;
        }
        let usual = rule.timing();
        let mut own = field.section();
        let enabled = own.field("enabled");
        let is_enabled = enabled.flag().unwrap_or(usual.enabled);
        enabled.show(is_enabled);
        let severity = own.field("severity");
        let how_bad = severity.choice(&SEVERITIES).unwrap_or(usual.severity);
        severity.show(how_bad.as_str());
        let timing = Timing {
            enabled: is_enabled,
            wait: own.seconds("for_secs", 0..=DAY, usual.wait.as_secs()),
            keep: own.seconds("keep_firing_for_secs", 0..=DAY, usual.keep.as_secs()),
            severity: how_bad,
        };
        own.finish();
        timings.insert(rule, timing);
    }
    rules.finish();
    timings
}

/// Where rules fire. Existing files give the time in milliseconds.
pub(super) fn thresholds(monitoring: &mut Section<'_>) -> Thresholds {
    let usual = Thresholds::default();
    let mut s = monitoring.section("alert_thresholds");
    let unhealthy_keys = s.number("unhealthy_keys", 0..=usize::MAX, usual.unhealthy_keys);
    let error_rate = s.number("error_rate", 0.001..=1.0, usual.error_rate);
    let in_ms = s.field("response_time_ms");
    let in_seconds = s.field("response_time_secs");
    if in_ms.is_set() && in_seconds.is_set() {
        in_ms.problem("`response_time_secs` is set as well; remove one of the two");
    }
    let response_time = if let Some(ms) = in_ms.number(&(1..=3_600_000_u64)) {
        in_ms.show(ms);
        Duration::from_millis(ms)
    } else {
        let seconds = in_seconds.number(&(0.001..=3_600.0)).unwrap_or(usual.response_time.as_secs_f64());
        in_seconds.show(seconds);
        Duration::from_secs_f64(seconds)
    };
    s.finish();
    Thresholds { unhealthy_keys, error_rate, response_time }
}
