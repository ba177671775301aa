//! Reads the options at the top level.

use std::collections::BTreeMap;
use std::time::Duration;

use keyfleet_core::id::Model;

use super::print::{quoted, without_user};
use super::reader::{Field, Section};
use super::schema::{Bare429, Failure, Monitoring, RateLimit};

const DAY: u64 = 86_400;

pub(super) fn failure(s: &mut Section<'_>) -> Failure {
    let mut breaker = s.section("circuit_breaker");
    let breaker_failures = breaker.number("failure_threshold", 1..=u32::MAX, 5);
    let breaker_recovery = breaker.seconds("recovery_timeout_secs", 1..=DAY, 2);
    let breaker_successes = breaker.number("success_threshold", 1..=u32::MAX, 1);
    breaker.finish();
    Failure {
        internal_retries: s.number("internal_retries", 0..=100, 2),
        max_failures: s.number("max_failures_threshold", 1..=u32::MAX, 3),
        temporary_block: Duration::from_secs(60 * s.number("temporary_block_minutes", 1..=30 * 24 * 60, 5)),
        bare_429: s.choice(
            "rate_limit_behavior",
            &[("RetryNextKey", Bare429::RetryNextKey), ("BlockUntilMidnight", Bare429::BlockUntilMidnight)],
        ),
        breaker_failures,
        breaker_successes,
        breaker_recovery,
    }
}

pub(super) fn rate_limit(s: &mut Section<'_>) -> Option<RateLimit> {
    let field = s.field("rate_limit");
    if !field.is_set() {
        field.show("null");
        return None;
    }
    let mut limit = field.section();
    let requests = limit.field("requests_per_minute");
    let burst = limit.field("burst_size");
    limit.finish();
    if !requests.is_set() && !field.has_mistake() {
        field.problem("`requests_per_minute` is missing; add it, or remove `rate_limit`");
    }
    let requests_per_minute = requests.number(&(1..=u32::MAX))?;
    let burst_size = burst.number(&(1..=u32::MAX)).unwrap_or(requests_per_minute);
    requests.show(requests_per_minute);
    burst.show(burst_size);
    Some(RateLimit { requests_per_minute, burst_size })
}

pub(super) fn monitoring(s: &mut Section<'_>) -> Monitoring {
    let mut monitoring = s.section("monitoring");
    let health_check_interval = monitoring.seconds("health_check_interval_secs", 1..=DAY, 30);
    let thresholds = monitoring.field("alert_thresholds");
    for (_, field) in thresholds.entries() {
        if let Some(text) = field.text() {
            field.show(quoted(&text));
        }
    }
    thresholds.has_no_effect_yet();
    monitoring.finish();
    Monitoring { health_check_interval }
}

pub(super) fn fallbacks(s: &mut Section<'_>) -> BTreeMap<Model, Vec<Model>> {
    let field = s.field("fallbacks");
    let mut fallbacks = BTreeMap::new();
    for (name, list) in field.entries() {
        let Some(from) = model(&name, &list) else { continue };
        let mut targets = Vec::new();
        for element in list.elements() {
            match element.name().and_then(|text| model(&text, &element)) {
                Some(to) if to == from => element.problem("a model cannot stand in for itself; remove it"),
                Some(to) if targets.contains(&to) => element.problem("listed twice; remove one"),
                Some(to) => {
                    element.show(quoted(to.as_str()));
                    targets.push(to);
                }
                None => {}
            }
        }
        fallbacks.insert(from, targets);
    }
    if fallbacks.is_empty() {
        field.show("{}");
    }
    fallbacks
}

/// A model's name or a pattern of names, without the prefix that only resource names have.
pub(super) fn model(text: &str, field: &Field<'_>) -> Option<Model> {
    let name = text.strip_prefix("models/").unwrap_or(text);
    if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return field.expected("the name of a model, without spaces");
    }
    Some(Model::new(name))
}

/// `limits` of the whole, a group or a project.
pub(super) fn limits(field: &Field<'_>) {
    for entry in field.elements() {
        let Some(mut s) = entry.entry() else { continue };
        let models = s.field("models");
        let patterns = if models.is_text() { vec![models] } else { models.elements() };
        for pattern in patterns {
            if let Some(name) = pattern.name().and_then(|text| model(&text, &pattern)) {
                pattern.show(quoted(name.as_str()));
            }
        }
        for dimension in ["rpm", "tpm", "rpd"] {
            let limit = s.field(dimension);
            if let Some(limit_value) = limit.number(&(1..=u64::MAX)) {
                limit.show(limit_value);
            }
        }
        s.finish();
    }
    field.has_no_effect_yet();
}

/// Options of a later version, which already must be right.
pub(super) fn later(s: &mut Section<'_>) {
    service(s, "redis_url", &["redis", "rediss"]);
    service(s, "nats_url", &["nats", "tls", "ws", "wss"]);
    let prefix = s.field("redis_key_prefix");
    if let Some(text) = prefix.text() {
        prefix.show(quoted(&text));
    }
    prefix.has_no_effect_yet();
    limits(&s.field("limits"));

    let mut coordinator = s.section("coordinator");
    let host = coordinator.field("host");
    if let Some(text) = host.name() {
        host.show(quoted(&text));
    }
    let port = coordinator.field("port");
    if let Some(number) = port.number(&(0..=u16::MAX)) {
        port.show(number);
    }
    coordinator.field.has_no_effect_yet();
    coordinator.finish();

    let mut quota = s.section("quota");
    let wait = quota.field("lease_wait_ms");
    if let Some(number) = wait.number(&(0..=60_000_u64)) {
        wait.show(number);
    }
    let unleased = quota.field("when_unleased");
    if let Some(text) = unleased.name() {
        unleased.show(quoted(&text));
    }
    quota.field.has_no_effect_yet();
    quota.finish();
}

/// The address of a server of ours, which may hold a password.
fn service(s: &mut Section<'_>, name: &str, schemes: &[&str]) {
    let Some((secret, field)) = s.secret(name) else { return };
    for text in secret.expose().split(',') {
        if let Some(url) = field.url(text.trim(), schemes) {
            field.show(quoted(&without_user(&url)));
        }
    }
    field.has_no_effect_yet();
}
