//! The keys that wait for a look. None waits twice, and what an operator asks for goes first.

use std::collections::{HashSet, VecDeque};

use keyfleet_core::id::KeyId;

/// Keys that may wait because they are due; the ledger asks again for those that find no place.
const DUE: usize = 4_096;
/// Keys that may wait because an operator asked; for more of them the operator is told.
const ASKED: usize = 64;

/// An operator's key finds no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not looked at, since {ASKED} keys wait for that already; ask for a probe in a moment")]
pub(crate) struct Full;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    asked: VecDeque<KeyId>,
    due: VecDeque<KeyId>,
    /// All that wait.
    keys: HashSet<KeyId>,
}

impl Waiting {
    /// A key is due; false if there is no place for it.
    pub(super) fn due(&mut self, key: KeyId) -> bool {
        if self.keys.contains(&key) {
            return true;
        }
        let has_place = self.due.len() < DUE;
        if has_place {
            self.keys.insert(key.clone());
            self.due.push_back(key);
        }
        has_place
    }

    /// An operator wants a key looked at.
    pub(super) fn asked(&mut self, key: KeyId) -> Result<(), Full> {
        if self.asked.contains(&key) {
            return Ok(());
        }
        if self.asked.len() >= ASKED {
            return Err(Full);
        }
        if !self.keys.insert(key.clone()) {
            self.due.retain(|due| *due != key);
        }
        self.asked.push_back(key);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The next one; from now on it may wait again.
    pub(super) fn take(&mut self) -> Option<KeyId> {
        let key = self.asked.pop_front().or_else(|| self.due.pop_front())?;
        self.keys.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> KeyId {
        KeyId::new(n.to_string())
    }

    fn all(waiting: &mut Waiting) -> Vec<KeyId> {
        std::iter::from_fn(|| waiting.take()).collect()
    }

    #[test]
    fn no_key_waits_twice_and_operators_go_first() {
        let mut waiting = Waiting::default();
        for n in [1, 2, 3, 1, 2] {
            assert!(waiting.due(key(n)));
        }
        for n in [9, 3, 9] {
            assert_eq!(waiting.asked(key(n)), Ok(()));
        }
        assert!(waiting.due(key(9)));
        assert_eq!(all(&mut waiting), [9, 3, 1, 2].map(key));
        assert!(waiting.is_empty());
        assert!(waiting.due(key(1)));
        assert_eq!(all(&mut waiting), [key(1)], "once it is taken it may wait again");
    }

    #[test]
    fn there_is_a_place_for_operators_until_theirs_are_taken() {
        let mut waiting = Waiting::default();
        let placed = (0..DUE + 10).filter(|n| waiting.due(key(*n))).count();
        assert_eq!(placed, DUE);
        for n in 0..ASKED {
            assert_eq!(waiting.asked(key(DUE + n)), Ok(()));
        }
        assert_eq!(waiting.asked(key(0)), Err(Full));
        assert_eq!(waiting.asked(key(DUE)), Ok(()), "it waits already");
        assert_eq!(waiting.take(), Some(key(DUE)));
        assert_eq!(waiting.asked(key(0)), Ok(()));
        assert_eq!(all(&mut waiting).len(), DUE - 1 + ASKED);
    }
}
