//! How well a key does: a number from 0.0 to 1.0 in tenths.
//!
//! The mean of a Beta distribution over decayed successes and failures, starting from full trust, times a factor
//! for latency: a key that was never in trouble scores exactly 1.0, one failure of an idle key costs little, and
//! an idle key forgets. Counts halve every 30 s, so records may arrive in any order. Blocks are not part of it:
//! a blocked key is out whatever its score.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::{Cause, Scope};
use crate::time::Mono;

const HALF_LIFE: Duration = Duration::from_secs(30);
/// Successes that a key is credited with before it has any: how much one failure weighs.
const TRUST: f64 = 5.0;
/// Answers before latency counts: fewer say nothing.
const MIN_SAMPLES: f64 = 10.0;
/// A score leaves its tenth only when it is this far beyond the border, so that it does not flap.
const HYSTERESIS: f64 = 0.02;

/// A score in tenths: 10 is perfect, 8 and 9 are good, 5 to 7 degraded, 0 to 4 poor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Score(u8);

impl Score {
    /// Nothing is wrong.
    pub const PERFECT: Self = Self(10);

    /// From tenths; above ten counts as ten.
    pub const fn from_tenths(tenths: u8) -> Self {
        Self(if tenths > 10 { 10 } else { tenths })
    }

    /// In tenths, 0 to 10.
    pub const fn tenths(self) -> u8 {
        self.0
    }

    /// The band that people read.
    pub const fn band(self) -> &'static str {
        match self.0 {
            10.. => "perfect",
            8..=9 => "good",
            5..=7 => "degraded",
            _ => "poor",
        }
    }
}

/// The record of one key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    successes: f64,
    failures: f64,
    at: Mono,
    latency_ms: f64,
    samples: f64,
    shown: Score,
}

/// How much a failure weighs on its key, or `None` if it says nothing about the key.
///
/// `others_succeed` is whether other projects got answers from the same model and target at that time: only then
/// does a server error speak against the key.
pub const fn weight(scope: Scope, cause: Cause, others_succeed: bool) -> Option<f64> {
    match (scope, cause) {
        (_, Cause::CredentialRejected) => Some(1.0),
        (Scope::Model | Scope::Egress, Cause::AddressThrottled | Cause::Location) => None,
        (Scope::Model | Scope::Egress, _) => {
            if others_succeed {
                Some(1.0)
            } else {
                None
            }
        }
        (Scope::Bucket, _) => Some(0.25),
        _ => None,
    }
}

impl Health {
    /// A key about which nothing is known.
    pub fn new(now: Mono) -> Self {
        Self { successes: 0.0, failures: 0.0, at: now, latency_ms: 0.0, samples: 0.0, shown: Score::PERFECT }
    }

    /// A key as it was stored, with counts as of `now`.
    pub fn restore(successes: f64, failures: f64, now: Mono) -> Self {
        let sane = |count: f64| if count.is_finite() { count.clamp(0.0, 1e9) } else { 0.0 };
        Self { successes: sane(successes), failures: sane(failures), ..Self::new(now) }
    }

    /// Counts `n` successes with a mean time to first byte.
    pub fn succeeded(&mut self, n: u32, mean_ttfb: Duration, now: Mono) {
        self.decay(now);
        let n = f64::from(n);
        self.successes += n;
        // Half of the average is younger than some seven answers: fast enough to notice, slow enough to be calm.
        let keep = 0.9_f64.powf(n);
        self.latency_ms = self.latency_ms * keep + mean_ttfb.as_secs_f64() * 1000.0 * (1.0 - keep);
        if self.samples == 0.0 {
            self.latency_ms = mean_ttfb.as_secs_f64() * 1000.0;
        }
        self.samples += n;
    }

    /// Counts a failure of this [`weight`].
    pub fn failed(&mut self, weight: f64, now: Mono) {
        self.decay(now);
        self.failures += weight;
    }

    /// Successes and failures that still count, as of `now`.
    pub fn counts(&self, now: Mono) -> (f64, f64) {
        let mut copy = *self;
        copy.decay(now);
        (copy.successes, copy.failures)
    }

    /// The mean time to first byte in ms, once enough answers have been seen.
    pub fn latency_ms(&self) -> Option<f64> {
        (self.samples >= MIN_SAMPLES).then_some(self.latency_ms)
    }

