//! Distributions. Those of chunks and tokens are counted without a lock; those of whole requests remember a trace for
//! each bucket, by which one of its requests can be looked at.

use std::fmt::Error;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use keyfleet_core::trace::{TraceId, TraceParent};
use prometheus_client::encoding::{
    EncodeLabel as _, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::histogram::exponential_buckets;

/// Bounds of a [`Histogram`], each twice the one before it.
const BOUNDS: usize = 20;

/// How many were at most so large.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// The first bound.
    first: u64,
    /// What is counted, in one of what is told: nanoseconds in a second.
    scale: f64,
    counts: [AtomicU64; BOUNDS + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Of times, from 1.25 ms to 655.36 s.
    pub(super) fn of_seconds() -> Self {
        Self::new(1_250_000, 1e9)
    }

    /// Of tokens, from 16 to 8,388,608.
    pub(super) fn of_tokens() -> Self {
        Self::new(16, 1.0)
    }

    fn new(first: u64, scale: f64) -> Self {
        Self { first, scale, counts: Default::default(), sum: AtomicU64::new(0) }
    }

    /// Counts one.
    pub(crate) fn observe(&self, value: u64) {
        let doublings = u64::BITS - (value.saturating_sub(1) / self.first).leading_zeros();
        self.counts[BOUNDS.min(doublings as usize)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Counts a time.
    pub(crate) fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Nothing was counted.
    pub(super) fn is_unused(&self) -> bool {
        self.counts.iter().all(|count| count.load(Relaxed) == 0)
    }
}

impl EncodeMetric for Histogram {
    #[expect(
        clippy::cast_precision_loss,
        reason = "sums of nanoseconds and of tokens are below 2^53 for months"
    )]
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), Error> {
        let bound =
            |at: usize| if at < BOUNDS { (self.first << at) as f64 / self.scale } else { f64::INFINITY };
        let counts = self.counts.iter().enumerate();
        let buckets: Vec<_> = counts.map(|(at, count)| (bound(at), count.load(Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Relaxed) as f64 / self.scale;
        encoder.encode_histogram::<Trace>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// How long requests took, from 10 ms to 655.36 s.
#[derive(Debug)]
pub(crate) struct Timing {
    counted: HistogramWithExemplars<Trace>,
    used: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Trace(TraceId);

impl Default for Timing {
    fn default() -> Self {
        let counted = HistogramWithExemplars::new(exponential_buckets(0.01, 2.0, 17));
        Self { counted, used: AtomicBool::new(false) }
    }
}

impl Timing {
    /// Counts one. A trace that nobody keeps is of no use to whoever looks for it.
    pub(crate) fn observe(&self, time: Duration, trace: Option<TraceParent>) {
        let kept = trace.filter(|trace| trace.is_sampled()).map(|trace| Trace(trace.trace_id()));
        self.counted.observe(time.as_secs_f64(), kept, None);
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Nothing was counted.
    pub(super) fn is_unused(&self) -> bool {
        !self.used.load(Relaxed)
    }
}

impl EncodeMetric for Timing {
    fn encode(&self, encoder: MetricEncoder) -> Result<(), Error> {
        self.counted.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl EncodeLabelSet for Trace {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), Error> {
        ("trace_id", self.0.to_string()).encode(encoder.encode_label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(histogram: &Histogram, value: u64) -> usize {
        histogram.counts.iter().for_each(|count| count.store(0, Relaxed));
        histogram.observe(value);
        histogram.counts.iter().position(|count| count.load(Relaxed) == 1).unwrap()
    }

    #[test]
    fn a_value_is_within_its_bound_and_beyond_the_one_before() {
        let tokens = Histogram::of_tokens();
        for at in 0..BOUNDS {
            let bound = 16_u64 << at;
            assert_eq!((bucket(&tokens, bound), bucket(&tokens, bound + 1)), (at, at + 1), "{bound}");
        }
        assert_eq!((bucket(&tokens, 0), bucket(&tokens, u64::MAX)), (0, BOUNDS));
        let seconds = Histogram::of_seconds();
        seconds.observe_time(Duration::from_millis(655_360));
        assert_eq!(seconds.counts[BOUNDS - 1].load(Relaxed), 1, "the last bound is 655.36 s");
    }
}
