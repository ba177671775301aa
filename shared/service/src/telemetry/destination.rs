//! Where a signal goes, and how. The standard's variables come before the configuration, and a variable of the signal
//! before that of all.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::tls::Files;
use super::variables::{Signal, Variables};
use crate::config::{self, OtlpProtocol, Secret};

/// The way to a collector.
#[derive(Debug, PartialEq)]
pub(super) struct Destination {
    pub(super) protocol: OtlpProtocol,
    /// With its path, without credentials.
    pub(super) endpoint: Url,
    /// Whom to trust, and who we are.
    pub(super) files: Files,
    /// What comes with each export. Credentials, mostly.
    pub(super) headers: HeaderMap,
    pub(super) gzip: bool,
    /// For one answer.
    pub(super) patience: Duration,
}

impl Destination {
    /// Reads both; `None`: there is no endpoint, or a wrong one, which is a warning.
    pub(super) fn read(
        env: &mut Variables<impl Fn(&str) -> Option<String>>,
        config: &config::Telemetry,
        signal: Signal,
    ) -> Option<Self> {
        let protocol = env.protocol(signal, config.protocol);
        let (name, text) = match env.otlp(signal, "ENDPOINT") {
            Some(named) => named,
            None => {
                ("telemetry.endpoint".to_owned(), config.endpoint.as_ref().map(Secret::expose)?.to_owned())
            }
        };
        let is_whole = name == signal.variable("ENDPOINT");
        let Some(mut endpoint) = endpoint(&text, protocol, is_insecure(env, signal)) else {
            let like = "http://collector:4318, or grpc with http://collector:4317";
            env.warnings
                .push(format!("{name}: not a URL; write it like {like}; no {} are exported", signal.name()));
            return None;
        };
        if protocol == OtlpProtocol::Http && !is_whole {
            let path = format!("{}/v1/{}", endpoint.path().trim_end_matches('/'), signal.name());
            endpoint.set_path(&path);
        }
        let mut headers = headers(env, signal);
        if let Some(login) = login(&mut endpoint) {
            headers.entry(AUTHORIZATION).or_insert(login);
        }
        let (files, gzip, patience) = (env.files(signal), is_packed(env, signal), env.patience(signal));
        Some(Self { protocol, endpoint, files, headers, gzip, patience })
    }

    /// Whether the way is encrypted.
    pub(super) fn tls(&self) -> bool {
        self.endpoint.scheme() == "https"
    }
}

/// One without a scheme, which only gRPC knows, is encrypted unless a variable says otherwise.
fn endpoint(text: &str, protocol: OtlpProtocol, insecure: bool) -> Option<Url> {
    let url = if protocol == OtlpProtocol::Grpc && !text.contains("://") {
        Url::parse(&format!("{}://{text}", if insecure { "http" } else { "https" }))
    } else {
        Url::parse(text)
    };
    url.ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn is_insecure(env: &Variables<impl Fn(&str) -> Option<String>>, signal: Signal) -> bool {
    env.otlp(signal, "INSECURE").is_some_and(|(_, text)| text.eq_ignore_ascii_case("true"))
}

/// Takes the credentials out of a URL: they go as a header, as browsers send them.
fn login(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<_>>();
    let both = [decoded(url.username()), b":".to_vec(), decoded(url.password().unwrap_or_default())].concat();
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(both))).ok()?;
    value.set_sensitive(true);
    // A URL with a host can be without them.
    url.set_username("").and_then(|()| url.set_password(None)).ok()?;
    Some(value)
}

fn is_packed(env: &mut Variables<impl Fn(&str) -> Option<String>>, signal: Signal) -> bool {
    match env.otlp(signal, "COMPRESSION") {
        Some((_, text)) if text.eq_ignore_ascii_case("gzip") => true,
        Some((name, text)) if !text.eq_ignore_ascii_case("none") => {
            env.warnings.push(format!("{name}: not gzip or none; nothing is compressed"));
            false
        }
        _ => false,
    }
}

