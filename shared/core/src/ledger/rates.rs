//! What became of the attempts of the last minute, by model. A leader begins without any.

use std::collections::HashMap;
use std::time::Duration;

use crate::alert::seen::Traffic;
use crate::id::Model;
use crate::latency::Latencies;
use crate::time::Mono;

/// How long one slot of a window is.
const SLOT: Duration = Duration::from_secs(10);
/// So many of them are counted.
const SLOTS: usize = 6;
/// A model that nobody asked for in so long is forgotten.
const STALE: Duration = Duration::from_mins(10);
/// The most models; beyond it the one that was silent longest makes room. Names come from clients.
const MAX_MODELS: usize = 256;

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

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    answered: u64,
    failed: u64,
    times: Latencies,
}

impl Slot {
    fn merge(mut self, other: &Self) -> Self {
        self.answered += other.answered;
        self.failed += other.failed;
        self.times.merge(&other.times);
        self
    }

    fn traffic(&self) -> Traffic {
        Traffic { attempts: self.answered + self.failed, failed: self.failed, p95: self.times.p95() }
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

    fn sum(&mut self, now: Mono) -> Slot {
        self.turn(now);
        self.slots.iter().fold(Slot::default(), Slot::merge)
    }
}

impl Rates {
    pub(super) fn answered(&mut self, model: &Model, n: u32, now: Mono) {
        self.window(model, now).slot(now).answered += u64::from(n);
    }

    /// So long it took until answers began.
    pub(super) fn took(&mut self, model: &Model, times: &Latencies, now: Mono) {
        self.window(model, now).slot(now).times.merge(times);
    }

    /// Attempts failed, unless only a quota refused them; then somebody asked all the same.
    pub(super) fn failed(&mut self, model: &Model, n: u32, by_quota: bool, now: Mono) {
        let slot = self.window(model, now).slot(now);
        slot.failed += if by_quota { 0 } else { u64::from(n) };
    }

    /// Models that are asked for, and all of them together.
    pub(super) fn all(&mut self, now: Mono) -> (Vec<(Model, Traffic)>, Traffic) {
        let mut overall = Slot::default();
        let of_models = self.0.iter_mut().map(|(model, window)| {
            let sum = window.sum(now);
            overall = overall.merge(&sum);
            (model.clone(), sum.traffic())
        });
        let of_models = of_models.collect();
        (of_models, overall.traffic())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_ms(1_000_000_000 + seconds * 1_000)
    }

    fn only(rates: &mut Rates, now: Mono) -> Traffic {
        let (mut all, overall) = rates.all(now);
        let only = all.pop().unwrap().1;
        assert_eq!(only, overall);
        only
    }

    #[test]
    fn a_minute_is_counted_and_then_forgotten() {
        let mut rates = Rates::default();
        let model = Model::new("m");
        let mut times = Latencies::default();
        times.count(19, 100);
        rates.answered(&model, 19, at(0));
        rates.took(&model, &times, at(0));
        rates.failed(&model, 1, false, at(15));
        rates.failed(&model, 5, true, at(15));
        let rate = only(&mut rates, at(30));
        assert_eq!((rate.attempts, rate.failed, rate.p95), (20, 1, times.p95()));
        assert_eq!(only(&mut rates, at(60)), Traffic { attempts: 1, failed: 1, p95: None });
        assert_eq!(only(&mut rates, at(500)), Traffic::default());
        rates.forget(|_| true, at(10_000));
        assert_eq!(rates.0.len(), 1);
        rates.forget(|_| false, at(10_000));
        assert!(rates.0.is_empty());
    }

    #[test]
    fn all_models_count_together() {
        let mut rates = Rates::default();
        for (model, n) in [("a", 1), ("b", 2)] {
            rates.answered(&Model::new(model), n, at(0));
            rates.failed(&Model::new(model), n, false, at(10));
        }
        assert_eq!(rates.all(at(20)).1, Traffic { attempts: 6, failed: 3, p95: None });
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
