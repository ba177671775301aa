//! What is known per model: who was answered lately, and how fast. Keys are compared within one model only, so that a
//! slow model does not make the keys that serve it look slow.

use std::collections::HashMap;
use std::time::Duration;

use crate::id::{KeyId, Model, ProjectId};
use crate::time::Mono;

/// How long an answer of another project vouches for a model.
const VOUCH: Duration = Duration::from_secs(10);
/// The times of a key that was silent for so long say nothing about today.
const STALE: Duration = Duration::from_mins(10);
/// The most models that are kept; beyond it the one that was silent longest makes room. Names come from clients.
const MAX_MODELS: usize = 256;
/// What each answer leaves of the average before it, as in [`Health`](crate::health::Health).
const KEEP: f64 = 0.9;

/// Every model that was answered for lately.
#[derive(Debug, Default)]
pub(super) struct Models(HashMap<Model, Known>);

#[derive(Debug)]
struct Known {
    /// The two projects that were last seen to get an answer.
    answered: [Option<(ProjectId, Mono)>; 2],
    /// Each key's mean time to first byte in ms, and when it last answered.
    times: HashMap<KeyId, (f64, Mono)>,
    /// Their median at the last [`Models::settle`].
    median_ms: Option<f64>,
    at: Mono,
}

/// How a key's times compare with the medians of the models that it served: 1 is like the others, 2 is twice as slow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slowness(Option<f64>);

impl Slowness {
    /// Counts `n` answers that took `factor` times the median.
    pub(super) fn saw(&mut self, factor: f64, n: u32) {
        self.0 = Some(self.0.map_or(factor, |known| average(known, factor, n)));
    }

    /// What a key of median speed would have taken for the answers that took this one `own_ms`.
    pub(super) fn median_ms(self, own_ms: f64) -> Option<f64> {
        self.0.map(|slowness| own_ms / slowness)
    }
}

impl Models {
    /// Notes `n` answers; says how long they took compared with the model's median, once there is one.
    pub(super) fn answered(
        &mut self,
        model: &Model,
        (key, project): (&KeyId, &ProjectId),
        n: u32,
        ttfb_ms: u32,
        now: Mono,
    ) -> Option<f64> {
        self.make_room_for(model);
        let known = self.0.entry(model.clone()).or_insert_with(|| Known {
            answered: [None, None],
            times: HashMap::new(),
            median_ms: None,
            at: now,
        });
        known.at = now;
        let slot = usize::from(known.answered[0].as_ref().is_some_and(|(seen, _)| seen != project));
        known.answered[slot] = Some((project.clone(), now));
        known.answered.sort_by_key(|seen| std::cmp::Reverse(seen.as_ref().map(|(_, at)| *at)));
        let took = f64::from(ttfb_ms.max(1));
        let (mean, at) = known.times.entry(key.clone()).or_insert((took, now));
        (*mean, *at) = (average(*mean, took, n), now);
        known.median_ms.map(|median| took / median)
    }

    /// Whether projects other than this one are answered: since `before`, if a moment is given.
    pub(super) fn others_succeed(
        &self,
        model: &Model,
        project: &ProjectId,
        before: Option<Mono>,
        now: Mono,
    ) -> bool {
        let vouches = |at: Mono| now.since(at) <= VOUCH && before.is_none_or(|before| at > before);
        let seen = self.0.get(model).into_iter().flat_map(|known| known.answered.iter().flatten());
        seen.into_iter().any(|(other, at)| other != project && vouches(*at))
    }

    /// Drops what no longer matters, and takes the medians of what is left.
    pub(super) fn settle(&mut self, now: Mono) {
        self.0.retain(|_, known| {
            known.times.retain(|_, (_, at)| now.since(*at) <= STALE);
            let mut times: Vec<f64> = known.times.values().map(|(mean, _)| *mean).collect();
            // Of an even number the slower of the two in the middle: nobody is slow for want of company.
            let middle = times.len() / 2;
            known.median_ms =
                (!times.is_empty()).then(|| *times.select_nth_unstable_by(middle, f64::total_cmp).1);
            known.median_ms.is_some()
        });
    }

    fn make_room_for(&mut self, model: &Model) {
        if self.0.len() < MAX_MODELS || self.0.contains_key(model) {
            return;
        }
        let silent = self.0.iter().min_by(|a, b| (a.1.at, a.0).cmp(&(b.1.at, b.0)));
        if let Some(silent) = silent.map(|(model, _)| model.clone()) {
            self.0.remove(&silent);
        }
    }
}

/// An average that half forgets in some seven answers: fast enough to notice, slow enough to be calm.
fn average(known: f64, new: f64, n: u32) -> f64 {
    let keep = KEEP.powf(f64::from(n));
    known * keep + new * (1.0 - keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(models: &mut Models, model: &str, key: &str, ttfb_ms: u32, now: Mono) -> Option<f64> {
        let (key, project) = (KeyId::new(key), ProjectId::new(key));
        models.answered(&Model::new(model), (&key, &project), 1, ttfb_ms, now)
    }

    #[test]
    fn names_are_bounded_and_the_silent_make_room() {
        let mut models = Models::default();
        for n in 0..MAX_MODELS + 50 {
            let now = Mono::from_ms(n as u64);
            answer(&mut models, "busy", "a", 10, now);
            answer(&mut models, &format!("name {n}"), "a", 10, now);
        }
        assert_eq!(models.0.len(), MAX_MODELS);
        assert!(models.0.contains_key("busy"));
    }

    #[test]
    fn the_median_is_that_of_keys_heard_lately() {
        let mut models = Models::default();
        for (key, ttfb_ms) in [("a", 100), ("b", 200), ("c", 900)] {
            assert_eq!(answer(&mut models, "m", key, ttfb_ms, Mono::from_ms(0)), None);
        }
        models.settle(Mono::from_ms(1));
        let late = Mono::from_ms(0).plus(STALE);
        assert_eq!(answer(&mut models, "m", "c", 900, late), Some(4.5));
        models.settle(late.plus(Duration::from_secs(1)));
        assert_eq!(answer(&mut models, "m", "c", 900, late), Some(1.0), "nobody else is heard any more");
        models.settle(late.plus(STALE).plus(Duration::from_secs(1)));
        assert!(models.0.is_empty());
    }
}
