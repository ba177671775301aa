//! What became of the attempts of the last minute, by model. A leader begins without any.

use std::collections::HashMap;
use std::time::Duration;

use crate::id::Model;
use crate::time::Mono;

/// How long one slot of a window is.
const SLOT: Duration = Duration::from_secs(10);
/// So many of them are counted.
const SLOTS: usize = 6;
/// A model that nobody asked for in so long is forgotten.
const STALE: Duration = Duration::from_mins(10);
/// The most models; beyond it the one that was silent longest makes room. Names come from clients.
const MAX_MODELS: usize = 256;
/// Times are told apart by factors of the fourth root of two, from 1 ms to over a minute.
const BUCKETS: usize = 68;

/// Every model that was asked for lately.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<Model, Window>);

#[derive(Debug)]
struct Window {
    slots: [Slot; SLOTS],
    /// The number of the slot that is filled, counted from the clock's zero.
    at: u64,
    asked: Mono,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    answered: u64,
    failed: u64,
    times: [u32; BUCKETS],
}

/// What became of a model's attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rate {
    pub(super) attempts: u64,
    pub(super) failed: u64,
    pub(super) p95: Option<Duration>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { answered: 0, failed: 0, times: [0; BUCKETS] }
    }
}

impl Window {
    fn slot(&mut self, now: Mono) -> &mut Slot {
        self.turn(now);
        let at = usize::try_from(self.at % SLOTS as u64).unwrap_or_default();
        &mut self.slots[at]
    }

    /// Empties the slots whose time has passed.
    fn turn(&mut self, now: Mono) {
        let slot = u64::try_from(SLOT.as_millis()).unwrap_or(1);
        let next = now.as_ms() / slot;
        let passed = next.saturating_sub(self.at).min(SLOTS as u64);
        for gone in 0..passed {
            let place = usize::try_from((next - gone) % SLOTS as u64).unwrap_or_default();
            self.slots[place] = Slot::default();
        }
        self.at = self.at.max(next);
    }

    fn rate(&mut self, now: Mono) -> Rate {
        self.turn(now);
        let sum = |of: fn(&Slot) -> u64| self.slots.iter().map(of).sum::<u64>();
        let (answered, failed) = (sum(|slot| slot.answered), sum(|slot| slot.failed));
        let mut left = answered.div_ceil(20);
        let late = (0..BUCKETS).rev().find(|bucket| {
            let of_bucket = self.slots.iter().map(|slot| u64::from(slot.times[*bucket])).sum();
            let found = answered > 0 && left <= of_bucket;
            left = left.saturating_sub(of_bucket);
            found
        });
        Rate { attempts: answered + failed, failed, p95: late.map(middle) }
    }
}

impl Rates {
    pub(super) fn answered(&mut self, model: &Model, n: u32, ttfb_ms: u32, now: Mono) {
        let slot = self.window(model, now).slot(now);
        slot.answered += u64::from(n);
        let times = &mut slot.times[bucket(ttfb_ms)];
        *times = times.saturating_add(n);
    }

    /// Attempts failed, unless only a quota refused them; then somebody asked all the same.
    pub(super) fn failed(&mut self, model: &Model, n: u32, by_quota: bool, now: Mono) {
        let slot = self.window(model, now).slot(now);
        slot.failed += if by_quota { 0 } else { u64::from(n) };
    }

    /// Models that are asked for.
    pub(super) fn all(&mut self, now: Mono) -> Vec<(Model, Rate)> {
        self.0.iter_mut().map(|(model, window)| (model.clone(), window.rate(now))).collect()
    }

    /// Forgets those that nobody asks for; those that nobody can be served with cannot be asked for.
    pub(super) fn forget(&mut self, out: impl Fn(&Model) -> bool, now: Mono) {
        self.0.retain(|model, window| now.since(window.asked) <= STALE || out(model));
    }

    fn window(&mut self, model: &Model, now: Mono) -> &mut Window {
        if self.0.len() >= MAX_MODELS && !self.0.contains_key(model) {
            let silent = self.0.iter().min_by(|a, b| (a.1.asked, a.0).cmp(&(b.1.asked, b.0)));
            if let Some(silent) = silent.map(|(model, _)| model.clone()) {
                self.0.remove(&silent);
            }
        }
        let window = self.0.entry(model.clone()).or_insert_with(|| Window {
            slots: [Slot::default(); SLOTS],
            at: 0,
            asked: now,
        });
        window.asked = now;
        window
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number above zero")]
fn bucket(ttfb_ms: u32) -> usize {
    ((f64::from(ttfb_ms.max(1)).log2() * 4.0) as usize).min(BUCKETS - 1)
}

/// The middle of a bucket, by factors.
#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn middle(bucket: usize) -> Duration {
    Duration::from_secs_f64(((bucket as f64 + 0.5) / 4.0).exp2() / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_ms(1_000_000_000 + seconds * 1_000)
    }

    fn only(rates: &mut Rates, now: Mono) -> Rate {
        rates.all(now).pop().unwrap().1
    }

    #[test]
    fn a_minute_is_counted_and_then_forgotten() {
        let mut rates = Rates::default();
        let model = Model::new("m");
        rates.answered(&model, 19, 100, at(0));
        rates.failed(&model, 1, false, at(15));
        rates.failed(&model, 5, true, at(15));
        let rate = only(&mut rates, at(30));
        assert_eq!((rate.attempts, rate.failed), (20, 1));
        assert_eq!(only(&mut rates, at(60)).attempts, 1);
        assert_eq!(only(&mut rates, at(500)), Rate::default());
        rates.forget(|_| true, at(10_000));
        assert_eq!(rates.0.len(), 1);
        rates.forget(|_| false, at(10_000));
        assert!(rates.0.is_empty());
    }

    #[test]
    fn the_slowest_of_twenty_is_found_as_exactly_as_it_matters() {
        for (fast, slow, expected_ms) in [(96, 4, 100.0), (95, 5, 6_000.0), (0, 100, 6_000.0)] {
            let mut rates = Rates::default();
            let model = Model::new("m");
            rates.answered(&model, fast, 100, at(0));
            rates.answered(&model, slow, 6_000, at(12));
            let p95 = only(&mut rates, at(20)).p95.unwrap().as_secs_f64() * 1_000.0;
            assert!((p95 / expected_ms - 1.0).abs() < 0.1, "{p95} for {expected_ms}");
        }
    }

    #[test]
    fn names_are_bounded_and_the_silent_make_room() {
        let mut rates = Rates::default();
        for n in 0..MAX_MODELS as u64 + 50 {
            rates.failed(&Model::new("busy"), 1, false, at(n));
            rates.failed(&Model::new(format!("name {n}")), 1, false, at(n));
        }
        assert_eq!(rates.0.len(), MAX_MODELS);
        assert!(rates.0.contains_key(&Model::new("busy")));
    }
}
