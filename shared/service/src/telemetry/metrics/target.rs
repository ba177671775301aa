//! What the standard's environment variables and the configuration say about metrics. The variables come first.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::config::{self, OtlpProtocol, Secret};
use crate::telemetry::tls::Files;
use crate::telemetry::variables::{Signal, Variables};

/// Where metrics go, and when.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) protocol: OtlpProtocol,
    /// With its path, if it has one. May hold credentials.
    pub(super) endpoint: Secret,
    pub(super) files: Files,
    /// What comes with each export. Credentials, mostly.
    pub(super) headers: HeaderMap,
    pub(super) gzip: bool,
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
        let is_asked_for = env.exports("OTEL_METRICS_EXPORTER");
        if !is_asked_for.unwrap_or(config.metrics || own.is_some()) {
            return None;
        }
        let protocol = env.protocol(Signal::Metrics, config.protocol);
        let base = env.text("OTEL_EXPORTER_OTLP_ENDPOINT");
        let base = base.or_else(|| config.endpoint.as_ref().map(|base| base.expose().to_owned()));
        let endpoint = match (own, base, protocol) {
            (Some(own), ..) => own,
            (None, Some(base), OtlpProtocol::Http) => format!("{}/v1/metrics", base.trim_end_matches('/')),
            (None, Some(base), OtlpProtocol::Grpc) => base,
            (None, None, _) => {
                let text = "no metrics are exported: set telemetry.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT";
                env.warnings.push(text.to_owned());
                return None;
            }
        };
        if let Some(wish) = env.otlp(Signal::Metrics, "TEMPORALITY_PREFERENCE").map(|(_, wish)| wish)
            && !wish.eq_ignore_ascii_case("cumulative")
        {
            let text =
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: only cumulative is understood here";
            env.warnings.push(text.to_owned());
        }
        let interval = Duration::from_millis(env.number("OTEL_METRIC_EXPORT_INTERVAL", &1, 60_000));
        let timeout = Duration::from_millis(env.number("OTEL_METRIC_EXPORT_TIMEOUT", &1, 30_000));
        Some(Self {
            protocol,
            endpoint: Secret::new(with_scheme(endpoint, env)),
            files: env.files(Signal::Metrics),
            headers: headers(env),
            gzip: is_packed(env),
            interval,
            timeout: timeout.min(env.patience(Signal::Metrics)),
        })
    }
}

/// One without a scheme, which only gRPC knows, is encrypted unless a variable says otherwise.
fn with_scheme(endpoint: String, env: &Variables<impl Fn(&str) -> Option<String>>) -> String {
    if endpoint.contains("://") {
        return endpoint;
    }
    let insecure = env.otlp(Signal::Metrics, "INSECURE");
    let insecure = insecure.is_some_and(|(_, text)| text.eq_ignore_ascii_case("true"));
    format!("{}://{endpoint}", if insecure { "http" } else { "https" })
}

fn is_packed(env: &mut Variables<impl Fn(&str) -> Option<String>>) -> bool {
    match env.otlp(Signal::Metrics, "COMPRESSION") {
        None => false,
        Some((_, text)) if text == "gzip" => true,
        Some((name, text)) => {
            if text != "none" {
                env.warnings.push(format!("{name}: not gzip or none; metrics are not compressed"));
            }
            false
        }
    }
}

/// As `name=value,name=value`, with values as in URLs.
fn headers(env: &mut Variables<impl Fn(&str) -> Option<String>>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some((variable, list)) = env.otlp(Signal::Metrics, "HEADERS") else { return headers };
    for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        match header(pair) {
            Some((name, value)) => {
                headers.insert(name, value);
            }
            None => {
                env.warnings.push(format!("{variable}: not a list of name=value; what is wrong is left out"));
            }
        }
    }
    headers
}

fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            read(metrics, variables).0.map(|target| target.endpoint.expose().to_owned())
        };
        assert_eq!(endpoint(false, &[BASE]), None, "an endpoint alone is one for traces");
        assert_eq!(endpoint(false, &[BASE, ON]).as_deref(), Some("http://base:4318/v1/metrics"));
        assert_eq!(endpoint(false, &[BASE, OWN]).as_deref(), Some("http://own/path"), "as it is");
        assert_eq!(endpoint(true, &[]).as_deref(), Some("http://u:p@c:4318/v1/metrics"));
        assert_eq!(endpoint(true, &[BASE]).as_deref(), Some("http://base:4318/v1/metrics"));
        for off in ["none", "prometheus"] {
            assert_eq!(endpoint(true, &[BASE, OWN, ("OTEL_METRICS_EXPORTER", off)]), None, "{off}");
        }
        let (target, warnings) = read(false, &[ON]);
        assert!(target.is_none() && warnings.len() == 1, "{warnings:?}");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(endpoint(false, &[BASE, ON, grpc]).as_deref(), Some("http://base:4318"));
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317");
        assert_eq!(endpoint(false, &[bare, ON, grpc]).as_deref(), Some("https://c:4317"));
        let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
        assert_eq!(endpoint(false, &[bare, ON, grpc, insecure]).as_deref(), Some("http://c:4317"));
    }

    #[test]
    fn everything_else_has_the_standards_names_and_defaults() {
        let target = read(true, &[]).0.unwrap();
        let times = (target.interval.as_secs(), target.timeout.as_secs());
        assert_eq!((times, target.gzip, target.headers.len()), ((60, 10), false, 0));
        let (target, warnings) = read(
            true,
            &[
                ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
                ("OTEL_METRIC_EXPORT_TIMEOUT", "500"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "x-all=1"),
                ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=Basic%20abc=, x-b = 2"),
            ],
        );
        let target = target.unwrap();
        let times = (target.interval.as_millis(), target.timeout.as_millis());
        assert_eq!((times, target.gzip, target.headers.len()), ((1000, 500), true, 2));
        assert_eq!(
            (&target.headers["authorization"], &target.headers["x-b"]),
            (&"Basic abc=".parse().unwrap(), &"2".parse().unwrap())
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        let wrong = [
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret-without-a-name"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ];
        let (_, warnings) = read(true, &wrong);
        assert!(warnings.len() == 4 && !warnings.concat().contains("secret"), "{warnings:?}");
    }
}
