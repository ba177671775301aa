//! What the standard's environment variables and the configuration say about traces. The variables come first.

use std::collections::HashSet;
use std::time::Duration;

use super::destination::Destination;
use super::metrics;
use super::sampler::Sampler;
use super::variables::{Signal, Variables};
use crate::config;

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
    pub(super) to: Destination,
    /// Spans that wait.
    pub(super) queue: usize,
    /// Spans that go together.
    pub(super) batch: usize,
    /// How long spans wait for company.
    pub(super) delay: Duration,
    /// How long the collector may take for one batch, with every repetition.
    pub(super) timeout: Duration,
}

impl Settings {
    /// Reads both.
    pub(super) fn read(config: &config::Telemetry, variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut env = Variables::new(variable);
        if env.text("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            let sampler = Sampler::ratio(0.0);
            return Self { target: None, sampler, reads_context: false, metrics: None, warnings: Vec::new() };
        }
        let is_on = env.exports("OTEL_TRACES_EXPORTER", &["none"]).unwrap_or(true);
        let target = is_on.then(|| target(&mut env, config)).flatten();
        let metrics = metrics::Target::read(&mut env, config);
        let mut warnings = std::mem::take(&mut env.warnings);
        let sampler = sampler(&mut env, config.sampling_ratio);
        let reads_context = reads_context(&mut env);
        // A process that does not trace has nothing to complain about there.
        if target.is_some() {
            warnings.append(&mut env.warnings);
        }
        // Both signals go by the same variables.
        let mut said = HashSet::new();
        warnings.retain(|warning| said.insert(warning.clone()));
        Self { target, sampler, reads_context, metrics, warnings }
    }
}

/// Numbers are at most what a day of a busy gateway makes; nobody means more.
fn target(
    env: &mut Variables<impl Fn(&str) -> Option<String>>,
    config: &config::Telemetry,
) -> Option<Target> {
    let to = Destination::read(env, config, Signal::Traces)?;
    let queue = env.number("OTEL_BSP_MAX_QUEUE_SIZE", &1, 2_048);
    let batch = env.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &1, 512).min(queue);
    let delay = Duration::from_millis(env.number("OTEL_BSP_SCHEDULE_DELAY", &1, 5_000));
    let timeout = Duration::from_millis(env.number("OTEL_BSP_EXPORT_TIMEOUT", &1, 30_000));
    Some(Target { to, queue, batch, delay, timeout })
}

fn sampler(env: &mut Variables<impl Fn(&str) -> Option<String>>, configured: f64) -> Sampler {
    let said = env.text("OTEL_TRACES_SAMPLER");
    // Ours is one by ratio, whose argument may come alone.
    let default = if said.is_some() { 1.0 } else { configured };
    let ratio = match env.text("OTEL_TRACES_SAMPLER_ARG").map(|text| text.parse::<f64>()) {
        Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
        None => default,
        Some(_) => {
            env.warnings
                .push(format!("OTEL_TRACES_SAMPLER_ARG: not a number from 0 to 1; {default} is used"));
            default
        }
    };
    let Some(name) = said.map(|name| name.to_ascii_lowercase()) else { return Sampler::parent_based(ratio) };
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
    let Some(names) = env.text("OTEL_PROPAGATORS").map(|names| names.to_ascii_lowercase()) else {
        return true;
    };
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
    use crate::config::{OtlpProtocol, Secret};

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
        for off in [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")] {
            let settings = read(Some("http://c"), &[ENDPOINT, off]);
            assert!(settings.target.is_none() && settings.warnings.is_empty(), "{off:?}");
        }
        for wrong in ["zipkin", "oltp"] {
            let settings = read(Some("http://c"), &[("OTEL_TRACES_EXPORTER", wrong)]);
            assert!(settings.target.is_none() && settings.warnings.len() == 1, "{:?}", settings.warnings);
        }
        assert!(read(Some("http://c"), &[("OTEL_TRACES_EXPORTER", "OTLP")]).target.is_some());
        assert!(read(None, &[ENDPOINT, ("OTEL_SDK_DISABLED", "1")]).target.is_some(), "only `true` disables");
    }

    #[test]
    fn the_standards_variables_come_before_the_configuration() {
        let of = |variables: &[_]| read(Some("http://u:p@c:4317/"), variables).target.unwrap();
        let to = of(&[]).to;
        assert_eq!((to.protocol, to.endpoint.as_str()), (OtlpProtocol::Grpc, "http://c:4317/"));
        let specific = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc");
        let to = of(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), specific]).to;
        assert_eq!((to.protocol, to.endpoint.as_str()), (OtlpProtocol::Grpc, "http://collector:4318/"));
        let target = of(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_SCHEDULE_DELAY", "50")]);
        assert_eq!((target.queue, target.batch, target.delay.as_millis()), (100, 100, 50));
    }

    #[test]
    fn samplers_and_propagators_have_the_standards_names() {
        let sampler = |name, arg| {
            read(None, &[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]).sampler
        };
        assert_eq!(read(None, &[]).sampler, Sampler::parent_based(0.25));
        assert_eq!(sampler("", "0.5"), Sampler::parent_based(0.5), "the argument alone");
        assert_eq!(sampler("ALWAYS_ON", ""), Sampler::ratio(1.0));
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
