//! Hints between replicas: what one has found exhausted, the others leave alone before the leader has spoken.
//!
//! A hint can only close, never open, and only for a moment while there is a leader to say better.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::message::{Hint, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::time::Mono;
use keyfleet_core::trace::TraceParent;
use keyfleet_fabric::bus::GatewayBus;
use parking_lot::Mutex;

/// What a hint may close while a leader is heard, who will say better.
const LED: Duration = Duration::from_secs(2);
/// What it may close while nobody leads.
const UNLED: Duration = Duration::from_mins(1);
/// About one subject a replica speaks so often at most: many that find the same at once would drown each other.
const EVERY: Duration = Duration::from_millis(100);
/// The most subjects whose last hint is remembered.
const MOST: usize = 4_096;

/// Tells others, and judges what they tell.
pub(super) struct Herald {
    bus: Arc<dyn GatewayBus>,
    replica: ReplicaId,
    told: Mutex<HashMap<Subject, Mono>>,
}

impl Herald {
    pub(super) fn new(bus: Arc<dyn GatewayBus>, replica: ReplicaId) -> Self {
        Self { bus, replica, told: Mutex::default() }
    }

    /// Tells the others that a subject is closed until then, and which request has found it so.
    pub(super) fn tell(
        &self,
        subject: &Subject,
        cause: Cause,
        until: Mono,
        trace: Option<TraceParent>,
        now: Mono,
    ) {
        let mut told = self.told.lock();
        if told.get(subject).is_some_and(|at| now.since(*at) < EVERY) {
            return;
        }
        if told.len() >= MOST {
            told.retain(|_, at| now.since(*at) < EVERY);
        }
        if told.len() < MOST {
            told.insert(subject.clone(), now);
        }
        drop(told);
        let ttl_ms = u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
        let (replica, subject) = (self.replica.clone(), subject.clone());
        self.bus.hint(&Hint { replica, subject, cause, ttl_ms, age_ms: 0, trace });
    }

    /// For how long a hint is believed; our own come back and are not.
    pub(super) fn believe(&self, hint: &Hint, led: bool) -> Option<Duration> {
        if hint.replica == self.replica {
            return None;
        }
        let left = Duration::from_millis(hint.ttl_ms.saturating_sub(hint.age_ms));
        let most = if led { LED } else { UNLED };
        Some(left.min(most)).filter(|left| !left.is_zero())
    }
}
