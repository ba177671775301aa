//! Seats that take turns, exactly, however many of them are closed.
//!
//! A seat with less than full weight is passed over in part of the rounds. Seats behind a closed gate drop out of a
//! bit set when they are first met and come back when their time has come, so that a choice costs one step, plus one
//! word per 64 seats in the worst case.

use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use super::{Probes, Seat, Want, mix};
use crate::time::Mono;

/// How many seats may be passed over for their weight before the heaviest of them is taken after all.
const MAX_PASSED_OVER: u32 = 256;

#[derive(Debug)]
pub(super) struct Ring {
    /// How many seats there are; one at least.
    len: usize,
    /// One bit per seat: set unless the seat was met closed.
    open: Box<[AtomicU64]>,
    /// Absolute position of the next seat to look at.
    cursor: AtomicU64,
    /// When the first closed seat may open again.
    reopens: AtomicU64,
    /// The generation of openings that the bit set knows of.
    generation: AtomicU64,
}

impl Ring {
    pub(super) fn new(len: usize, seed: u64) -> Self {
        Self {
            len,
            open: (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            cursor: AtomicU64::new(seed % len as u64),
            reopens: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// True if a seat is open, as far as that is known without looking at it.
    pub(super) fn any_open(&self) -> bool {
        self.open.iter().any(|word| word.load(Acquire) != 0)
    }

    /// Puts the seats back whose time has come. One thread does it; the others go on with what they see.
    pub(super) fn reopen(&self, seats: &[Seat], generation: u64, now: Mono) {
        let due = self.reopens.load(Acquire);
        let known = self.generation.load(Acquire);
        if due > now.as_ms() && known == generation {
            return;
        }
        if self.reopens.compare_exchange(due, u64::MAX, AcqRel, Acquire).is_err() {
            return;
        }
        self.generation.store(generation, Release);
        for (index, seat) in seats.iter().enumerate() {
            let at = seat.reopens_at();
            if at <= now {
                self.open[index / 64].fetch_or(1 << (index % 64), AcqRel);
            } else {
                self.reopens.fetch_min(at.as_ms(), AcqRel);
            }
        }
    }

    /// The next seat whose turn it is.
    pub(super) fn take_turns(&self, seats: &[Seat], want: &Want<'_>, now: Mono) -> Option<(usize, Probes)> {
        let mut passed_over: Option<(u32, usize)> = None;
        let mut passed = 0;
        for _ in 0..(self.len * 2).max(MAX_PASSED_OVER as usize) {
            let (index, round) = self.advance()?;
            let seat = &seats[index];
            if want.tried.contains(&seat.key) {
                continue;
            }
            // Golden-ratio steps spread the rounds in which a light seat sits out evenly; each seat has its own phase,
            // so that light ones do not all sit out together.
            let phase = round.wrapping_mul(40_503).wrapping_add((index as u64).wrapping_mul(25_173));
            let threshold = u32::try_from(phase & 0xFFFF).unwrap_or_default();
            let weight = seat.weight(now);
            if weight < threshold {
                passed_over = passed_over.max(Some((weight, index)));
                passed += 1;
                if passed < MAX_PASSED_OVER {
                    continue;
                }
                break;
            }
            match seat.admit(want.bytes, now) {
                Some(probes) => return Some((index, probes)),
                None => self.drop_out(seats, index, now),
            }
        }
        // Never an empty pool by score alone.
        let (_, light) = passed_over?;
        seats[light].admit(want.bytes, now).map(|probes| (light, probes))
    }

    /// The first open seat behind a place that belongs to the session.
    pub(super) fn nearest(
        &self,
        seats: &[Seat],
        session: u64,
        want: &Want<'_>,
        now: Mono,
    ) -> Option<(usize, Probes)> {
        let start = usize::try_from(mix(session) % self.len as u64).unwrap_or_default();
        for (mut from, to) in [(start, self.len), (0, start)] {
            while let Some(index) = self.next_open(from, to) {
                from = index + 1;
                if want.tried.contains(&seats[index].key) {
                    continue;
                }
                match seats[index].admit(want.bytes, now) {
                    Some(probes) => return Some((index, probes)),
                    None => self.drop_out(seats, index, now),
                }
            }
        }
        None
    }

    /// Every place once, from the cursor on, which moves by one.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        let cursor = self.cursor.fetch_add(1, AcqRel) % self.len as u64;
        let start = usize::try_from(cursor).unwrap_or_default();
        (start..self.len).chain(0..start)
    }

    /// Takes a seat out until its time comes.
    fn drop_out(&self, seats: &[Seat], index: usize, now: Mono) {
        let bit = 1 << (index % 64);
        self.open[index / 64].fetch_and(!bit, AcqRel);
        let at = seats[index].reopens_at();
        if at <= now {
            self.open[index / 64].fetch_or(bit, AcqRel); // opened meanwhile
        } else {
            self.reopens.fetch_min(at.as_ms(), AcqRel);
        }
    }

    /// The next open seat at or after the cursor, which moves past it; with the round that it belongs to.
    fn advance(&self) -> Option<(usize, u64)> {
        let len = self.len as u64;
        loop {
            let cursor = self.cursor.load(Acquire);
            let from = usize::try_from(cursor % len).unwrap_or_default();
            let (index, wrapped) = match self.next_open(from, self.len) {
                Some(index) => (index, false),
                None => (self.next_open(0, from)?, true),
            };
            let ahead = if wrapped { self.len - from + index } else { index - from };
            let position = cursor + ahead as u64;
            if self.cursor.compare_exchange_weak(cursor, position + 1, AcqRel, Acquire).is_ok() {
                return Some((index, position / len));
            }
        }
    }

    fn next_open(&self, from: usize, to: usize) -> Option<usize> {
        let mut index = from;
        while index < to {
            let word = self.open[index / 64].load(Acquire) >> (index % 64);
            if word != 0 {
                let found = index + word.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }
}
