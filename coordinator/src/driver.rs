//! Between the ledger and the world, for one term: messages in, commits out, and then what follows from them. No
//! decisions here.
//!
//! What has gathered while the last commit was under way goes into the next one together: reports, questions about
//! leases, verdicts of the prober. Only when a commit is acknowledged are its decisions spread and its leases handed
//! out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use keyfleet_core::ledger::{Event, Ledger, Saved, Step, Term};
use keyfleet_core::message::{Answer, Ask, Beat, Delta};
use keyfleet_core::quota::holders;
use keyfleet_core::state::{Commit, Entry, Meta, Table};
use keyfleet_core::time::Mono;
use keyfleet_fabric::bus::{Asker, LeaderBus, Position, Told};
use keyfleet_fabric::store::{Claim, Lead, StoreError};
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::leadership::{Candidate, RENEW, STOP_AFTER, TTL, Won};
use crate::probe::{Prober, Verdict, Verdicts};
use crate::status::{Overview, Post, Question, Role};

/// How often gateways hear where the leader stands.
const BEAT: Duration = Duration::from_millis(250);
/// The most messages that go into one commit.
const BATCH: usize = 256;
/// Before a commit that got no answer is written again.
const AGAIN: Duration = Duration::from_millis(50);

/// Why a term ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Another leads, or may: try again.
    Lost,
    /// The process ends.
    Stopped,
    /// The prober or every gateway is gone for good.
    Dead,
}

/// What the driver works with beyond one term.
pub(crate) struct Driver {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) bus: Box<dyn LeaderBus>,
    pub(crate) candidate: Candidate,
    pub(crate) prober: Prober,
    pub(crate) verdicts: Verdicts,
    pub(crate) post: Post,
    /// What a state file of the first format held, until a leader has taken it over.
    pub(crate) old: Option<Saved>,
    /// What is stored may lack something that happened.
    pub(crate) suspect: bool,
}

/// One term.
struct Reign<'d> {
    driver: &'d mut Driver,
    ledger: Ledger,
    meta: Meta,
    renewed: Mono,
    renew_at: Mono,
    scan_at: Mono,
    beat_at: Mono,
}

/// What waits for the next commit.
#[derive(Default)]
struct Batch {
    steps: Vec<Step>,
    /// Those that wait for the answer of a step, by its place.
    askers: Vec<(Asker, Answer)>,
    leases: Vec<(Asker, keyfleet_core::quota::message::LeaseRequest)>,
    cursor: Option<u64>,
    end: Option<End>,
    /// Reports have to be asked for again.
    reconnected: bool,
    /// Reports that are known to be lost.
    lost: u64,
}

impl Driver {
    /// Leads for one term.
    pub(crate) async fn reign(&mut self, won: Won, stop: &CancellationToken) -> End {
        let epoch = won.meta.epoch;
        match Reign::begin(self, won).await {
            Ok(mut reign) => {
                let end = reign.run(stop).await;
                if end != End::Lost {
                    reign.last_commit().await;
                }
                self.bus.resign().await;
                if end != End::Lost {
                    self.candidate.resign(epoch).await;
                }
                end
            }
            Err(error) => {
                tracing::warn!(%error, "the lead could not be taken up");
                self.candidate.resign(epoch).await;
                End::Lost
            }
        }
    }
}

impl<'d> Reign<'d> {
    /// Takes over what is stored, and writes down that it did: from then on nobody else can.
    async fn begin(driver: &'d mut Driver, won: Won) -> Result<Self, StoreError> {
        let store = driver.candidate.store.clone();
        let image = store.load().await?;
        let identity = store.identity().await?;
        let (mut saved, unread) = Saved::read(&image);
        if unread > 0 {
            tracing::warn!(entries = unread, "some of the stored state cannot be read and is left out");
        }
        let meta = Meta { epoch: won.meta.epoch, leader: won.meta.leader, ..image.meta };
        let led_before = !meta.store.is_empty();
        let (epoch, commit) = driver.candidate.acknowledged;
        let behind = (meta.commit < commit && epoch > 0) || (led_before && meta.store != identity);
        let position = driver.bus.lead(&meta.stream, meta.cursor).await;
        let position = position.map_err(|error| StoreError::Unreachable(error.to_string()))?;
        // Reports that are there though nobody ever led say that somebody did.
        let forgotten = !led_before && position.last > 0;
        let suspect = std::mem::take(&mut driver.suspect) || behind || forgotten;
        if suspect {
            tracing::warn!(
                "the store may have lost writes: no quota of a minute is granted until that cannot matter"
            );
        }
        let old = driver.old.take().filter(|_| image.entries.is_empty());
        let takes_over = old.is_some();
        if let Some(old) = old {
            saved = old;
        }
        let now = clock::now();
        let term = Term { epoch: meta.epoch, time: meta.time, blind_until: meta.blind_until, suspect };
        let ledger = Ledger::new(crate::roster(&driver.config.borrow_and_update()), saved, term, now);
        let cursor = resume(&meta, &position);
        let meta = Meta { stream: position.stream, cursor, store: identity, ..meta };
        driver.candidate.above = meta.epoch;
        let mut reign = Self {
            driver,
            ledger,
            meta,
            renewed: won.claimed,
            renew_at: now.mono,
            scan_at: now.mono,
            beat_at: now.mono,
        };
        let mut first = Step::default();
        if takes_over {
            first.entries = reign.ledger.all_entries(now);
        }
        reign.commit(vec![first]).await.map_err(|()| StoreError::Unreachable("no commit".to_owned()))?;
        reign.driver.post.note(|pulse| {
            pulse.takeovers += 1;
            pulse.epoch = reign.meta.epoch;
            pulse.role = Role::Leading;
        });
        tracing::info!(epoch = reign.meta.epoch, "leading");
        Ok(reign)
    }

