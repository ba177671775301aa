//! The operator's options about failures and quotas, as the core takes them.

use keyfleet_core::block::Policy;
use keyfleet_core::gate::BreakerPolicy;
use keyfleet_core::id::ProjectId;
use keyfleet_core::quota::rules::{Rule, Rules};

use crate::config::{Bare429, Config, Failure, LimitRule};

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

impl Config {
    /// The limits that operators gave, in the form in which quotas are kept.
    pub fn rules(&self) -> Rules {
        let rule = |rule: &&LimitRule| Rule {
            models: rule.models.clone(),
            rpm: rule.rpm,
            tpm: rule.tpm,
            rpd: rule.rpd,
        };
        let lists = |project: &ProjectId| {
            self.limit_rules(project).iter().map(|list| list.iter().map(rule).collect()).collect()
        };
        let projects = self.projects.keys().map(|project| (project.clone(), lists(project))).collect();
        let reserve_permille = self.quota.configured.reserve_permille();
        // A burst is what each replica makes of it: in any minute no more than this comes in, over all of them.
        let client = self.rate_limit.map(|limit| u64::from(limit.requests_per_minute));
        Rules { projects, client, reserve_permille }
    }
}
