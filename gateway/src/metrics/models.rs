//! What is counted by model. Names come from clients: only one that an upstream has answered for gets figures of its
//! own, and only so many do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use keyfleet_core::id::Model;
use parking_lot::Mutex;

use super::histogram::{Histogram, Timing};

/// The most names; 256 numbers with the two that are always there.
const MOST: usize = 254;

/// The figures of one model.
#[derive(Debug)]
pub(crate) struct ModelFigures {
    /// Its place among all: short, where the name is long.
    pub(super) number: u8,
    pub(super) name: Box<str>,
    pub(crate) first_byte: Timing,
    pub(crate) upstream: Timing,
    pub(crate) whole: Timing,
    pub(crate) gaps: Histogram,
    pub(super) input: TokenFigures,
    pub(super) output: TokenFigures,
    pub(crate) answered: AtomicU64,
    /// Attempts that were no answers, by what they were.
    pub(super) failed: Mutex<BTreeMap<&'static str, u64>>,
}

/// Tokens of one direction.
#[derive(Debug)]
pub(crate) struct TokenFigures {
    pub(super) sum: AtomicU64,
    pub(super) of_requests: Histogram,
}

impl ModelFigures {
    fn new(number: u8, name: &str) -> Arc<Self> {
        Arc::new(Self {
            number,
            name: name.into(),
            first_byte: Timing::default(),
            upstream: Timing::default(),
            whole: Timing::default(),
            gaps: Histogram::of_seconds(),
            input: TokenFigures::default(),
            output: TokenFigures::default(),
            answered: AtomicU64::new(0),
            failed: Mutex::default(),
        })
    }

    /// An attempt was no answer.
    pub(super) fn attempt_failed(&self, why: &'static str) {
        *self.failed.lock().entry(why).or_default() += 1;
    }
}

impl Default for TokenFigures {
    fn default() -> Self {
        Self { sum: AtomicU64::new(0), of_requests: Histogram::of_tokens() }
    }
}

impl TokenFigures {
    /// One request had so many.
    pub(super) fn add(&self, tokens: u64) {
        self.sum.fetch_add(tokens, Relaxed);
        self.of_requests.observe(tokens);
    }
}

type Known = HashMap<Box<str>, Arc<ModelFigures>, foldhash::fast::RandomState>;

/// The figures of all models.
#[derive(Debug)]
pub(crate) struct Models {
    /// Replaced as a whole: it grows a few times in a process's life, and is read by every request.
    known: ArcSwap<Known>,
    growing: Mutex<()>,
    none: Arc<ModelFigures>,
    other: Arc<ModelFigures>,
}

impl Default for Models {
    fn default() -> Self {
        Self {
            known: ArcSwap::default(),
            growing: Mutex::default(),
            none: ModelFigures::new(0, "none"),
            other: ModelFigures::new(1, "other"),
        }
    }
}

impl Models {
    /// The figures that a request for this model belongs to.
    pub(crate) fn of(&self, name: &str) -> Arc<ModelFigures> {
        if name.is_empty() {
            return self.none.clone();
        }
        self.known.load().get(name).unwrap_or(&self.other).clone()
    }

    /// The same, when an upstream has just answered for it. `is_clean` tells whether the name can be shown.
    pub(crate) fn answered(&self, name: &str, is_clean: impl FnOnce() -> bool) -> Arc<ModelFigures> {
        let figures = self.of(name);
        if figures.number != self.other.number || !self.may_add(name) || !is_clean() {
            return figures;
        }
        let _one_at_a_time = self.growing.lock();
        // Another request may have been faster.
        if self.known.load().contains_key(name) || !self.may_add(name) {
            return self.of(name);
        }
        let mut known = Known::clone(&self.known.load());
        let number = u8::try_from(known.len() + 2).unwrap_or(u8::MAX);
        let figures = ModelFigures::new(number, name);
        known.insert(name.into(), figures.clone());
        self.known.store(Arc::new(known));
        figures
    }

    fn may_add(&self, name: &str) -> bool {
        let is_ours = ["none", "other"].contains(&name);
        !is_ours && Model::is_plain(name) && self.known.load().len() < MOST
    }

    /// All, by number.
    pub(super) fn all(&self) -> Vec<Arc<ModelFigures>> {
        let own = [&self.none, &self.other].into_iter().cloned();
        let mut all: Vec<_> = own.chain(self.known.load().values().cloned()).collect();
        all.sort_by_key(|figures| figures.number);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_models_that_answered_have_figures_and_few_of_them() {
        let models = Models::default();
        assert_eq!(&*models.of("m").name, "other");
        assert_eq!(&*models.answered("m", || false).name, "other");
        let own = models.answered("m", || true);
        assert_eq!((&*own.name, &*models.of("m").name), ("m", "m"));
        assert!(Arc::ptr_eq(&own, &models.answered("m", || panic!("it is known"))));
        assert_eq!(&*models.of("").name, "none");
        for name in ["", "other", "none", "a\"b", "a b", "a\n", "\u{e9}", &"x".repeat(129)] {
            assert_ne!(&*models.answered(name, || true).name, "m", "{name:?}");
        }
        assert_eq!(models.all().len(), 3);
        for n in 0..10_000 {
            models.answered(&format!("hostile-{n}"), || true);
        }
        let all = models.all();
        assert_eq!(all.len(), MOST + 2);
        assert!(all.iter().enumerate().all(|(at, figures)| usize::from(figures.number) == at));
    }
}
