//! The background conversation with the coordinator: decisions in, findings out, and leases. Nothing here is on the way
//! of a request.

mod sending;

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use keyfleet_core::ledger;
use keyfleet_core::message::{Answer, Ask, Beat, Delta, Record, Report};
use keyfleet_core::time::{Mono, Now};
use keyfleet_fabric::bus::{Heard, Unreachable};
use keyfleet_fabric::store::StoreError;
use keyfleet_service::clock;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::App;
use crate::pool::Taken;

/// How often answers are reported; failures go at once.
const FLUSH: Duration = Duration::from_millis(500);
/// How long to wait before trying again what did not work.
const AGAIN: Duration = Duration::from_millis(100);
/// After so many attempts in a row that failed it is said.
const SAY_AFTER: u32 = 10;
/// How long the last words of this process may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs until `stop`, or until the coordinator is gone for good; what was found is reported when it returns.
pub(crate) async fn run(app: Arc<App>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        // None of them ends unless the other side is gone for good.
        () = follow(&app) => {}
        () = report(&app) => {}
        () = lease(&app) => {}
    }
    if !stop.is_cancelled() {
        tracing::error!("the coordinator is gone: nobody decides about keys any more");
    }
    let last = async {
        for request in app.pool.quota.leave() {
            if app.fabric.bus.ask(Ask::Lease(request)).await.is_err() {
                break;
            }
        }
        app.pool.gather(&app.pool.live());
        tell_all(&app).await
    };
    if !matches!(tokio::time::timeout(FAREWELL, last).await, Ok(Ok(()))) {
        let unreported = app.pool.reports.waiting() + app.reporting.lock().await.under_way();
        tracing::warn!(unreported, "the last findings could not be reported: scores and totals miss them");
    }
}

