//! Times as they are spread: how many were about so long. What is added up over keys, replicas and seconds still tells
//! which time 19 of 20 kept to, which no mean does.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Times are told apart by factors of the fourth root of two, from 1 ms to over a minute.
pub const BUCKETS: usize = 68;

/// So many times fell into each bucket. It travels as a list of the buckets that are not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies([u32; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Latencies {
    /// Counts `n` times of so many ms.
    pub fn count(&mut self, n: u32, ms: u32) {
        self.add(bucket(ms), n);
    }

    /// Counts `n` times in a bucket; what is beyond the last one is not counted.
    pub fn add(&mut self, bucket: usize, n: u32) {
        if let Some(count) = self.0.get_mut(bucket) {
            *count = count.saturating_add(n);
        }
    }

    /// Counts all of these as well.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    /// The time that 19 of 20 kept to, within a tenth of it.
    pub fn p95(&self) -> Option<Duration> {
        let all: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        let mut left = all.div_ceil(20);
        let late = (0..BUCKETS).rev().find(|bucket| {
            let of_bucket = u64::from(self.0[*bucket]);
            let found = all > 0 && left <= of_bucket;
            left = left.saturating_sub(of_bucket);
            found
        });
        late.map(middle)
    }
}

/// The bucket of a time.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number above zero")]
pub fn bucket(ms: u32) -> usize {
    ((f64::from(ms.max(1)).log2() * 4.0) as usize).min(BUCKETS - 1)
}

/// The middle of a bucket, by factors.
#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn middle(bucket: usize) -> Duration {
    Duration::from_secs_f64(((bucket as f64 + 0.5) / 4.0).exp2() / 1_000.0)
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().enumerate().filter(|(_, count)| **count > 0))
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let counts = Vec::<(usize, u32)>::deserialize(deserializer)?;
        if counts.len() > BUCKETS {
            return Err(D::Error::custom("more buckets than there are"));
        }
        let mut latencies = Self::default();
        for (bucket, n) in counts {
            latencies.add(bucket, n);
        }
        Ok(latencies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_twenty_is_found_as_exactly_as_it_matters() {
        assert_eq!(Latencies::default().p95(), None);
        for (fast, slow, expected_ms) in [(96, 4, 100.0), (95, 5, 6_000.0), (0, 100, 6_000.0)] {
            let (mut all, mut more) = (Latencies::default(), Latencies::default());
            all.count(fast, 100);
            more.count(slow, 6_000);
            all.merge(&more);
            let p95 = all.p95().unwrap().as_secs_f64() * 1_000.0;
            assert!((p95 / expected_ms - 1.0).abs() < 0.1, "{p95} for {expected_ms}");
        }
    }

    #[test]
    fn only_what_was_counted_travels_and_what_is_unknown_is_left_out() {
        let mut some = Latencies::default();
        some.count(3, 100);
        some.count(1, u32::MAX);
        let text = serde_json::to_string(&some).unwrap();
        assert_eq!(text, "[[26,3],[67,1]]");
        assert_eq!(serde_json::from_str::<Latencies>(&text).unwrap(), some);
        assert_eq!(serde_json::from_str::<Latencies>("[[26,3],[67,1],[68,9]]").unwrap(), some);
        let many = serde_json::to_string(&vec![[1, 1]; BUCKETS + 1]).unwrap();
        assert!(serde_json::from_str::<Latencies>(&many).is_err());
    }
}
