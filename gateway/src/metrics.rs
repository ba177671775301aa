//! Counters and gauges, in the text format that Prometheus reads.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::StatusCode;
use keyfleet_core::outcome::Cause;
use keyfleet_service::reach::Reach;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::call::Surface;
use crate::sse::Usage;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    surface: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitLabels {
    by: &'static str,
    result: &'static str,
}

/// The metrics of one gateway.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    in_flight: Gauge,
    /// What `rate_limit` let in: of clients and of addresses; and what it refused.
    limited: [[Counter; 2]; 2],
    failures: Family<CauseLabel, Counter>,
    tokens: Family<DirectionLabel, Counter>,
    input_tokens: Counter,
    output_tokens: Counter,
    ttfb: Histogram,
    keys: Family<StateLabel, Gauge>,
    buffered: Gauge,
    waiting_reports: Gauge<u64, AtomicU64>,
    dropped_reports: Gauge<u64, AtomicU64>,
    dropped_lines: Gauge<u64, AtomicU64>,
    lookups: Counter,
    lease_waits: Gauge<u64, AtomicU64>,
    lease_refusals: Gauge<u64, AtomicU64>,
    lease_unanswered: Gauge<u64, AtomicU64>,
    unleasable: Gauge<u64, AtomicU64>,
    state_age: Gauge<f64, AtomicU64>,
    bus_up: Gauge,
    store_up: Gauge,
    reload_ok: Gauge,
}

