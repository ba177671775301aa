//! The handling of one report as a span of its own trace, linked to the requests that the report tells of. It lasts until
//! its decisions hold.
//!
//! It goes through `tracing`: there are a few a second, so that what a subscriber costs does not matter here.

use keyfleet_core::message::Subject;
use keyfleet_core::outcome::Cause;
use keyfleet_core::trace::TraceParent;
use keyfleet_service::telemetry::{TARGET, context};
use opentelemetry::KeyValue;
use opentelemetry::trace::{TraceContextExt as _, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The span; one that is nowhere unless the trace of one of the requests is kept. The bus bounds how many there are.
/// Without NATS the bus is in this process, and no messaging system.
pub(super) fn span(traces: &[TraceParent], records: usize, epoch: u64, over_nats: bool) -> Span {
    if !traces.iter().any(|trace| trace.is_sampled()) {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: TARGET,
        "process report",
        otel.kind = "consumer",
        messaging.system = over_nats.then_some("nats"),
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.template = "rl.v1.ev",
        // The exporter makes texts of numbers without a sign.
        messaging.batch.message_count = i64::try_from(records).unwrap_or(i64::MAX),
        keyfleet.coordinator.epoch = i64::try_from(epoch).unwrap_or(i64::MAX),
    );
    for trace in traces.iter().filter(|trace| trace.is_sampled()) {
        span.add_link(context(*trace, TraceState::NONE, true));
    }
    span
}

/// Its ids, for the log; `None`: it is nowhere.
pub(super) fn ids(span: &Span) -> Option<(String, String)> {
    let context = span.context();
    let own = context.span().span_context().clone();
    own.is_valid().then(|| (own.trace_id().to_string(), own.span_id().to_string()))
}

/// Adds a decision to it.
pub(super) fn decided(
    span: &Span,
    scope: &'static str,
    subject: &Subject,
    cause: Cause,
    ttl_ms: Option<u64>,
) {
    if span.is_none() {
        return;
    }
    let mut attributes = vec![
        KeyValue::new("keyfleet.outcome.scope", scope),
        KeyValue::new("keyfleet.outcome.cause", cause.as_str()),
    ];
    if let Subject::Key(key) | Subject::KeyModel(key, _) = subject {
        attributes.push(KeyValue::new("keyfleet.key.id", key.as_str().to_owned()));
    }
    let cooldown = ttl_ms.map(|ms| std::time::Duration::from_millis(ms).as_secs_f64());
    attributes.push(match cooldown {
        Some(seconds) => KeyValue::new("keyfleet.cooldown", seconds),
        None => KeyValue::new("keyfleet.cooldown.open_ended", true),
    });
    span.add_event("keyfleet.blocked", attributes);
}
