//! Which traces are kept. The SDK's samplers say the same, but need a context that costs every request allocations.

use keyfleet_core::trace::{TraceId, TraceParent};

/// The bound of a ratio of 1.
const ALL: u64 = 1 << 63;

/// Decides by the trace's id, so that every process decides the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sampler {
    /// Of ids, shifted to 63 bits: those below are kept.
    below: u64,
    parent_based: bool,
}

impl Sampler {
    /// Keeps this share of the traces that begin here, and of others those that whoever began them keeps.
    pub(super) fn parent_based(ratio: f64) -> Self {
        Self { parent_based: true, ..Self::ratio(ratio) }
    }

    /// Keeps this share, whatever a parent says.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share between 0 and 1 of a power of two"
    )]
    pub(super) fn ratio(ratio: f64) -> Self {
        let below = if ratio >= 1.0 { ALL } else { (ratio.max(0.0) * ALL as f64) as u64 };
        Self { below, parent_based: false }
    }

    pub(super) fn samples(self, parent: Option<TraceParent>, trace: TraceId) -> bool {
        if let Some(parent) = parent.filter(|_| self.parent_based) {
            return parent.is_sampled();
        }
        let low = trace.as_u128() & u128::from(u64::MAX);
        u64::try_from(low).unwrap_or(u64::MAX) >> 1 < self.below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_and_of_a_clients_traces_what_it_keeps() {
        let step = |trace: u128, sampled| TraceParent::root(trace, 1, sampled).unwrap();
        let kept = |sampler: Sampler, parent: bool| {
            let spread = |n: u128| ((n << 64) | (n * 0x0418_9374_bc6a_7ef9)).max(1);
            let samples =
                |n| sampler.samples(parent.then(|| step(1, true)), step(spread(n), true).trace_id());
            (0..1_000).filter(|n| samples(*n)).count()
        };
        assert_eq!((kept(Sampler::ratio(0.0), false), kept(Sampler::ratio(1.0), false)), (0, 1_000));
        let tenth = kept(Sampler::ratio(0.1), false);
        assert!((60..=140).contains(&tenth), "{tenth}");
        assert_eq!(tenth, kept(Sampler::parent_based(0.1), false));
        assert_eq!((kept(Sampler::parent_based(0.0), true), kept(Sampler::ratio(0.0), true)), (1_000, 0));
        let refused = Sampler::parent_based(1.0).samples(Some(step(1, false)), step(1, false).trace_id());
        assert!(!refused, "what its beginner does not keep");
    }
}