    async fn run(&mut self, stop: &CancellationToken) -> End {
        loop {
            if self.keep_alive().await.is_err() {
                return End::Lost;
            }
            let wake = self.ledger.next_timeout().min(self.scan_at).min(self.beat_at).min(self.renew_at);
            let mut batch = Batch::default();
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stopped,
                told = self.driver.bus.next() => self.take(told, &mut batch),
                verdict = self.driver.verdicts.recv() => {
                    let Some(verdict) = verdict else {
                        tracing::error!("the prober is gone: keys that are out would stay out");
                        return End::Dead;
                    };
                    self.verdict(verdict, &mut batch);
                }
                Some(question) = self.driver.post.asked() => self.answer(question, &mut batch),
                // Whoever follows the configuration stops when the drain begins. Decisions are needed until it ends.
                Ok(()) = self.driver.config.changed() => {
                    let roster = crate::roster(&self.driver.config.borrow_and_update());
                    self.feed(Event::Roster(roster), &mut batch);
                }
                () = tokio::time::sleep_until(clock::instant(wake)) => self.timers(&mut batch),
            }
            self.gather(&mut batch);
            let end = batch.end.take();
            let reconnected = batch.reconnected;
            if self.carry_out(batch).await.is_err() {
                return End::Lost;
            }
            if let Some(end) = end {
                return end;
            }
            if reconnected && self.follow_reports().await.is_err() {
                return End::Lost;
            }
        }
    }

    /// Adds what is waiting already.
    fn gather(&mut self, batch: &mut Batch) {
        for _ in 0..BATCH {
            let Some(told) = self.driver.bus.next().now_or_never() else { break };
            self.take(told, batch);
        }
        while let Some(Some(question)) = self.driver.post.asked().now_or_never() {
            self.answer(question, batch);
        }
        if batch.leases.is_empty() {
            return;
        }
        let (askers, requests): (Vec<_>, Vec<_>) = std::mem::take(&mut batch.leases).into_iter().unzip();
        let highest = requests.iter().map(|request| request.epoch).max().unwrap_or_default();
        if highest > self.meta.epoch {
            // Somebody led after us, by a clock or a store that we cannot see.
            self.driver.candidate.above = highest;
            batch.end = Some(End::Lost);
            return;
        }
        let mut step = self.ledger.apply(Event::Lease(requests), clock::now());
        let replies = std::mem::take(&mut step.leases);
        self.driver.post.leased(&replies);
        batch.askers.extend(askers.into_iter().zip(replies.into_iter().map(Answer::Lease)));
        batch.steps.push(step);
    }

    fn take(&mut self, told: Told, batch: &mut Batch) {
        match told {
            Told::Report { report, position } => {
                batch.cursor = Some(position);
                let replica = report.replica.clone();
                let step = self.ledger.apply(Event::Report(report), clock::now());
                self.driver.post.reported(&replica, &step);
                batch.lost += step.lost;
                batch.steps.push(step);
            }
            Told::Unread { position } => batch.cursor = Some(position),
            Told::Ask(Ask::Lease(request), asker) => {
                self.driver.post.heard(&holders::replica(&request.boot));
                batch.leases.push((asker, request));
            }
            Told::Ask(Ask::Own(owned), asker) => {
                self.feed(Event::Own(owned), batch);
                batch.askers.push((asker, Answer::Done));
            }
            Told::Ask(Ask::Operate { operation, by }, asker) => {
                tracing::info!(?operation, by, "an operator's wish");
                let step = self.ledger.apply(Event::Operate(operation), clock::now());
                let answer = match &step.refused {
                    Some(why) => Answer::Refused { why: why.clone() },
                    None => Answer::Done,
                };
                batch.steps.push(step);
                batch.askers.push((asker, answer));
            }
            // What it says arrives as a report as well.
            Told::Hint(_) => {}
            Told::Reconnected => batch.reconnected = true,
            Told::Gone => batch.end = Some(End::Dead),
        }
    }

    /// Answers somebody who asks this process.
    fn answer(&mut self, question: Question, batch: &mut Batch) {
        let now = clock::now();
        match question {
            // Whoever asked may have gone; then nobody needs the answer.
            Question::Standing(asker) => drop(asker.send(self.driver.post.standing(&self.ledger, now))),
            Question::Overview(asker) => drop(asker.send(Overview::of(&mut self.ledger, now))),
            Question::Operate { operation, by, answer } => {
                let asker = Asker::new(move |said| drop(answer.send(said)));
                self.take(Told::Ask(Ask::Operate { operation, by }, asker), batch);
            }
        }
    }

    /// Shows how far it is.
    fn show(&self) {
        let now = clock::now();
        self.driver.post.note(|pulse| {
            pulse.revision = self.ledger.rev();
            pulse.cursor = self.meta.cursor;
            pulse.blind = self.ledger.time(now) < self.ledger.blind_until();
        });
    }

    fn verdict(&mut self, Verdict { key, outcome, draw }: Verdict, batch: &mut Batch) {
        self.feed(Event::Probed { key, outcome, draw }, batch);
    }

    fn timers(&mut self, batch: &mut Batch) {
        let now = clock::mono();
        if now >= self.scan_at {
            let interval = self.driver.config.borrow().monitoring.health_check_interval;
            self.scan_at = now.plus(interval);
            self.feed(Event::Scan, batch);
        }
        if now >= self.ledger.next_timeout() {
            self.feed(Event::Tick, batch);
        }
    }

    fn feed(&mut self, event: Event, batch: &mut Batch) {
        batch.steps.push(self.ledger.apply(event, clock::now()));
    }

    /// Commits a batch, and then does what follows from it.
    async fn carry_out(&mut self, mut batch: Batch) -> Result<(), ()> {
        if let Some(cursor) = batch.cursor {
            self.meta.cursor = cursor;
        }
        if batch.lost > 0 {
            tracing::warn!(
                lost = batch.lost,
                "reports of gateways are lost: scores and totals miss them, quotas do not"
            );
        }
        let probes: Vec<_> =
            batch.steps.iter_mut().flat_map(|step| std::mem::take(&mut step.probes)).collect();
        let changed = batch.cursor.is_some() || batch.steps.iter().any(|step| !step.is_empty());
        let delta = if changed { self.commit(batch.steps).await? } else { None };
        for (asker, answer) in batch.askers {
            asker.answer(answer);
        }
        if let Some(delta) = delta
            && let Err(error) = self.driver.bus.publish(&delta).await
        {
            tracing::debug!(%error, "a decision is not spread: the next beat reveals that it is missing");
        }
        for key in probes {
            self.driver.prober.ask(key);
        }
        Ok(())
    }

    /// Writes what the steps changed, as one commit. It goes on trying for as long as the lead is certain.
    async fn commit(&mut self, steps: Vec<Step>) -> Result<Option<Delta>, ()> {
        let now = clock::now();
        let mut entries: HashMap<(Table, String), Entry> = HashMap::new();
        let mut heard = HashMap::new();
        let mut delta: Option<Delta> = None;
        for step in steps {
            entries.extend(step.entries.into_iter().map(|entry| ((entry.table, entry.key.clone()), entry)));
            heard.extend(step.heard);
            match (&mut delta, step.delta) {
                (Some(all), Some(next)) => {
                    all.rev = next.rev;
                    all.changes.extend(next.changes);
                }
                (all, next) => *all = all.take().or(next),
            }
        }
        let follows = self.meta.commit;
        self.meta = Meta {
            commit: follows + 1,
            rev: self.ledger.rev(),
            time: self.ledger.time(now),
            at: now.utc,
            blind_until: self.ledger.blind_until(),
            ..self.meta.clone()
        };
        let commit = Commit {
            follows,
            meta: self.meta.clone(),
            heard: heard.into_iter().collect(),
            entries: entries.into_values().collect(),
            delta,
        };
        let written = self.write(&commit).await;
        self.driver.post.committed(written.is_ok());
        written?;
        self.show();
        self.driver.candidate.acknowledged = (commit.meta.epoch, commit.meta.commit);
        Ok(commit.delta)
    }

    async fn write(&mut self, commit: &Commit) -> Result<(), ()> {
        let store = self.driver.candidate.store.clone();
        let mut asked_before = false;
        loop {
            match store.commit(commit).await {
                Ok(()) => return Ok(()),
                // An earlier attempt got through, but its answer did not.
                Err(StoreError::Conflict(stored))
                    if asked_before
                        && stored.commit == commit.meta.commit
                        && stored.epoch == commit.meta.epoch
                        && stored.leader == commit.meta.leader =>
                {
                    return Ok(());
                }
                Err(StoreError::Unreachable(error)) => {
                    if !asked_before {
                        tracing::warn!(
                            error,
                            "a commit cannot be written: no leases and no decisions until it can"
                        );
                    }
                    asked_before = true;
                    tokio::time::sleep(AGAIN).await;
                    self.renew().await?;
                }
                Err(error) => {
                    tracing::warn!(%error, "a commit was refused: another leads, or the store has lost something");
                    return Err(());
                }
            }
        }
    }

    /// Renews the claim and tells gateways where the leader stands, each when it is time.
    async fn keep_alive(&mut self) -> Result<(), ()> {
        let now = clock::mono();
        if now >= self.beat_at {
            self.beat_at = now.plus(BEAT);
            self.show();
            let beat = Beat { epoch: self.meta.epoch, rev: self.ledger.rev() };
            if let Err(error) = self.driver.bus.beat(beat).await {
                tracing::debug!(%error, "nobody hears where the leader stands");
            }
        }
        if now >= self.renew_at {
            self.renew().await?;
            self.recognise().await?;
        }
        Ok(())
    }

    /// A store that was started anew and takes the next commit has lost nothing. That is written down, so that whoever
    /// leads next does not suspect it.
    async fn recognise(&mut self) -> Result<(), ()> {
        match self.driver.candidate.store.identity().await {
            Ok(identity) if identity != self.meta.store => {
                self.meta.store = identity;
                self.commit(Vec::new()).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }

    async fn renew(&mut self) -> Result<(), ()> {
        let now = clock::now();
        self.renew_at = now.mono.plus(RENEW);
        let claim = Claim {
            holder: self.driver.candidate.holder.clone(),
            ttl: TTL,
            epoch: self.meta.epoch,
            above: 0,
            clock: Some((self.ledger.time(now), now.utc)),
        };
        let lead = self.driver.candidate.store.lead(&claim).await;
        self.driver.post.note(|pulse| pulse.store_up = lead.is_ok());
        match lead {
            Ok(Lead::Mine(_)) => self.renewed = now.mono,
            Ok(Lead::Theirs { epoch, .. }) => {
                self.driver.candidate.above = self.driver.candidate.above.max(epoch);
                tracing::warn!(epoch, "another leads");
                return Err(());
            }
            Ok(Lead::Nobody) => {
                tracing::warn!("the lead has lapsed");
                return Err(());
            }
            Err(error) => tracing::debug!(%error, "the lead could not be renewed"),
        }
        if clock::mono().since(self.renewed) > STOP_AFTER {
            tracing::warn!("the store does not answer: this coordinator stops leading");
            return Err(());
        }
        Ok(())
    }

    /// Reads reports again from where they are committed, after the connection was lost.
    async fn follow_reports(&mut self) -> Result<(), ()> {
        loop {
            match self.driver.bus.lead(&self.meta.stream, self.meta.cursor).await {
                Ok(position) => {
                    self.meta.cursor = resume(&self.meta, &position);
                    self.meta.stream = position.stream;
                    self.show();
                    return Ok(());
                }
                Err(error) => {
                    tracing::debug!(%error, "reports cannot be read");
                    self.renew().await?;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// What is waiting at the end still counts.
    async fn last_commit(&mut self) {
        let mut batch = Batch::default();
        self.gather(&mut batch);
        if self.carry_out(batch).await.is_err() {
            tracing::warn!("the last reports are not stored; the next leader reads them again");
        }
    }
}

/// Where reading goes on, and what is said if that is not where it ended.
fn resume(meta: &Meta, position: &Position) -> u64 {
    let Position { stream, before, last } = position;
    if *stream != meta.stream {
        if !meta.stream.is_empty() {
            tracing::warn!(stream, "the stream of reports was made anew: it is read from its beginning");
        }
        return *before;
    }
    if *before > meta.cursor {
        let removed = before - meta.cursor;
        tracing::warn!(removed, "reports were removed from the stream before they were applied");
    } else if *last < meta.cursor {
        tracing::warn!("the stream of reports has lost its end");
    }
    meta.cursor.min(*last).max(*before)
}

#[cfg(test)]
mod tests;
