//! What the standard's environment variables and the configuration say about traces. The variables come first. Those
//! about headers, timeouts, compression and the resource are read by the SDK.

use std::time::Duration;

use super::metrics;
use super::sampler::Sampler;
use super::tls::Files;
use super::variables::{Signal, Variables};
use crate::config::{self, OtlpProtocol, Secret};

/// What to do.
#[derive(Debug)]
pub(super) struct Settings {
    /// `None`: trace nothing.
    pub(super) target: Option<Target>,
    pub(super) sampler: Sampler,
    /// Whether a client's `traceparent` counts.
    pub(super) reads_context: bool,
    /// `None`: export no metrics.
    pub(super) metrics: Option<metrics::Target>,
    /// What is set and not understood.
    pub(super) warnings: Vec<String>,
}

/// Where spans go, and how many wait.
#[derive(Debug, PartialEq)]
pub(super) struct Target {
    pub(super) protocol: OtlpProtocol,
    /// `None`: the SDK reads the variable.
    pub(super) endpoint: Option<String>,
    /// Whether gRPC is encrypted.
    pub(super) tls: bool,
    /// Whom to trust, and who we are.
    pub(super) files: Files,
    /// Spans that wait.
    pub(super) queue: usize,
    /// Spans that go together.
    pub(super) batch: usize,
    /// How long spans wait for company.
    pub(super) delay: Duration,
    /// How long the collector may take for one batch, with every repetition.
    pub(super) timeout: Duration,
    /// How long it may take for one answer.
    pub(super) patience: Duration,
}

impl Settings {
    /// Reads both.
    pub(super) fn read(config: &config::Telemetry, variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut env = Variables::new(variable);
        if env.text("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            let sampler = Sampler::ratio(0.0);
            return Self { target: None, sampler, reads_context: false, metrics: None, warnings: Vec::new() };
        }
        let target = is_on(&env).then(|| target(&mut env, config)).flatten();
        let sampler = sampler(&mut env, config.sampling_ratio);
        let reads_context = reads_context(&mut env);
        // A process that does not trace has nothing to complain about.
        let of_traces = std::mem::take(&mut env.warnings);
        let of_traces = if target.is_some() { of_traces } else { Vec::new() };
        let metrics = metrics::Target::read(&mut env, config);
        let warnings = [of_traces, env.warnings].concat();
        Self { target, sampler, reads_context, metrics, warnings }
    }
}

fn is_on(env: &Variables<impl Fn(&str) -> Option<String>>) -> bool {
    env.exports("OTEL_TRACES_EXPORTER").unwrap_or(true)
}

/// Numbers are at most what a day of a busy gateway makes; nobody means more.
fn target(
    env: &mut Variables<impl Fn(&str) -> Option<String>>,
    config: &config::Telemetry,
) -> Option<Target> {
    let named = env.otlp(Signal::Traces, "ENDPOINT");
    let configured = config.endpoint.as_ref().filter(|_| named.is_none());
    let url = named.as_ref().map(|(_, url)| url.as_str()).or(configured.map(Secret::expose))?;
    let tls = !url.starts_with("http://");
    let protocol = env.protocol(Signal::Traces, config.protocol);
    let files = env.files(Signal::Traces);
    let endpoint = configured.map(|base| match protocol {
        OtlpProtocol::Http => format!("{}/v1/traces", base.expose().trim_end_matches('/')),
        OtlpProtocol::Grpc => base.expose().to_owned(),
    });
    let queue = env.number("OTEL_BSP_MAX_QUEUE_SIZE", &1, 2_048);
    let batch = env.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &1, 512).min(queue);
    let delay = Duration::from_millis(env.number("OTEL_BSP_SCHEDULE_DELAY", &1, 5_000));
    let timeout = Duration::from_millis(env.number("OTEL_BSP_EXPORT_TIMEOUT", &1, 30_000));
    let patience = env.patience(Signal::Traces);
    Some(Target { protocol, endpoint, tls, files, queue, batch, delay, timeout, patience })
}