/// As `name=value,name=value`, with values as in URLs.
fn headers(env: &mut Variables<impl Fn(&str) -> Option<String>>, signal: Signal) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let Some((variable, list)) = env.otlp(signal, "HEADERS") else { return headers };
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

    fn read(
        signal: Signal,
        configured: Option<&str>,
        variables: &[(&str, &str)],
    ) -> (Option<Destination>, Vec<String>) {
        let of = |name: &str| Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned());
        let mut env = Variables::new(of);
        let config = config::Telemetry {
            endpoint: configured.map(Secret::new),
            protocol: OtlpProtocol::Http,
            metrics: false,
            sampling_ratio: 1.0,
            propagate_upstream: false,
        };
        let destination = Destination::read(&mut env, &config, signal);
        (destination, env.warnings)
    }

    fn endpoint(configured: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        read(Signal::Metrics, configured, variables).0.map(|to| to.endpoint.to_string())
    }

    const BASE: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:4318");
    const OWN: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://own/path");
    const GRPC: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");

    #[test]
    fn an_endpoint_is_that_of_the_signal_that_of_all_or_the_configured_one() {
        assert_eq!(endpoint(None, &[]), None);
        assert_eq!(endpoint(Some("http://c/a/"), &[]).as_deref(), Some("http://c/a/v1/metrics"));
        assert_eq!(endpoint(Some("http://c"), &[BASE]).as_deref(), Some("http://base:4318/v1/metrics"));
        assert_eq!(endpoint(None, &[BASE, OWN]).as_deref(), Some("http://own/path"), "as it is");
        let traces = read(Signal::Traces, None, &[BASE, OWN]).0.unwrap();
        assert_eq!(traces.endpoint.as_str(), "http://base:4318/v1/traces");
        assert_eq!(endpoint(None, &[BASE, GRPC]).as_deref(), Some("http://base:4318/"));
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317");
        assert_eq!(endpoint(None, &[bare, GRPC]).as_deref(), Some("https://c:4317/"));
        let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
        assert_eq!(endpoint(None, &[bare, GRPC, insecure]).as_deref(), Some("http://c:4317/"));
    }

    #[test]
    fn a_wrong_endpoint_is_named_and_not_shown() {
        for wrong in ["user:pa55word@c:4318", "http://user:pa55word@:1", "c:4318", "http://", "ftp://c"] {
            let (to, warnings) = read(Signal::Traces, None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", wrong)]);
            assert!(to.is_none() && warnings.len() == 1, "{wrong}: {warnings:?}");
            assert!(warnings[0].starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: "), "{warnings:?}");
            assert!(!warnings[0].contains("55word"), "{warnings:?}");
        }
    }

    #[test]
    fn credentials_of_a_url_become_a_header() {
        let (to, _) = read(Signal::Traces, Some("http://me:p%40ss@c:4318"), &[]);
        let to = to.unwrap();
        assert_eq!(to.endpoint.as_str(), "http://c:4318/v1/traces");
        assert_eq!(to.headers[AUTHORIZATION], "Basic bWU6cEBzcw==");
        assert!(!format!("{to:?}").contains("bWU6"), "{to:?}");
        let said = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x");
        let (to, _) = read(Signal::Traces, Some("http://me:p@c"), &[said]);
        assert_eq!(to.unwrap().headers[AUTHORIZATION], "Bearer x", "what is said comes first");
    }

    #[test]
    fn everything_else_has_the_standards_names_and_defaults() {
        let to = read(Signal::Metrics, Some("http://c"), &[]).0.unwrap();
        assert_eq!((to.patience.as_secs(), to.gzip, to.headers.len()), (10, false, 0));
        let variables = [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-all=1"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "authorization=Basic%20abc=, x-b = 2"),
        ];
        let (to, warnings) = read(Signal::Metrics, Some("http://c"), &variables);
        let to = to.unwrap();
        assert_eq!((to.patience.as_millis(), to.gzip, to.headers.len()), (500, true, 2));
        assert_eq!(
            (&to.headers[AUTHORIZATION], &to.headers["x-b"]),
            (&"Basic abc=".parse().unwrap(), &"2".parse().unwrap())
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        let wrong = [
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret-without-a-name,bad name=secret"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ];
        for signal in [Signal::Traces, Signal::Metrics] {
            let (_, warnings) = read(signal, Some("http://c"), &wrong);
            assert!(warnings.len() == 5 && !warnings.concat().contains("secret"), "{warnings:?}");
        }
    }
}
