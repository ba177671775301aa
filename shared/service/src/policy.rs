//! The operator's options about failures, as the core takes them.

use keyfleet_core::block::Policy;
use keyfleet_core::gate::BreakerPolicy;

use crate::config::{Bare429, Failure};

impl Failure {
    /// What decides about blocks.
    pub fn blocks(&self) -> Policy {
        Policy {
            bare_until_midnight: self.bare_429 == Bare429::BlockUntilMidnight,
            max_failures: self.max_failures,
            temporary_block: self.temporary_block,
        }
    }

    /// What decides about breakers.
    pub fn breakers(&self) -> BreakerPolicy {
        BreakerPolicy {
            failures: self.breaker_failures,
            successes: self.breaker_successes,
            recovery: self.breaker_recovery,
        }
    }
}
