//! One bucket as requests meet it: its purse, and what passes when no lease can be had.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use keyfleet_core::quota::holder::Purse;
use keyfleet_core::quota::{Bucket, Terms};
use keyfleet_core::time::Mono;
use keyfleet_service::config::WhenUnleased;
use parking_lot::Mutex;

use super::{JITTER, Policy};

/// A day of the longest kind.
const DAY: Duration = Duration::from_hours(25);

/// One bucket; without a purse nobody knows a limit, and everything passes.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    purse: ArcSwapOption<Purse>,
    /// Without a lease, requests pass all the same.
    open: AtomicBool,
    /// No draw can ever be larger.
    most: AtomicU64,
    /// What passes without a lease of a share that is never leased.
    reserve: Mutex<Reserve>,
}

/// This replica's part of what is never leased: so many in any window, or in a day.
#[derive(Debug, Default)]
struct Reserve {
    size: u64,
    used: VecDeque<(Mono, u64)>,
}

impl Slot {
    /// Puts a policy in force. Configured limits are the operator's; `told` is the upstream's.
    pub(super) fn limit(
        &self,
        purse: Option<Arc<Purse>>,
        bucket: &Bucket,
        told: Option<u64>,
        policy: &Policy<'_>,
    ) {
        let configured = policy.rules.limit(bucket);
        let when = if configured.is_some() { policy.configured } else { policy.learned };
        self.open.store(when == WhenUnleased::Open, Release);
        let kept = configured.map_or(0, |limit| policy.rules.reserve(limit));
        self.reserve.lock().size = kept / u64::from(policy.max_replicas);
        self.most.store(policy.rules.leasable(bucket).or(told).unwrap_or(u64::MAX), Release);
        self.purse.store(purse);
    }

    /// The most that can ever be drawn at once.
    pub(super) fn most(&self) -> u64 {
        self.most.load(Acquire)
    }

    /// What requests draw from, if there is a limit.
    pub(super) fn purse(&self) -> Guard<Option<Arc<Purse>>> {
        self.purse.load()
    }

    /// Whether `n` may pass although there is no lease.
    pub(super) fn passes(&self, bucket: &Bucket, n: u64, now: Mono) -> bool {
        let window = if bucket.is_daily() { DAY } else { Terms::MINUTE.window + JITTER };
        self.open.load(Acquire) || self.reserve.lock().draw(n, window, now)
    }
}

impl Reserve {
    fn draw(&mut self, n: u64, window: Duration, now: Mono) -> bool {
        while self.used.front().is_some_and(|(at, _)| now.since(*at) >= window) {
            self.used.pop_front();
        }
        let used: u64 = self.used.iter().map(|(_, n)| n).sum();
        let fits = used + n <= self.size;
        if fits {
            self.used.push_back((now, n));
        }
        fits
    }
}
