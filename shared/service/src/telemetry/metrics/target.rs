//! What the standard's environment variables and the configuration say about metrics. The variables come first.

use std::time::Duration;

use crate::config;
use crate::telemetry::destination::Destination;
use crate::telemetry::variables::{Signal, Variables};

/// Where metrics go, and when.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) to: Destination,
    /// From one export to the next.
    pub(super) interval: Duration,
    /// For one export.
    pub(super) timeout: Duration,
}

impl Target {
    /// Reads both; `None`: nobody asks for metrics.
    pub(crate) fn read(
        env: &mut Variables<impl Fn(&str) -> Option<String>>,
        config: &config::Telemetry,
    ) -> Option<Self> {
        let own = env.text("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT");
        let is_asked_for = env.exports("OTEL_METRICS_EXPORTER", &["none", "prometheus"]);
        if !is_asked_for.unwrap_or(config.metrics || own.is_some()) {
            return None;
        }
        if env.otlp(Signal::Metrics, "ENDPOINT").is_none() && config.endpoint.is_none() {
            let text = "no metrics are exported: set telemetry.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT";
            env.warnings.push(text.to_owned());
            return None;
        }
        let to = Destination::read(env, config, Signal::Metrics)?;
        if let Some(wish) = env.otlp(Signal::Metrics, "TEMPORALITY_PREFERENCE").map(|(_, wish)| wish)
            && !wish.eq_ignore_ascii_case("cumulative")
        {
            let text =
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: only cumulative is understood here";
            env.warnings.push(text.to_owned());
        }
        let interval = Duration::from_millis(env.number("OTEL_METRIC_EXPORT_INTERVAL", &1, 60_000));
        let timeout = Duration::from_millis(env.number("OTEL_METRIC_EXPORT_TIMEOUT", &1, 30_000));
        let timeout = timeout.min(to.patience);
        Some(Self { to, interval, timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OtlpProtocol, Secret};

    fn read(metrics: bool, variables: &[(&str, &str)]) -> (Option<Target>, Vec<String>) {
        let mut env = Variables::new(|name: &str| {
            Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned())
        });
        let endpoint = metrics.then(|| Secret::new("http://u:p@c:4318/"));
        let protocol = OtlpProtocol::Http;
        let config =
            config::Telemetry { endpoint, protocol, metrics, sampling_ratio: 1.0, propagate_upstream: false };
        let target = Target::read(&mut env, &config);
        (target, env.warnings)
    }

    const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:4318");
    const OWN: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://own/path");
    const ON: (&str, &str) = ("OTEL_METRICS_EXPORTER", "otlp");

    #[test]
    fn metrics_go_nowhere_unless_somebody_asks_for_it() {
        let endpoint = |metrics, variables: &[_]| {
            read(metrics, variables).0.map(|target| target.to.endpoint.to_string())
        };
        assert_eq!(endpoint(false, &[BASE]), None, "an endpoint alone is one for traces");
        assert_eq!(endpoint(false, &[BASE, ON]).as_deref(), Some("http://base:4318/v1/metrics"));
        assert_eq!(endpoint(false, &[BASE, OWN]).as_deref(), Some("http://own/path"), "as it is");
        assert_eq!(endpoint(true, &[]).as_deref(), Some("http://c:4318/v1/metrics"));
        for off in ["none", "prometheus"] {
            let (target, warnings) = read(true, &[BASE, OWN, ("OTEL_METRICS_EXPORTER", off)]);
            assert!(target.is_none() && warnings.is_empty(), "{off}: {warnings:?}");
        }
        for wrong in [ON, ("OTEL_METRICS_EXPORTER", "oltp")] {
            let (target, warnings) = read(false, &[wrong]);
            assert!(target.is_none() && warnings.len() == 1, "{warnings:?}");
        }
    }

    #[test]
    fn times_have_the_standards_names_and_defaults() {
        let target = read(true, &[]).0.unwrap();
        assert_eq!((target.interval.as_secs(), target.timeout.as_secs()), (60, 10));
        let (target, warnings) =
            read(true, &[("OTEL_METRIC_EXPORT_INTERVAL", "1000"), ("OTEL_METRIC_EXPORT_TIMEOUT", "500")]);
        let target = target.unwrap();
        assert_eq!((target.interval.as_millis(), target.timeout.as_millis()), (1000, 500));
        assert!(warnings.is_empty(), "{warnings:?}");
        let wrong = [
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ];
        assert_eq!(read(true, &wrong).1.len(), 2);
    }
}
