//! How some times are distributed.

use std::fmt;
use std::time::Duration;

/// The distribution of some times, by nearest rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// How many.
    pub n: usize,
    /// Half were no longer.
    pub p50: Duration,
    /// All but one in a hundred were no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Times {
    /// Of these.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        let rank = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place).copied().unwrap_or_default()
        };
        Self { n: times.len(), p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

impl fmt::Display for Times {
    /// `p50 / p99 / max` in milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        write!(f, "{} / {} / {} ms", ms(self.p50), ms(self.p99), ms(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_times_that_occurred() {
        let times = Times::of((1..=200).rev().map(Duration::from_millis));
        assert_eq!((times.n, times.p50.as_millis(), times.p99.as_millis()), (200, 100, 198));
        assert_eq!(times.to_string(), "100.0 / 198.0 / 200.0 ms");
        assert_eq!(Times::of([]), Times::default());
    }
}
