//! What a request does after a failed attempt, within three separate limits: walking to another key is bounded by
//! the pool, transient errors by their own small budget, and everything by one deadline.

use std::time::Duration;

use crate::outcome::{Outcome, Retry};
use crate::time::Mono;

/// The most keys that one request walks through, however large the pool.
pub const MAX_ROTATIONS: u32 = 2_000;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// The budgets of one request.
#[derive(Debug, Clone)]
pub struct RetryPlan {
    transient_left: u32,
    transient_used: u32,
    rotations: u32,
    deadline: Mono,
}

/// The next step of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The answer goes to the caller.
    GiveUp,
    /// Another key, at once.
    AnotherKey,
    /// Wait, then the same key again.
    SameKey(Duration),
    /// Wait, then another key.
    AnotherKeyAfter(Duration),
}

impl RetryPlan {
    /// A plan with `transient` retries after transient errors, ending at `deadline`.
    pub const fn new(transient: u32, deadline: Mono) -> Self {
        Self { transient_left: transient, transient_used: 0, rotations: 0, deadline }
    }

    /// When the request has to have its first byte.
    pub const fn deadline(&self) -> Mono {
        self.deadline
    }

    /// Decides the next step. `draw` is uniform over its range and spreads the back-off by a quarter.
    pub fn next(&mut self, outcome: &Outcome, now: Mono, draw: u32) -> Next {
        match outcome.retry {
            Retry::Never => Next::GiveUp,
            Retry::OtherKey => {
                self.rotations += 1;
                if self.rotations > MAX_ROTATIONS || now >= self.deadline {
                    Next::GiveUp
                } else {
                    Next::AnotherKey
                }
            }
            Retry::BackOff => {
                let Some(left) = self.transient_left.checked_sub(1) else { return Next::GiveUp };
                self.transient_left = left;
                let full = FIRST_BACKOFF.saturating_mul(1 << self.transient_used.min(8)).min(MAX_BACKOFF);
                let wait = full.mul_f64(1.0 - f64::from(draw) / f64::from(u32::MAX) / 4.0);
                self.transient_used += 1;
                if now.plus(wait) >= self.deadline {
                    Next::GiveUp
                } else if self.transient_used == 1 {
                    Next::SameKey(wait)
                } else {
                    Next::AnotherKeyAfter(wait)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Cause;

    #[test]
    fn quota_rotations_do_not_eat_the_transient_budget() {
        let mut plan = RetryPlan::new(2, Mono::from_ms(60_000));
        let now = Mono::from_ms(0);
        for _ in 0..100 {
            assert_eq!(plan.next(&Cause::PerMinute.outcome(), now, 0), Next::AnotherKey);
        }
        let busy = Cause::Overloaded.outcome();
        assert_eq!(plan.next(&busy, now, 0), Next::SameKey(Duration::from_millis(100)));
        assert_eq!(plan.next(&busy, now, u32::MAX), Next::AnotherKeyAfter(Duration::from_millis(150)));
        assert_eq!(plan.next(&busy, now, 0), Next::GiveUp);
        assert_eq!(plan.next(&Cause::InvalidKey.outcome(), now, 0), Next::AnotherKey);
    }

    #[test]
    fn one_deadline_rules_all() {
        let late = Mono::from_ms(999);
        let mut plan = RetryPlan::new(9, Mono::from_ms(1_000));
        assert_eq!(plan.next(&Cause::Overloaded.outcome(), late, 0), Next::GiveUp);
        assert_eq!(plan.next(&Cause::PerDay.outcome(), Mono::from_ms(1_000), 0), Next::GiveUp);
        assert_eq!(plan.next(&Cause::BadRequest.outcome(), Mono::from_ms(0), 0), Next::GiveUp);
    }
}
