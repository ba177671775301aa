//! Measurements of a whole deployment, each of which ends in a table: `scripts/chaos` runs them.

pub mod cost;
pub mod outage;
pub mod spread;

use std::fmt::Write as _;

/// Two columns: what, and how much.
#[derive(Debug, Default)]
struct Lines(String);

impl Lines {
    fn titled(title: &str) -> Self {
        Self(format!("| {title} | |\n|---|---|\n"))
    }

    fn line(&mut self, what: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "| {what} | {value} |");
    }
}
