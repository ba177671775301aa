//! Spans and metrics for an OTLP collector. Without an endpoint there is no exporter and no thread, and [`get`] says so;
//! metrics wait for somebody to ask for them besides ([`metrics`](fn@metrics)).
//!
//! Which traces are kept is decided where they begin ([`Telemetry::samples`]). Whoever has finished something that is
//! kept leaves a [`Record`] of it: that never waits, and one thread makes spans of the records and sends them. What has
//! no room there is dropped and counted ([`tell`]).
//!
//! Only what is rare goes through `tracing` ([`TARGET`]): a subscriber costs every request something, sampled or not.

mod destination;
mod export;
mod metrics;
mod resource;
mod sampler;
mod settings;
mod tls;
mod variables;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keyfleet_core::trace::{TraceId, TraceParent};
use opentelemetry::trace::{SpanContext, TraceFlags, TraceState, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler as SdkSampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor,
};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use self::export::Exporter;
pub use self::metrics::Push;
use self::sampler::Sampler;
use self::settings::Settings;
use self::variables::Variables;
use crate::config;
use crate::exposition::{Sheet, Written};
use crate::logging::fresh::Fresh;

/// The target of `tracing` spans that are exported; no others are.
pub const TARGET: &str = "keyfleet::traced";

/// How long the end of the process waits for the collector; with what metrics may take before, it is five seconds.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// That of this process, if it traces.
static TELEMETRY: OnceLock<Telemetry> = OnceLock::new();
/// And what exports its metrics.
static METRICS: OnceLock<Push> = OnceLock::new();

/// Something finished, of which spans are made on the thread that sends them.
pub trait Record: Send {
    /// How many spans it makes.
    fn spans(&self) -> usize;

    /// Appends them.
    fn write(self: Box<Self>, out: &mut Vec<SpanData>);
}

/// What traces a process.
#[derive(Debug)]
pub struct Telemetry {
    exporter: Arc<Exporter>,
    sampler: Sampler,
    reads_context: bool,
    tracer: SdkTracer,
    scope: InstrumentationScope,
}

impl Telemetry {
    /// Whether a trace is kept: one that begins here, or one that `parent` is a step of.
    pub fn samples(&self, parent: Option<TraceParent>, trace: TraceId) -> bool {
        self.sampler.samples(parent, trace)
    }

    /// Whether a client's `traceparent` counts.
    pub fn reads_context(&self) -> bool {
        self.reads_context
    }

    /// Who makes our spans.
    pub fn scope(&self) -> &InstrumentationScope {
        &self.scope
    }

    /// Takes what is finished, or drops and counts it.
    pub fn submit(&self, record: Box<dyn Record>) {
        self.exporter.push(record);
    }
}

/// Begins to trace, if an endpoint is set. What the operator should know is said when there are logs.
pub(crate) fn init(program: &str, config: &config::Telemetry) -> Vec<String> {
    let settings = Settings::read(config, |name| std::env::var(name).ok());
    let mut warnings = settings.warnings;
    if settings.target.is_none() && settings.metrics.is_none() {
        return warnings;
    }
    let mut env = Variables::new(|name: &str| std::env::var(name).ok());
    let resource = resource::resource(program, &mut env);
    warnings.append(&mut env.warnings);
    if let Some(target) = settings.metrics {
        // A second program in one process does not exist.
        drop(METRICS.set(Push::new(&resource, target)));
    }
    let Some(target) = settings.target else { return warnings };
    let exporter = match export::start(&resource, target) {
        Ok(exporter) => exporter,
        Err(problem) => {
            warnings.push(format!("there are no traces: {problem}"));
            return warnings;
        }
    };
    let scope = InstrumentationScope::builder("keyfleet").with_version(env!("CARGO_PKG_VERSION")).build();
    // What comes here was chosen by the requests that it is about.
    let provider = SdkTracerProvider::builder()
        .with_sampler(SdkSampler::AlwaysOn)
        .with_span_processor(Processor(exporter.clone()))
        .build();
    let tracer = provider.tracer_with_scope(scope.clone());
    let (sampler, reads_context) = (settings.sampler, settings.reads_context);
    drop(TELEMETRY.set(Telemetry { exporter, sampler, reads_context, tracer, scope }));
    warnings
}

/// What traces this process; `None`: nothing does.
pub fn get() -> Option<&'static Telemetry> {
    TELEMETRY.get()
}

/// What exports the metrics of this process; `None`: nothing does.
pub fn metrics() -> Option<&'static Push> {
    METRICS.get()
}

/// Tells a scraper what no collector got.
pub fn tell(sheet: &mut Sheet<'_>) -> Written {
    let help = "Spans that the trace collector did not take, or not in time";
    sheet.counter("dropped_spans", help, dropped_spans())?;
    let help = "Exports of these figures that the collector did not take, or not in time";
    sheet.counter("failed_metric_exports", help, metrics().map_or(0, Push::failed))
}

fn dropped_spans() -> u64 {
    get().map_or(0, |telemetry| telemetry.exporter.dropped())
}

/// Waits until what is finished is sent, but not for a collector that has stopped.
pub(crate) async fn flush() {
    if let Some(telemetry) = get()
        && tokio::time::timeout(LAST_SPANS, telemetry.exporter.flush()).await.is_err()
    {
        let dropped = telemetry.exporter.dropped() + telemetry.exporter.unsent();
        tracing::warn!(dropped, "the trace collector did not take the last spans in time");
    }
}

/// What of `tracing` goes to the collector.
pub(crate) fn layer<S>() -> Option<impl Layer<S>>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_opentelemetry::layer()
        .with_tracer(get()?.tracer.clone())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false);
    let ours = filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET);
    // Without a level, whatever others have to say below it would be asked for.
    Some(layer.with_filter(Fresh(ours.with_max_level_hint(LevelFilter::INFO))))
}

/// A step of a trace, as OpenTelemetry has it.
pub fn context(step: TraceParent, state: TraceState, is_remote: bool) -> SpanContext {
    let flags = if step.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let (trace, span) = (step.trace_id().as_u128(), step.span_id().as_u64());
    SpanContext::new(trace.into(), span.into(), flags, is_remote, state)
}

impl Record for SpanData {
    fn spans(&self) -> usize {
        1
    }

    fn write(self: Box<Self>, out: &mut Vec<SpanData>) {
        out.push(*self);
    }
}

/// From the SDK, which `tracing` writes to, into the one queue.
#[derive(Debug)]
struct Processor(Arc<Exporter>);

impl SpanProcessor for Processor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.push(Box::new(span));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}
