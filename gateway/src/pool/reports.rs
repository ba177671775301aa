//! What waits to be reported. Recording never waits; beyond the limit records are dropped and counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use keyfleet_core::message::Record;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The most records that wait.
const LIMIT: usize = 8_192;

/// The queue of records.
#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<Vec<Record>>,
    arrived: Notify,
    dropped: AtomicU64,
}

impl Reports {
    /// Adds a record; it is sent at once.
    pub(crate) fn push(&self, record: Record) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < LIMIT {
            waiting.push(record);
            drop(waiting);
            self.arrived.notify_one();
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Takes the first ones, so many at most.
    pub(crate) fn take(&self, most: usize) -> Vec<Record> {
        let mut waiting = self.waiting.lock();
        let most = most.min(waiting.len());
        let rest = waiting.split_off(most);
        std::mem::replace(&mut waiting, rest)
    }

    /// Waits until something is there.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// How many records were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}