fn sampler(env: &mut Variables<impl Fn(&str) -> Option<String>>, configured: f64) -> Sampler {
    let Some(name) = env.text("OTEL_TRACES_SAMPLER") else { return Sampler::parent_based(configured) };
    let ratio = match env.text("OTEL_TRACES_SAMPLER_ARG").map(|text| text.parse::<f64>()) {
        Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
        None => 1.0,
        Some(_) => {
            env.warnings.push("OTEL_TRACES_SAMPLER_ARG: not a number from 0 to 1; 1 is used".to_owned());
            1.0
        }
    };
    match name.as_str() {
        "always_on" => Sampler::ratio(1.0),
        "always_off" => Sampler::ratio(0.0),
        "traceidratio" => Sampler::ratio(ratio),
        "parentbased_always_on" => Sampler::parent_based(1.0),
        "parentbased_always_off" => Sampler::parent_based(0.0),
        "parentbased_traceidratio" => Sampler::parent_based(ratio),
        _ => {
            let known = "always_on, always_off, traceidratio, or one of these behind parentbased_";
            env.warnings.push(format!("OTEL_TRACES_SAMPLER: not {known}; parentbased_always_on is used"));
            Sampler::parent_based(1.0)
        }
    }
}

fn reads_context(env: &mut Variables<impl Fn(&str) -> Option<String>>) -> bool {
    let Some(names) = env.text("OTEL_PROPAGATORS") else { return true };
    for name in names.split(',').map(str::trim) {
        if !matches!(name, "tracecontext" | "baggage" | "none") {
            env.warnings.push("OTEL_PROPAGATORS: only tracecontext is understood here".to_owned());
        }
    }
    names.split(',').any(|name| name.trim() == "tracecontext")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(endpoint: Option<&str>) -> config::Telemetry {
        let endpoint = endpoint.map(Secret::new);
        let protocol = OtlpProtocol::Grpc;
        config::Telemetry {
            endpoint,
            protocol,
            metrics: false,
            sampling_ratio: 0.25,
            propagate_upstream: false,
        }
    }

    fn read(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Settings {
        let of = |name: &str| Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned());
        Settings::read(&configured(endpoint), of)
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn nothing_is_traced_without_an_endpoint_or_when_the_standard_says_no() {
        assert!(read(None, &[("OTEL_TRACES_SAMPLER", "what")]).target.is_none());
        assert!(read(None, &[("OTEL_TRACES_SAMPLER", "what")]).warnings.is_empty());
        assert!(read(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).target.is_none());
        assert!(read(Some("http://c"), &[]).target.is_some());
        for off in [
            ("OTEL_SDK_DISABLED", "True"),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
        ] {
            assert!(read(Some("http://c"), &[ENDPOINT, off]).target.is_none(), "{off:?}");
        }
        assert!(read(None, &[ENDPOINT, ("OTEL_SDK_DISABLED", "1")]).target.is_some(), "only `true` disables");
    }

    #[test]
    fn the_standards_variables_come_before_the_configuration() {
        let of = |variables: &[_]| read(Some("http://u:p@c:4317/"), variables).target.unwrap();
        let target = of(&[]);
        assert_eq!(
            (target.protocol, target.endpoint.as_deref()),
            (OtlpProtocol::Grpc, Some("http://u:p@c:4317/"))
        );
        let target = of(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
        assert_eq!(target.endpoint.as_deref(), Some("http://u:p@c:4317/v1/traces"));
        assert_eq!(of(&[ENDPOINT]).endpoint, None, "the SDK reads it");
        let specific = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
        let target = of(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), specific]);
        assert_eq!(target.protocol, OtlpProtocol::Grpc);
        let target = of(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "50")]);
        assert_eq!((target.queue, target.batch, target.delay.as_millis()), (100, 100, 50));
    }

    #[test]
    fn samplers_and_propagators_have_the_standards_names() {
        let sampler = |name, arg| {
            read(None, &[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]).sampler
        };
        assert_eq!(read(None, &[]).sampler, Sampler::parent_based(0.25));
        assert_eq!(sampler("always_on", ""), Sampler::ratio(1.0));
        assert_eq!(sampler("always_off", "1"), Sampler::ratio(0.0));
        assert_eq!(sampler("traceidratio", "0.5"), Sampler::ratio(0.5));
        assert_eq!(sampler("parentbased_always_off", ""), Sampler::parent_based(0.0));
        assert_eq!(sampler("parentbased_always_on", ""), Sampler::parent_based(1.0));
        assert_eq!(sampler("parentbased_traceidratio", "0.5"), Sampler::parent_based(0.5));
        let reads = |names| read(None, &[("OTEL_PROPAGATORS", names)]).reads_context;
        assert!(
            reads("tracecontext,baggage") && !reads("none") && !reads("b3") && read(None, &[]).reads_context
        );
        let wrong = [
            ("OTEL_TRACES_SAMPLER", "some"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ENDPOINT,
        ];
        assert_eq!(read(None, &wrong).warnings.len(), 5, "{:?}", read(None, &wrong).warnings);
    }
}
