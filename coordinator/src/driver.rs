//! Between the ledger and the world, for one term: messages in, commits out, and then what follows from them. No
//! decisions here.
//!
//! What has gathered while the last commit was under way goes into the next one together: reports, questions about
//! leases, verdicts of the prober. Only when a commit is acknowledged are its decisions spread and its leases handed
//! out ([`commit`]). [`term`] begins the term and keeps it.

mod caused;
mod commit;
mod handled;
mod term;

use std::sync::Arc;

use futures_util::FutureExt as _;
use keyfleet_core::ledger::{Event, Ledger, Saved};
use keyfleet_core::message::{Answer, Ask};
use keyfleet_core::state::Meta;
use keyfleet_core::time::Mono;
use keyfleet_fabric::bus::witness::Witness;
use keyfleet_fabric::bus::{Asker, LeaderBus, Told};
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::alerts::Watch;
use crate::alerts::stranded::Left;
use crate::alerts::view::View;
use crate::leadership::{self, Candidate, Won};
use crate::probe::{Prober, Verdict, Verdicts};
use crate::status::{Overview, Post, Question, Wish};

use caused::Caused;
use commit::Batch;

/// Whoever stops waits so long for receivers of alerts, and gateways for the next leader. What did not arrive by then is
/// sent again by that one, under the same id.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_millis(100);
/// The most messages that go into one commit.
const BATCH: usize = 256;

/// Why a term ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Another leads, or may: try again.
    Lost,
    /// The term could not begin: let another try first.
    Unable,
    /// The process ends.
    Stopped,
    /// The prober or every gateway is gone for good.
    Dead,
}

/// What the driver works with beyond one term.
pub(crate) struct Driver {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) bus: Box<dyn LeaderBus>,
    pub(crate) witness: Arc<dyn Witness>,
    pub(crate) candidate: Candidate,
    pub(crate) prober: Prober,
    pub(crate) verdicts: Verdicts,
    pub(crate) post: Post,
    pub(crate) left: Arc<watch::Sender<Left>>,
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
    /// Up to which revision decisions of earlier leaders hold.
    began: u64,
    renewed: Mono,
    renew_at: Mono,
    scan_at: Mono,
    beat_at: Mono,
    alerts: Watch,
    /// The last beat found no connection.
    bus_down: bool,
}

impl Driver {
    /// Leads for one term.
    pub(crate) async fn reign(&mut self, won: Won, stop: &CancellationToken) -> End {
        let epoch = won.meta.epoch;
        let candidate = &self.candidate;
        let (store, claim) = (candidate.store.clone(), candidate.claim(epoch));
        // Whatever a term has to read and ask before it begins, nobody else begins one meanwhile.
        let begun = tokio::select! {
            begun = Reign::begin(self, won) => begun,
            never = leadership::hold(store, claim) => match never {},
        };
        match begun {
            Ok(mut reign) => {
                let end = reign.run(stop).await;
                if end == End::Stopped {
                    reign.alerts.machine.hand_over(epoch);
                }
                if end != End::Lost {
                    let (store, claim) =
                        (reign.driver.candidate.store.clone(), reign.driver.candidate.claim(epoch));
                    tokio::select! {
                        () = reign.last_commit() => {}
                        never = leadership::hold(store, claim) => match never {},
                    }
                }
                self.bus.resign().await;
                if end != End::Lost {
                    self.candidate.resign(epoch).await;
                }
                end
            }
            Err(error) => {
                tracing::warn!(%error, "the lead could not be taken up");
                self.bus.resign().await;
                self.candidate.resign(epoch).await;
                End::Unable
            }
        }
    }
}

impl Reign<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> End {
        loop {
            if self.keep_alive().await.is_err() {
                return End::Lost;
            }
            let wake = self.ledger.next_timeout().min(self.scan_at).min(self.beat_at).min(self.renew_at);
            let wake = wake.min(self.alerts.due());
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
                done = self.alerts.ended() => {
                    batch.steps.extend(self.alerts.attempted(done, &self.driver.post));
                }
                // Whoever follows the configuration stops when the drain begins. Decisions are needed until it ends.
                Ok(()) = self.driver.config.changed() => self.configure(&mut batch),
                // What is due is done below.
                () = tokio::time::sleep_until(clock::instant(wake)) => {}
            }
            self.attend(&mut batch);
            self.gather(&mut batch);
            let end = batch.end.take();
            if self.carry_out(batch).await.is_err() {
                return End::Lost;
            }
            self.alerts.caught_up(&self.driver.left);
            self.alerts.send(&self.driver.config.borrow());
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// Looks at all that is not the bus in every round, so that a backlog of reports holds up nothing else.
    fn attend(&mut self, batch: &mut Batch) {
        for _ in 0..BATCH {
            let Some(Some(verdict)) = self.driver.verdicts.recv().now_or_never() else { break };
            self.verdict(verdict, batch);
        }
        // At most one per receiver is under way.
        while let Some(done) = self.alerts.ended().now_or_never() {
            batch.steps.extend(self.alerts.attempted(done, &self.driver.post));
        }
        if self.driver.config.has_changed().unwrap_or(false) {
            self.configure(batch);
        }
        self.timers(batch);
    }