/// Follows decisions: everything that holds first, and then what changes.
async fn follow(app: &App) {
    let mut state = Following { app, epoch: 0, rev: None };
    loop {
        let mut news = match app.fabric.bus.listen().await {
            Ok(news) => news,
            Err(Unreachable::Gone) => return,
            Err(error) => {
                tracing::debug!(%error, "decisions cannot be heard");
                // What is stored is known all the same.
                state.catch_up().await;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        loop {
            if state.rev.is_none() {
                state.catch_up().await;
            }
            if state.rev.is_none() {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            match news.next().await {
                Heard::Delta(delta) => state.apply(&delta),
                Heard::Beat(beat) => state.hear(beat).await,
                Heard::Hint(hint) => app.pool.heed(&hint, clock::now(), app.is_led(clock::mono())),
                Heard::Missed => state.catch_up().await,
                Heard::Resigned => {}
                Heard::Gone => return,
            }
        }
    }
}

struct Following<'a> {
    app: &'a App,
    epoch: u64,
    /// The revision that the pool is at; `None`: everything has to be read.
    rev: Option<u64>,
}

impl Following<'_> {
    /// Reads what was missed from the store, or all of it.
    async fn catch_up(&mut self) {
        let store = &self.app.fabric.store;
        if let Some(rev) = self.rev
            && let Ok(Some(missed)) = store.since(rev).await
        {
            // What an earlier leader stored and did not live to tell holds as well.
            for delta in &missed {
                self.take(delta);
            }
            return;
        }
        match store.load().await {
            Ok(image) => {
                let (snapshot, unread) = ledger::snapshot(&image);
                if unread > 0 {
                    tracing::warn!(
                        entries = unread,
                        "some of the stored state cannot be read and is left out"
                    );
                }
                let now = clock::now();
                self.app.pool.decide_all(&snapshot.changes, now);
                self.rev = Some(snapshot.rev);
                self.saw(snapshot.epoch);
                self.heard(now);
            }
            Err(error) => self.complain(&error),
        }
    }

    /// The leader is alive and at this revision. If that is another than ours, decisions were lost.
    async fn hear(&mut self, beat: Beat) {
        if beat.epoch < self.epoch {
            return; // it does not know yet that it was replaced
        }
        if beat.epoch > self.epoch && self.rev > Some(beat.began) {
            // A store that lost writes gives their revisions out again: the same number means something else.
            self.rev = None;
        }
        self.saw(beat.epoch);
        if self.rev != Some(beat.rev) {
            self.catch_up().await;
        }
        self.heard(clock::now());
    }

    fn saw(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
        self.app.pool.quota.saw_epoch(self.epoch);
    }

    fn heard(&self, now: Now) {
        self.app.state_at.store(now.mono.as_ms(), Release);
        self.app.state_revision.store(self.rev.unwrap_or_default(), Relaxed);
        self.app.pool.heard(now.mono);
    }

    /// Takes what the bus told.
    fn apply(&mut self, delta: &Delta) {
        let known = self.rev.is_some_and(|rev| delta.rev <= rev) && delta.epoch == self.epoch;
        if known || delta.epoch < self.epoch {
            return; // it was applied already, or comes from a leader that was replaced
        }
        self.take(delta);
    }

    fn take(&mut self, delta: &Delta) {
        let Some(rev) = self.rev else { return };
        // Something is missing; or a leader decides of whom no beat was heard, which tells what of the earlier ones holds.
        if delta.prev != rev || delta.epoch > self.epoch {
            self.rev = None;
            return;
        }
        let now = clock::now();
        delta.changes.iter().for_each(|change| self.app.pool.decide(change, now));
        self.rev = Some(delta.rev);
        self.saw(delta.epoch);
        self.heard(now);
    }

    fn complain(&self, error: &StoreError) {
        if self.rev.is_none() {
            tracing::warn!(%error, "the state of the keys cannot be read");
        }
    }
}

/// The report that is on its way, if any: it is sent until it is stored, and grows old but does not change otherwise.
#[derive(Debug, Default)]
pub(crate) struct Reporting {
    seq: u64,
    /// With when it was made.
    under_way: Option<(Mono, Report)>,
}

impl Reporting {
    /// The report to send now.
    fn next(&mut self, app: &App, now: Mono) -> Option<Report> {
        if self.under_way.is_none() {
            let Taken { records, times, traces } = app.pool.reports.take(now);
            if records.is_empty() && times.is_empty() {
                return None;
            }
            let (replica, seq) = (app.replica.clone(), self.seq + 1);
            let report = Report { replica, seq, records, times: Some(times), traces };
            self.under_way = Some((now, report));
        }
        let (made, mut report) = self.under_way.clone()?;
        report.records.iter_mut().for_each(|record| record.wait(now.since(made)));
        Some(report)
    }

    /// How much it tells.
    fn under_way(&self) -> u64 {
        self.under_way.iter().flat_map(|(_, report)| &report.records).map(Record::count).sum()
    }

    fn sent(&mut self) {
        self.seq += 1;
        self.under_way = None;
    }
}

/// Reports what was found, one report at a time.
async fn report(app: &App) {
    let mut flush = tokio::time::interval(FLUSH);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.pool.reports.arrived() => {}
            _ = flush.tick() => app.pool.gather(&app.pool.live()),
        }
        if tell_all(app).await.is_err() {
            return;
        }
    }
}

/// Reports everything that waits, however long it takes. An error: there is nobody who will ever hear it.
async fn tell_all(app: &App) -> Result<(), Unreachable> {
    let mut refused = 0;
    loop {
        let mut reporting = app.reporting.lock().await;
        let Some(report) = reporting.next(app, clock::mono()) else { return Ok(()) };
        let span = sending::span(&report, app.pool.live().config.nats.is_some());
        let sent = app.fabric.bus.report(&report).instrument(span.clone()).await;
        if sent.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        match sent {
            Ok(()) => {
                reporting.sent();
                if std::mem::take(&mut refused) >= SAY_AFTER {
                    tracing::info!("findings are reported again");
                }
            }
            Err(Unreachable::Gone) => return Err(Unreachable::Gone),
            Err(error) => {
                refused += 1;
                if refused == SAY_AFTER {
                    tracing::warn!(
                        %error,
                        "findings cannot be reported: they are summed up until they can, and no count is lost"
                    );
                }
                drop(reporting);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Keeps quota in hand.
async fn lease(app: &App) {
    let quota = &app.pool.quota;
    loop {
        tokio::select! {
            () = quota.low.notified() => {}
            () = tokio::time::sleep_until(clock::instant(quota.next_poll())) => app.pool.forget_idle_quota(),
        }
        while let Some(request) = quota.poll() {
            let asked = clock::mono();
            match app.fabric.bus.ask(Ask::Lease(request)).await {
                Ok(Answer::Lease(reply)) => {
                    app.metrics.refilled(clock::mono().since(asked));
                    quota.answered(&reply);
                }
                Err(Unreachable::Gone) => return,
                Ok(_) | Err(_) => {
                    quota.unanswered();
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
