//! What one run of `load` found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The result of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were to be sent.
    pub requests: u32,
    /// Complete answers with status 200.
    pub ok: u32,
    /// Everything else, by status or by what went wrong.
    pub failures: BTreeMap<String, u32>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// From request to the end of the answer, in milliseconds; complete answers only.
    pub latency_ms: Percentiles,
    /// Events received in streams.
    pub chunks: u32,
    /// From the departure of a chunk to its arrival, in milliseconds, where chunks say when they left.
    pub chunk_delay_ms: Percentiles,
}

impl Report {
    /// Requests without a complete answer.
    pub fn failed(&self) -> u32 {
        self.requests - self.ok
    }

    /// Complete answers per second.
    pub fn rate(&self) -> f64 {
        f64::from(self.ok) / self.seconds
    }
}

/// The distribution of some times, by nearest rank; all zero if there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "percentiles are what their names say")]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Percentiles {
    /// Sorts the times.
    pub fn of(times: &mut [f64]) -> Self {
        times.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place).copied().unwrap_or_default()
        };
        Self { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_occurred() {
        let mut times: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(
            Percentiles::of(&mut times),
            Percentiles { p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 }
        );
        assert_eq!(Percentiles::of(&mut [7.0]), Percentiles { p50: 7.0, p90: 7.0, p99: 7.0, max: 7.0 });
        assert_eq!(Percentiles::of(&mut []), Percentiles::default());
    }
}