    /// The score at `now`. `median_ms` is the median of [`Health::latency_ms`] over the keys of the same models.
    pub fn score_at(&mut self, median_ms: Option<f64>, now: Mono) -> Score {
        self.decay(now);
        let trust = (self.successes + TRUST) / (self.successes + self.failures + TRUST);
        let speed = match (self.latency_ms(), median_ms) {
            (Some(own), Some(median)) if own > 0.0 => (1.5 * median / own).sqrt().clamp(0.5, 1.0),
            _ => 1.0,
        };
        self.shown = quantise(trust * speed, self.shown);
        self.shown
    }

    fn decay(&mut self, now: Mono) {
        let halvings = now.since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        if halvings > 0.0 {
            let factor = 0.5_f64.powf(halvings);
            self.successes *= factor;
            self.failures *= factor;
            self.samples *= factor;
            self.at = now;
        }
    }
}

/// Down to the tenth; 0.995 and more is perfect. The tenth shown last is kept within the hysteresis.
fn quantise(raw: f64, shown: Score) -> Score {
    let tenth = |raw: f64| -> u8 {
        if raw >= 0.995 {
            return 10;
        }
        // Counting up avoids a lossy float-to-integer cast; ten steps at most.
        (1..10).take_while(|step| f64::from(*step) <= raw * 10.0).last().unwrap_or(0)
    };
    let (low, high) = (tenth(raw - HYSTERESIS), tenth(raw + HYSTERESIS));
    let exact = tenth(raw);
    let keeps = shown.0 >= low.min(exact) && shown.0 <= high.max(exact) && shown.0 != 10 && exact != 10;
    if keeps { shown } else { Score(exact) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_failures(n: u32) -> u8 {
        let now = Mono::from_ms(0);
        let mut health = Health::new(now);
        (0..n).for_each(|_| health.failed(1.0, now));
        health.score_at(None, now).tenths()
    }

    #[test]
    fn an_idle_key_falls_as_the_formula_says_and_recovers() {
        assert_eq!([0, 1, 2, 5, 8].map(after_failures), [10, 8, 7, 5, 3]);
        let mut health = Health::new(Mono::from_ms(0));
        (0..8).for_each(|_| health.failed(1.0, Mono::from_ms(0)));
        let scores: Vec<u8> =
            (0..12).map(|step| health.score_at(None, Mono::from_ms(step * 30_000)).tenths()).collect();
        assert!(scores.is_sorted(), "{scores:?}");
        assert_eq!(scores.last(), Some(&10), "{scores:?}");
    }

    #[test]
    fn success_outweighs_rare_failures() {
        let now = Mono::from_ms(0);
        let mut health = Health::new(now);
        health.succeeded(995, Duration::from_millis(10), now);
        assert_eq!(health.score_at(None, now), Score::PERFECT);
        health.failed(1.0, now);
        assert_eq!(health.score_at(None, now), Score::PERFECT);
        (0..99).for_each(|_| health.failed(1.0, now));
        assert_eq!(health.score_at(None, now).tenths(), 9);
    }

    #[test]
    fn latency_counts_only_with_samples_and_against_the_median() {
        let now = Mono::from_ms(0);
        let mut slow = Health::new(now);
        slow.succeeded(9, Duration::from_secs(6), now);
        assert_eq!(slow.score_at(Some(1_000.0), now), Score::PERFECT);
        slow.succeeded(30, Duration::from_secs(6), now);
        assert_eq!(slow.score_at(Some(1_000.0), now).tenths(), 5, "halved at most");
        assert_eq!(slow.score_at(Some(5_000.0), now), Score::PERFECT, "within 1.5 of the median");
    }

    #[test]
    fn order_does_not_matter() {
        let (early, late) = (Mono::from_ms(10_000), Mono::from_ms(40_000));
        let mut a = Health::new(Mono::from_ms(0));
        a.failed(1.0, early);
        a.succeeded(1, Duration::ZERO, late);
        let (successes, failures) = a.counts(late);
        assert!((failures - 0.5).abs() < 1e-9 && (successes - 1.0).abs() < 1e-9);
    }

    #[test]
    fn server_errors_speak_against_a_key_only_while_others_succeed() {
        assert_eq!(weight(Scope::Model, Cause::Overloaded, false), None);
        assert_eq!(weight(Scope::Model, Cause::Overloaded, true), Some(1.0));
        assert_eq!(weight(Scope::Client, Cause::BadRequest, true), None);
        assert_eq!(weight(Scope::Bucket, Cause::PerMinute, false), Some(0.25));
    }
}
