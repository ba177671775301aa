//! The counter that requests draw from, and how it is closed while they do.
//!
//! `tests/interleavings.rs` compiles this file a second time, with atomics of which every interleaving is tried.

use super::atomic::{AtomicU64, Ordering};

/// In place of what is left: nothing is, and nothing comes back.
const CLOSED: u32 = u32::MAX;

/// The permits of one lot.
#[derive(Debug)]
pub struct Permits {
    /// How often it was reported (upper half), and what is left (lower half).
    state: AtomicU64,
    given_back: AtomicU64,
    size: u32,
}

/// Names the time between two reports in which permits were drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round(u32);

/// How a lot stands. Both counts only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Permits that were drawn, some of them perhaps twice.
    pub drawn: u64,
    /// Permits that were given back after their draw had been reported.
    pub given_back: u64,
}

impl Permits {
    /// So many permits; 4 billion at most.
    pub fn new(size: u64) -> Self {
        let size = u32::try_from(size).unwrap_or(CLOSED - 1).min(CLOSED - 1);
        Self { state: AtomicU64::new(u64::from(size)), given_back: AtomicU64::new(0), size }
    }

    /// Draws `n`, or nothing.
    pub fn draw(&self, n: u64) -> Option<Round> {
        let before = self.change(|round, left| {
            let left = (left != CLOSED).then_some(u64::from(left))?.checked_sub(n)?;
            Some((round, u32::try_from(left).ok()?))
        })?;
        Some(Round(before.0))
    }

    /// Gives back what was drawn in that round and not spent. A closed lot takes nothing back: it is reported already.
    ///
    /// What comes back in the round of its draw was never reported, and nobody need know.
    pub fn give_back(&self, n: u64, drawn: Round) -> bool {
        let back = |left: u32| {
            let left = (left != CLOSED).then_some(u64::from(left))?.checked_add(n)?;
            u32::try_from(left).ok()
        };
        if self.change(|round, left| Some((round, back(left).filter(|_| Round(round) == drawn)?))).is_some() {
            return true;
        }
        // Counted first: whoever closes in between tells of a permit that came back and was drawn once more, which
        // charges it later instead of not at all.
        self.given_back.fetch_add(n, Ordering::AcqRel);
        let taken = self.change(|round, left| Some((round, back(left)?))).is_some();
        if !taken {
            self.given_back.fetch_sub(n, Ordering::AcqRel);
        }
        taken
    }

    /// What is left; 0 once it is closed.
    pub fn left(&self) -> u64 {
        let (_, left) = halves(self.state.load(Ordering::Acquire));
        if left == CLOSED { 0 } else { u64::from(left) }
    }

    /// How many it held at first.
    pub fn size(&self) -> u64 {
        u64::from(self.size)
    }

    /// How it stands, for a report: a new round begins. A return that happens meanwhile may be missing.
    pub fn tally(&self) -> Tally {
        let given_back = self.given_back.load(Ordering::Acquire);
        let before = self.change(|round, left| Some((round.wrapping_add(1), left)));
        self.tally_of(before.map_or(0, |(_, left)| left), given_back)
    }

    /// Closes it: from now on every draw fails. Returns how it stands at last, once.
    ///
    /// The counter is closed and read in one step, so that no draw can slip between reading and closing.
    pub fn close(&self) -> Option<Tally> {
        let (_, left) = self.change(|round, left| (left != CLOSED).then_some((round, CLOSED)))?;
        Some(self.tally_of(left, self.given_back.load(Ordering::Acquire)))
    }

    fn tally_of(&self, left: u32, given_back: u64) -> Tally {
        let drawn = (self.size() + given_back).saturating_sub(u64::from(left));
        Tally { drawn, given_back }
    }

    /// Changes both halves in one step; returns what they were, or nothing if `change` refuses.
    fn change(&self, change: impl Fn(u32, u32) -> Option<(u32, u32)>) -> Option<(u32, u32)> {
        let update = |state: u64| {
            let (round, left) = halves(state);
            change(round, left).map(|(round, left)| u64::from(round) << 32 | u64::from(left))
        };
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, update).ok().map(halves)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "that is the point")]
const fn halves(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}
