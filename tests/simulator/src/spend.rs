//! What a project has spent in the last ten minutes, for the limiter of the paid tiers.

use std::collections::VecDeque;

use parking_lot::Mutex;

const WINDOW_MS: i64 = 600_000;
/// Calls that are remembered; of more, the oldest are forgotten.
const MOST: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Spending {
    limit: Option<u64>,
    spent: Mutex<VecDeque<(i64, u64)>>,
}

impl Spending {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, spent: Mutex::default() }
    }

    /// Whether anything may still be spent now.
    pub(crate) fn allows(&self, now_ms: i64) -> bool {
        let Some(limit) = self.limit else { return true };
        let mut spent = self.spent.lock();
        while spent.front().is_some_and(|(at, _)| *at <= now_ms - WINDOW_MS) {
            spent.pop_front();
        }
        spent.iter().map(|(_, cost)| cost).sum::<u64>() < limit
    }

    pub(crate) fn add(&self, cost: u64, now_ms: i64) {
        if self.limit.is_none() {
            return;
        }
        let mut spent = self.spent.lock();
        if spent.len() >= MOST {
            spent.pop_front();
        }
        spent.push_back((now_ms, cost));
    }
}
