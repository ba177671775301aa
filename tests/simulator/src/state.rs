//! What all connections of one simulator share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::log::{Log, Received};
use crate::pool::Pool;
use crate::quota::BucketStats;
use crate::rules::Rules;
use crate::store::Store;
use crate::tls::Tls;
use crate::world::World;

#[derive(Debug)]
pub(crate) struct State {
    pool: RwLock<Arc<Pool>>,
    pub(crate) clock: Clock,
    pub(crate) rules: Rules,
    pub(crate) log: Log,
    pub(crate) store: Store,
    pub(crate) tls: Option<Tls>,
    pub(crate) started: Instant,
    requests: AtomicU64,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    refused: AtomicU64,
    ok: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    client_gone: AtomicU64,
}

/// Totals since the start, and every quota bucket of the present world.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests received.
    pub requests: u64,
    /// Answers with a status below 400.
    pub ok: u64,
    /// Answers with 429.
    pub rejected_429: u64,
    /// Answers with any other error status.
    pub failed: u64,
    /// Requests whose client went away before the answer ended.
    pub client_gone: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Connections closed by a rule before they were read.
    pub refused_connections: u64,
    /// By project and model.
    pub buckets: Vec<BucketStats>,
}

impl Stats {
    /// The bucket of a project and a model, empty if it has seen nothing.
    pub fn bucket(&self, project: &str, model: &str) -> BucketStats {
        let found = self.buckets.iter().find(|bucket| bucket.project == project && bucket.model == model);
        found.cloned().unwrap_or_default()
    }
}

impl State {
    pub(crate) fn new(world: World) -> io::Result<Self> {
        let tls = if world.tls { Some(Tls::new()?) } else { None };
        Ok(Self {
            pool: RwLock::new(Arc::new(Pool::new(world)?)),
            clock: Clock::new()?,
            rules: Rules::default(),
            log: Log::default(),
            store: Store::default(),
            tls,
            started: Instant::now(),
            requests: AtomicU64::new(0),
            counters: Counters::default(),
        })
    }

    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.read())
    }

    /// Replaces the world. Quota counters begin anew; the log, the clock, the rules and stored files stay.
    pub(crate) fn set_world(&self, world: World) -> io::Result<()> {
        let pool = Arc::new(Pool::new(world)?);
        *self.pool.write() = pool;
        Ok(())
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(crate) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn next_connection(&self) -> u64 {
        self.counters.open.fetch_add(1, Ordering::Relaxed);
        self.counters.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn connection_closed(&self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
        self.log.changed.notify_waiters();
    }

    pub(crate) fn connection_refused(&self) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_status(&self, status: u16) {
        let counter = match status {
            429 => &self.counters.rejected,
            400.. => &self.counters.failed,
            _ => &self.counters.ok,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_client_gone(&self) {
        self.counters.client_gone.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn update(&self, seq: u64, change: impl FnOnce(&mut Received)) {
        if self.pool.read().world.log {
            self.log.update(seq, change);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Stats {
            requests: read(&self.requests),
            ok: read(&counters.ok),
            rejected_429: read(&counters.rejected),
            failed: read(&counters.failed),
            client_gone: read(&counters.client_gone),
            connections: read(&counters.connections),
            open_connections: read(&counters.open),
            refused_connections: read(&counters.refused),
            buckets: self.pool().ledgers().flat_map(|(project, ledger)| ledger.stats(&project.id)).collect(),
        }
    }
}
