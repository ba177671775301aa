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
        let own = match signal {
            Signal::Traces => "TRACES_",
            Signal::Metrics => "METRICS_",
        };
        [own, ""].into_iter().find_map(|own| {
            let name = format!("OTEL_EXPORTER_OTLP_{own}{what}");
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

    /// Whether this list of exporters has the one that there is.
    pub(super) fn exports(&self, name: &str) -> Option<bool> {
        self.text(name).map(|list| list.split(',').any(|name| name.trim() == "otlp"))
    }

    pub(super) fn protocol(&mut self, signal: Signal, configured: OtlpProtocol) -> OtlpProtocol {
        match self.otlp(signal, "PROTOCOL") {
            None => configured,
            Some((_, text)) if text == "grpc" => OtlpProtocol::Grpc,
            Some((_, text)) if text == "http/protobuf" => OtlpProtocol::Http,
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
