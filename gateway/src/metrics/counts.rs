//! Counters told apart by a number that stands for their labels. Adding takes no lock and no memory; how many there can
//! be is fixed, and what finds no room is counted as one.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// A power of two.
const SLOTS: usize = 4_096;
/// So many labels have a counter of their own; the rest of the slots keeps searches short.
const MOST: u64 = SLOTS as u64 / 4 * 3;

/// The counters.
#[derive(Debug)]
pub(super) struct Counts {
    slots: Box<[Slot]>,
    used: AtomicU64,
    /// What found no room.
    rest: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0: nobody's yet.
    key: AtomicU64,
    n: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| Slot::default()).collect();
        Self { slots, used: AtomicU64::new(0), rest: AtomicU64::new(0) }
    }
}

impl Counts {
    /// Counts one more. `key` is not 0.
    pub(super) fn add(&self, key: u64) {
        self.slot(key).unwrap_or(&self.rest).fetch_add(1, Relaxed);
    }

    fn slot(&self, key: u64) -> Option<&AtomicU64> {
        // The highest bits of the product depend on all of the key's.
        let start = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros());
        let start = usize::try_from(start).unwrap_or_default();
        for step in 0..SLOTS {
            let slot = &self.slots[(start + step) % SLOTS];
            let mut found = slot.key.load(Acquire);
            if found == 0 {
                if self.used.load(Relaxed) >= MOST {
                    return None;
                }
                found = match slot.key.compare_exchange(0, key, Release, Acquire) {
                    Ok(_) => {
                        self.used.fetch_add(1, Relaxed);
                        key
                    }
                    Err(another) => another,
                };
            }
            if found == key {
                return Some(&slot.n);
            }
        }
        None
    }

    /// Every key with its count, and what found no room.
    pub(super) fn read(&self) -> (Vec<(u64, u64)>, u64) {
        let pairs = self.slots.iter().map(|slot| (slot.key.load(Acquire), slot.n.load(Relaxed)));
        (pairs.filter(|(key, _)| *key != 0).collect(), self.rest.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_counted_there_are_few_counters_and_nothing_is_lost() {
        let counts = Counts::default();
        let threads = 4;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| (1..=10_000).for_each(|key| counts.add(key)));
            }
        });
        let (pairs, rest) = counts.read();
        // Several may have found the last place free at a time.
        assert!((MOST..MOST + threads).contains(&(pairs.len() as u64)), "{}", pairs.len());
        assert_eq!(pairs.iter().map(|(_, n)| n).sum::<u64>() + rest, 10_000 * threads);
        let before = pairs.iter().find(|(key, _)| *key == 7).unwrap().1;
        assert_eq!(before, threads, "the first ones have their own");
        counts.add(7);
        assert!(counts.read().0.contains(&(7, before + 1)), "they keep them when all is full");
    }
}