/// Figures that are read when somebody asks.
pub(crate) struct Readings {
    pub(crate) keys: Vec<(&'static str, usize)>,
    pub(crate) buffered: usize,
    pub(crate) waiting_reports: u64,
    pub(crate) dropped_reports: u64,
    pub(crate) dropped_lines: u64,
    pub(crate) lease_waits: u64,
    pub(crate) lease_refusals: u64,
    pub(crate) lease_unanswered: u64,
    pub(crate) unleasable: u64,
    pub(crate) state_age: f64,
    pub(crate) reach: Reach,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("keyfleet");
        let tokens = Family::<DirectionLabel, Counter>::default();
        let of = |direction| tokens.get_or_create(&DirectionLabel { direction }).clone();
        let (input_tokens, output_tokens) = (of("input"), of("output"));
        let metrics = Self {
            limited: limited(&mut registry),
            requests: Family::default(),
            in_flight: Gauge::default(),
            failures: Family::default(),
            tokens,
            input_tokens,
            output_tokens,
            ttfb: Histogram::new(exponential_buckets(0.01, 2.0, 17)),
            keys: Family::default(),
            buffered: Gauge::default(),
            waiting_reports: Gauge::default(),
            dropped_reports: Gauge::default(),
            dropped_lines: Gauge::default(),
            lookups: Counter::default(),
            lease_waits: Gauge::default(),
            lease_refusals: Gauge::default(),
            lease_unanswered: Gauge::default(),
            unleasable: Gauge::default(),
            state_age: Gauge::default(),
            bus_up: Gauge::default(),
            store_up: Gauge::default(),
            reload_ok: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Client requests answered", metrics.requests.clone());
        registry.register("inflight_requests", "Client requests being answered", metrics.in_flight.clone());
        registry.register("upstream_failures", "Upstream attempts that failed", metrics.failures.clone());
        registry.register("tokens", "Tokens that the upstream counted", metrics.tokens.clone());
        registry.register(
            "time_to_first_byte_seconds",
            "Until the upstream's first byte",
            metrics.ttfb.clone(),
        );
        registry.register("keys", "Keys by state", metrics.keys.clone());
        registry.register("buffered_body_bytes", "Request bodies held in memory", metrics.buffered.clone());
        for (name, help, gauge) in [
            ("waiting_reports", "Attempts and owners that wait to be reported", &metrics.waiting_reports),
            ("dropped_reports", "Attempts and owners that found no room to wait", &metrics.dropped_reports),
            ("unleasable_buckets", "Buckets beyond what one gateway can lease", &metrics.unleasable),
            ("dropped_log_lines", "Log lines lost: their reader is slow or gone", &metrics.dropped_lines),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register("owner_lookups", "Owners asked of the store", metrics.lookups.clone());
        registry.register("lease_waits", "Waits of requests for leases", metrics.lease_waits.clone());
        registry.register(
            "lease_refusals",
            "Draws that found their quota spent",
            metrics.lease_refusals.clone(),
        );
        metrics.register_outages(&mut registry);
        registry.register(
            "config_last_reload_successful",
            "Whether the file on disk is the configuration in force",
            metrics.reload_ok.clone(),
        );
        metrics.reload_ok.set(1);
        Self { registry, ..metrics }
    }

    /// What tells that something is away.
    fn register_outages(&self, registry: &mut Registry) {
        registry.register(
            "lease_requests_unanswered",
            "Questions about leases in a row without an answer; 0: the coordinator answers",
            self.lease_unanswered.clone(),
        );
        registry.register(
            "state_age_seconds",
            "Since a leader was last heard; -1: never",
            self.state_age.clone(),
        );
        registry.register(
            "bus_up",
            "Whether both connections to NATS are up; 1 without NATS",
            self.bus_up.clone(),
        );
        registry.register(
            "store_up",
            "Whether Redis is connected, or the state file can be written; 1 without either",
            self.store_up.clone(),
        );
    }

    pub(crate) fn request_began(&self) {
        self.in_flight.inc();
    }

    pub(crate) fn request_ended(
        &self,
        surface: Surface,
        status: StatusCode,
        usage: Usage,
        ttfb: Option<Duration>,
    ) {
        self.in_flight.dec();
        let labels = RequestLabels { surface: surface.as_str(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        if usage != Usage::default() {
            self.input_tokens.inc_by(usage.input);
            self.output_tokens.inc_by(usage.output);
        }
        if let Some(ttfb) = ttfb {
            self.ttfb.observe(ttfb.as_secs_f64());
        }
    }

    /// A request that `rate_limit` concerns was let in, or refused.
    pub(crate) fn limited(&self, is_client: bool, admitted: bool) {
        self.limited[usize::from(!is_client)][usize::from(!admitted)].inc();
    }

    /// The store is asked who owns a resource.
    pub(crate) fn looked_up(&self) {
        self.lookups.inc();
    }

    pub(crate) fn attempt_failed(&self, cause: Cause) {
        self.failures.get_or_create(&CauseLabel { cause: cause.as_str() }).inc();
    }

    pub(crate) fn reloaded(&self, ok: bool) {
        self.reload_ok.set(i64::from(ok));
    }

    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// The text that a scraper gets.
    pub(crate) fn render(&self, readings: &Readings) -> String {
        for (state, count) in &readings.keys {
            self.keys.get_or_create(&StateLabel { state }).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.buffered.set(i64::try_from(readings.buffered).unwrap_or(i64::MAX));
        self.waiting_reports.set(readings.waiting_reports);
        self.dropped_reports.set(readings.dropped_reports);
        self.dropped_lines.set(readings.dropped_lines);
        self.lease_waits.set(readings.lease_waits);
        self.lease_refusals.set(readings.lease_refusals);
        self.lease_unanswered.set(readings.lease_unanswered);
        self.unleasable.set(readings.unleasable);
        self.state_age.set(readings.state_age);
        self.bus_up.set(i64::from(readings.reach.bus != Some(false)));
        self.store_up.set(i64::from(readings.reach.store != Some(false)));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn limited(registry: &mut Registry) -> [[Counter; 2]; 2] {
    let family = Family::<LimitLabels, Counter>::default();
    registry.register("rate_limited_requests", "Client requests under rate_limit", family.clone());
    let count = |by, result| family.get_or_create(&LimitLabels { by, result }).clone();
    ["client", "address"].map(|by| ["admitted", "refused"].map(|result| count(by, result)))
}
