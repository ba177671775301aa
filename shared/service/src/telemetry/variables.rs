//! The standard's environment variables. One that is empty is none.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::tls::{File, Files};
use crate::config::OtlpProtocol;

/// What is exported.
#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// Its name, in words and in paths of OTLP.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }

    /// Its own variable of the OTLP exporter.
    pub(super) fn variable(self, what: &str) -> String {
        format!("OTEL_EXPORTER_OTLP_{}_{what}", self.name().to_ascii_uppercase())
    }
}

/// The variables, and what is wrong with them.
pub(super) struct Variables<F> {
    of: F,
    pub(super) warnings: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    pub(super) fn new(of: F) -> Self {
        Self { of, warnings: Vec::new() }
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        (self.of)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A variable of the OTLP exporter, by its name: the one of this signal before the one of all.
    pub(super) fn otlp(&self, signal: Signal, what: &str) -> Option<(String, String)> {
        [signal.variable(what), format!("OTEL_EXPORTER_OTLP_{what}")].into_iter().find_map(|name| {
            let text = self.text(&name)?;
            Some((name, text))
        })
    }

    pub(super) fn number<T: FromStr + PartialOrd + Display>(
        &mut self,
        name: &str,
        least: &T,
        default: T,
    ) -> T {
        let Some(text) = self.text(name) else { return default };
        match text.parse() {
            Ok(number) if number >= *least => number,
            _ => {
                self.warnings.push(format!("{name}: not a number of at least {least}; {default} is used"));
                default
            }
        }
    }

    /// Whether the list of exporters of a signal has the one that there is. `others` need no export: that is no mistake.
    pub(super) fn exports(&mut self, name: &str, others: &[&str]) -> Option<bool> {
        let list = self.text(name)?.to_ascii_lowercase();
        let has = |wanted: &str| list.split(',').any(|name| name.trim() == wanted);
        if list.split(',').map(str::trim).any(|name| name != "otlp" && !others.contains(&name)) {
            self.warnings.push(format!("{name}: only otlp and {} are understood here", others.join(" and ")));
        }
        Some(has("otlp"))
    }

    pub(super) fn protocol(&mut self, signal: Signal, configured: OtlpProtocol) -> OtlpProtocol {
        match self.otlp(signal, "PROTOCOL") {
            None => configured,
            Some((_, text)) if text.eq_ignore_ascii_case("grpc") => OtlpProtocol::Grpc,
            Some((_, text)) if text.eq_ignore_ascii_case("http/protobuf") => OtlpProtocol::Http,
            Some((name, _)) => {
                self.warnings.push(format!("{name}: not grpc or http/protobuf; http/protobuf is used"));
                OtlpProtocol::Http
            }
        }
    }

    /// How long one answer may take.
    pub(super) fn patience(&mut self, signal: Signal) -> Duration {
        let name = self.otlp(signal, "TIMEOUT").map(|(name, _)| name);
        Duration::from_millis(name.map_or(10_000, |name| self.number(&name, &1, 10_000)))
    }

    pub(super) fn files(&self, signal: Signal) -> Files {
        let file = |what| {
            let (variable, path) = self.otlp(signal, what)?;
            Some(File { variable, path: PathBuf::from(path) })
        };
        Files {
            authority: file("CERTIFICATE"),
            certificate: file("CLIENT_CERTIFICATE"),
            key: file("CLIENT_KEY"),
        }
    }
}
