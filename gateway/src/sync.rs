//! The background conversation with the coordinator: decisions in, findings out. Nothing here is on the way of a
//! request.

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::message::{Delta, Report};
use keyfleet_fabric::local::{News, Unreachable};
use keyfleet_service::clock;
use tokio_util::sync::CancellationToken;

use crate::App;

/// How often answers are reported; failures go at once.
const FLUSH: Duration = Duration::from_millis(500);
/// How long to wait before asking again for a snapshot that did not come.
const RESYNC: Duration = Duration::from_millis(200);
/// How long the end of the process waits for the reader of the log.
const LAST_FLUSH: Duration = Duration::from_secs(2);
/// How often the lines of finished requests are written.
const LOG_FLUSH: Duration = Duration::from_millis(50);

/// Runs until `stop`; everything that was found is reported when it returns.
pub(crate) async fn run(app: Arc<App>, stop: CancellationToken) {
    let replica = ReplicaId::new(
        uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid().to_string(),
    );
    let mut talk = Talk { app, replica, seq: 0, rev: None };
    let mut deltas = talk.app.coordinator.deltas();
    let mut flush = tokio::time::interval(FLUSH);
    let mut log_flush = tokio::time::interval(LOG_FLUSH);
    for timer in [&mut flush, &mut log_flush] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    let mut writing: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        if talk.rev.is_none() {
            tokio::select! {
                () = stop.cancelled() => break,
                () = talk.resync() => {}
            }
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            news = deltas.next() => match news {
                News::Delta(delta) => talk.apply(&delta),
                News::Missed => talk.rev = None,
                News::Gone => break,
            },
            () = talk.app.pool.reports.arrived() => talk.report(),
            _ = flush.tick() => {
                talk.app.pool.gather(&talk.app.pool.live());
                talk.report();
            }
            _ = log_flush.tick() => {
                // On a thread of its own: the reader of our output may be slow. While it is, lines wait and then drop.
                if writing.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                    let app = talk.app.clone();
                    writing = Some(tokio::task::spawn_blocking(move || app.log.flush()));
                }
            }
        }
    }
    talk.app.pool.gather(&talk.app.pool.live());
    talk.report();
    let app = talk.app;
    let last = tokio::task::spawn_blocking(move || app.log.flush());
    if tokio::time::timeout(LAST_FLUSH, last).await.is_err() {
        tracing::debug!("nobody reads the log");
    }
}

struct Talk {
    app: Arc<App>,
    replica: ReplicaId,
    seq: u64,
    /// The revision that the pool is at; `None`: a snapshot is needed.
    rev: Option<u64>,
}

impl Talk {
    async fn resync(&mut self) {
        match self.app.coordinator.snapshot().await {
            Ok(snapshot) => {
                let now = clock::now();
                self.app.pool.decide_all(&snapshot.changes, now);
                self.rev = Some(snapshot.rev);
                self.app.state_at.store(now.mono.as_ms(), Release);
            }
            Err(Unreachable::Full | Unreachable::Gone) => tokio::time::sleep(RESYNC).await,
        }
    }

    fn apply(&mut self, delta: &Delta) {
        let Some(rev) = self.rev else { return };
        if delta.rev <= rev {
            return; // the snapshot held it already
        }
        if delta.prev != rev {
            self.rev = None;
            return;
        }
        let now = clock::now();
        delta.changes.iter().for_each(|change| self.app.pool.decide(change, now));
        self.rev = Some(delta.rev);
        self.app.state_at.store(now.mono.as_ms(), Release);
    }

    fn report(&mut self) {
        let records = self.app.pool.reports.take();
        if records.is_empty() {
            return;
        }
        let report = Report { replica: self.replica.clone(), seq: self.seq + 1, records };
        match self.app.coordinator.report(report) {
            Ok(()) => self.seq += 1,
            Err((_, report)) => self.app.pool.reports.put_back(report.records),
        }
    }
}
