//! Reads the options at the top level.

use std::collections::BTreeMap;
use std::time::Duration;

use keyfleet_core::alert::seen::Thresholds;
use keyfleet_core::id::Model;

use super::alerts::thresholds;
use super::print::{quoted, without_user};
use super::reader::{Field, Section};
use super::schema::{
    Bare429, Coordinator, Failure, Monitoring, OtlpProtocol, Quota, RateLimit, Secret, Telemetry,
    WhenUnleased,
};
use super::server::host;

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

pub(super) fn monitoring(s: &mut Section<'_>) -> (Monitoring, Thresholds) {
    let mut monitoring = s.section("monitoring");
    let health_check_interval = monitoring.seconds("health_check_interval_secs", 1..=DAY, 30);
    let thresholds = thresholds(&mut monitoring);
    monitoring.finish();
    (Monitoring { health_check_interval }, thresholds)
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

pub(super) fn quota(s: &mut Section<'_>) -> Quota {
    let mut quota = s.section("quota");
    let field = quota.field("when_unleased");
    let unleased = field.text().and_then(|text| when_unleased(&text, &field));
    match unleased {
        None => field.show("null"),
        Some(WhenUnleased::Closed) => field.show("closed"),
        Some(WhenUnleased::Open) => field.show("open"),
        Some(WhenUnleased::Reserve(share)) => field.show(quoted(&format!("reserve({share})"))),
    }
    let lease_wait = Duration::from_millis(quota.number("lease_wait_ms", 0..=60_000, 50));
    let max_replicas = quota.number("max_replicas", 1..=10_000, 10);
    let learn = quota.field("learn_limits");
    let learn_limits = learn.flag().unwrap_or(true);
    learn.show(learn_limits);
    quota.finish();
    Quota {
        configured: unleased.unwrap_or(WhenUnleased::Closed),
        learned: unleased.unwrap_or(WhenUnleased::Open),
        lease_wait,
        max_replicas,
        learn_limits,
    }
}

fn when_unleased(text: &str, field: &Field<'_>) -> Option<WhenUnleased> {
    let share = || {
        let share = text.strip_prefix("reserve(")?.strip_suffix(')')?.trim().parse().ok()?;
        (0.01..=0.9).contains(&share).then_some(WhenUnleased::Reserve(share))
    };
    match text {
        "closed" => Some(WhenUnleased::Closed),
        "open" => Some(WhenUnleased::Open),
        _ => {
            share().or_else(|| field.expected("closed, open, or reserve(0.1) with a share from 0.01 to 0.9"))
        }
    }
}

/// The listener of the coordinator, which is where the gateway's is unless it is said otherwise.
pub(super) fn coordinator(s: &mut Section<'_>, gateway_host: &str) -> Coordinator {
    let mut coordinator = s.section("coordinator");
    let host = host(&coordinator.field("host"), gateway_host);
    let port = coordinator.number("port", 0..=u16::MAX, 4807);
    coordinator.finish();
    Coordinator { host, port }
}

/// Traces, and metrics over OTLP. What the standard's variables say comes before all of this but `propagate_upstream`.
pub(super) fn telemetry(s: &mut Section<'_>) -> Telemetry {
    let mut telemetry = s.section("telemetry");
    let given = telemetry.secret("endpoint");
    let endpoint = given.as_ref().and_then(|(text, field)| field.url(text.expose(), &["http", "https"]));
    match (&given, &endpoint) {
        (Some((_, field)), Some(url)) => field.show(quoted(&without_user(url))),
        _ => telemetry.field("endpoint").show("null"),
    }
    let protocol =
        telemetry.choice("protocol", &[("http/protobuf", OtlpProtocol::Http), ("grpc", OtlpProtocol::Grpc)]);
    let field = telemetry.field("metrics");
    let metrics = field.flag().unwrap_or(false);
    field.show(metrics);
    let sampling_ratio = telemetry.number("sampling_ratio", 0.0..=1.0, 1.0);
    let field = telemetry.field("propagate_upstream");
    let propagate_upstream = field.flag().unwrap_or(false);
    field.show(propagate_upstream);
    telemetry.finish();
    let endpoint = endpoint.map(|url| Secret::new(url.as_str()));
    Telemetry { endpoint, protocol, metrics, sampling_ratio, propagate_upstream }
}