    /// Adds what is waiting already.
    fn gather(&mut self, batch: &mut Batch) {
        for _ in 0..BATCH {
            let Some(told) = self.driver.bus.next().now_or_never() else { break };
            self.take(told, batch);
        }
        for _ in 0..BATCH {
            let Some(Some(question)) = self.driver.post.asked().now_or_never() else { break };
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
        let boots: Vec<_> = requests.iter().map(|request| request.boot.clone()).collect();
        let mut step = self.ledger.apply(Event::Lease(requests), clock::now());
        let replies = std::mem::take(&mut step.leases);
        self.driver.post.leased(&replies);
        for (boot, _) in boots.iter().zip(&replies).filter(|(_, reply)| !reply.grants.is_empty()) {
            self.driver.post.has_quota(boot);
        }
        batch.askers.extend(askers.into_iter().zip(replies.into_iter().map(Answer::Lease)));
        batch.steps.push(step);
    }

    fn take(&mut self, told: Told, batch: &mut Batch) {
        match told {
            Told::Report { report, position } => {
                batch.cursor = Some(position);
                let (replica, traces) = (report.replica.clone(), report.traces.clone());
                let over_nats = self.driver.config.borrow().nats.is_some();
                let span = handled::span(&traces, report.records.len(), self.meta.epoch, over_nats);
                let step = self.ledger.apply(Event::Report(report), clock::now());
                self.driver.post.reported(&replica, &step);
                batch.lost += step.lost;
                batch.caused.extend(Caused::by(&traces, &step, &span));
                batch.handled.push(span);
                batch.steps.push(step);
            }
            Told::Unread { position } => batch.cursor = Some(position),
            Told::Ask(Ask::Lease(request), asker) => {
                self.driver.post.asks(&request);
                batch.leases.push((asker, request));
            }
            Told::Ask(Ask::Own(owned), asker) => {
                self.feed(Event::Own(owned), batch);
                batch.askers.push((asker, Answer::Done));
            }
            Told::Ask(Ask::Operate { operation, by }, asker) => {
                tracing::info!(?operation, by, "an operator's wish");
                let mut step = self.ledger.apply(Event::Operate(operation), clock::now());
                match (&step.refused, step.probes.pop()) {
                    (Some(why), _) => batch.askers.push((asker, Answer::Refused { why: why.clone() })),
                    (None, Some(key)) => batch.looks.push((asker, key)),
                    (None, None) => batch.askers.push((asker, Answer::Done)),
                }
                batch.steps.push(step);
            }
            // What it says arrives as a report as well.
            Told::Hint(_) => {}
            Told::Reconnected(position) => self.moved(position, batch),
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
            Question::Alerts(asker) => {
                let policy = &self.driver.config.borrow().alerts.policy;
                drop(asker.send(View::of(&self.alerts.machine, policy, now.utc)));
            }
            Question::Silence { wish, by, answer } => {
                tracing::info!(?wish, by, "an operator's wish");
                let asker = Asker::new(move |said| drop(answer.send(said)));
                let refused = match wish {
                    Wish::Begin(silence) => self.alerts.machine.silence(silence, now.utc).err(),
                    Wish::End(number) => (!self.alerts.machine.end_silence(number))
                        .then(|| "there is no silence of this number".to_owned()),
                };
                self.alerts.leave(&self.driver.left);
                batch.steps.extend(self.alerts.stored());
                batch.askers.push((asker, refused.map_or(Answer::Done, |why| Answer::Refused { why })));
            }
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

    fn configure(&mut self, batch: &mut Batch) {
        let roster = crate::roster(&self.driver.config.borrow_and_update());
        self.feed(Event::Roster(roster), batch);
        self.alerts.machine.reconsider();
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
        let config = self.driver.config.borrow().clone();
        let (bus_down, now) = (self.bus_down, clock::now());
        batch.steps.extend(self.alerts.catch_up(&self.driver.left));
        let look = self.alerts.look(&mut self.ledger, &mut self.driver.post, &config, bus_down, now);
        batch.steps.extend(look);
    }

    fn feed(&mut self, event: Event, batch: &mut Batch) {
        batch.steps.push(self.ledger.apply(event, clock::now()));
    }

    /// What is waiting at the end still counts, and what is being told is told once.
    async fn last_commit(&mut self) {
        let mut batch = Batch::default();
        let told = async {
            while self.alerts.is_busy() {
                let done = self.alerts.ended().await;
                batch.steps.extend(self.alerts.attempted(done, &self.driver.post));
            }
        };
        let _the_next_leader_tells_again = tokio::time::timeout(LAST_WORDS, told).await;
        self.gather(&mut batch);
        batch.steps.extend(self.alerts.stored());
        if self.carry_out(batch).await.is_err() {
            tracing::warn!("the last reports are not stored; the next leader reads them again");
        }
    }
}

#[cfg(test)]
mod tests;
