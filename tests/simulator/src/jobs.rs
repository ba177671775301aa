//! Work that takes its time: what is seen of it depends on the virtual clock alone, so nothing has to run.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How long long-running work takes on the virtual clock: batches, tunings, imports, videos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSpec {
    /// Before it begins.
    pub waiting_ms: u64,
    /// From then on until it is done.
    pub running_ms: u64,
}

impl Default for JobSpec {
    fn default() -> Self {
        Self { waiting_ms: 1_000, running_ms: 5_000 }
    }
}

/// One piece of work, and what it will have made.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    begins_ms: i64,
    ends_ms: i64,
    cancelled_ms: Option<i64>,
    /// The response of its operation.
    pub(crate) result: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Running,
    Done,
    Cancelled,
}

impl Job {
    pub(crate) fn new(spec: JobSpec, now_ms: i64, result: Value) -> Self {
        let after = |from: i64, ms: u64| from.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX));
        let begins_ms = after(now_ms, spec.waiting_ms);
        Self { begins_ms, ends_ms: after(begins_ms, spec.running_ms), cancelled_ms: None, result }
    }

    pub(crate) fn stage(&self, now_ms: i64) -> Stage {
        match self.cancelled_ms {
            Some(at) if at <= now_ms => Stage::Cancelled,
            _ if now_ms >= self.ends_ms => Stage::Done,
            _ if now_ms >= self.begins_ms => Stage::Running,
            _ => Stage::Waiting,
        }
    }

    /// Whether there was still something to cancel.
    pub(crate) fn cancel(&mut self, now_ms: i64) -> bool {
        let open = matches!(self.stage(now_ms), Stage::Waiting | Stage::Running);
        if open {
            self.cancelled_ms = Some(now_ms);
        }
        open
    }

    /// When it is over.
    pub(crate) fn ends_ms(&self) -> i64 {
        self.cancelled_ms.unwrap_or(self.ends_ms)
    }

    /// When its state changed last.
    pub(crate) fn changed_ms(&self, now_ms: i64, created_ms: i64) -> i64 {
        match self.stage(now_ms) {
            Stage::Waiting => created_ms,
            Stage::Running => self.begins_ms,
            Stage::Done | Stage::Cancelled => self.ends_ms(),
        }
    }

    /// Adds to an operation what is known at its end.
    pub(crate) fn conclude(&self, operation: &mut Value, now_ms: i64) {
        match self.stage(now_ms) {
            Stage::Waiting | Stage::Running => {}
            Stage::Done => {
                operation["done"] = json!(true);
                operation["response"] = self.result.clone();
            }
            Stage::Cancelled => {
                operation["done"] = json!(true);
                operation["error"] = json!({"code": 1, "message": "The operation was cancelled."});
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_alone_moves_a_job_and_its_end_is_final() {
        let mut job = Job::new(JobSpec { waiting_ms: 10, running_ms: 20 }, 100, json!({}));
        let stages = [100, 109, 110, 129, 130].map(|now| job.stage(now));
        assert_eq!(stages, [Stage::Waiting, Stage::Waiting, Stage::Running, Stage::Running, Stage::Done]);
        assert!(!job.cancel(130) && job.stage(130) == Stage::Done);
        assert!(job.cancel(115) && job.stage(500) == Stage::Cancelled);
        assert_eq!((job.stage(114), job.ends_ms()), (Stage::Running, 115));
    }
}
