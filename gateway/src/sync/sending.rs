//! The sending of one report as a span of its own trace, linked to the attempts that the report tells of; the
//! coordinator's handling is linked to the same. It lasts until the report is stored.
//!
//! It goes through `tracing`: there are a few a second, so that what a subscriber costs does not matter here.

use keyfleet_core::message::Report;
use keyfleet_service::telemetry::{TARGET, context};
use opentelemetry::trace::TraceState;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The span; one that is nowhere unless the trace of one of the attempts is kept. Without NATS, nothing is sent.
pub(super) fn span(report: &Report, over_nats: bool) -> Span {
    if !over_nats || !report.traces.iter().any(|trace| trace.is_sampled()) {
        return Span::none();
    }
    // Its own context does not travel, so that it is no producer.
    let span = tracing::info_span!(
        target: TARGET,
        "send rl.v1.ev",
        otel.kind = "client",
        otel.status_code = tracing::field::Empty,
        messaging.system = "nats",
        messaging.operation.name = "send",
        messaging.operation.type = "send",
        messaging.destination.template = "rl.v1.ev",
        messaging.batch.message_count = i64::try_from(report.records.len()).unwrap_or(i64::MAX),
    );
    for trace in report.traces.iter().filter(|trace| trace.is_sampled()) {
        span.add_link(context(*trace, TraceState::NONE, true));
    }
    span
}
