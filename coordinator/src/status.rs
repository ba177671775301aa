//! What a coordinator shows of itself, and how somebody asks the one who leads: the [`Desk`] is for whoever asks, the
//! [`Post`] for the leader. Figures that need no look into the ledger are in the [`Pulse`], which never waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::alert::Alerts;
use keyfleet_core::alert::mute::Silence;
use keyfleet_core::id::{Model, ReplicaId};
use keyfleet_core::ledger::{BucketView, KeyView, Ledger, Saved, Step, Term};
use keyfleet_core::message::{Answer, Operation};
use keyfleet_core::owner::Partition;
use keyfleet_core::quota::holders;
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest};
use keyfleet_core::state::{Meta, Table};
use keyfleet_core::time::{LedgerTime, Mono, Now};
use keyfleet_fabric::bus::nats::Tail;
use keyfleet_fabric::store::{StateStore, StoreError};
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use keyfleet_service::follow::Reloads;
use tokio::sync::{mpsc, oneshot, watch};

use crate::alerts::view::View;

/// Questions that may wait.
const WAITING: usize = 64;
/// A replica that was silent for so long is not shown any more.
const LATELY: Duration = Duration::from_mins(5);
/// A replica with leases speaks every second, and its leases are over after ten.
const SILENT: Duration = Duration::from_secs(15);
/// The most replicas that are remembered.
const MAX_REPLICAS: usize = 10_000;

/// Who leads, as far as this coordinator knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Role {
    /// Nobody that is known of.
    #[default]
    Unknown,
    /// Another one, by the name in its claim.
    Standby(ReplicaId),
    /// This one.
    Leading,
}

/// Figures that can be read at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Who leads.
    pub role: Role,
    /// The highest epoch that was heard of.
    pub epoch: u64,
    /// The revision of this leader's decisions.
    pub revision: u64,
    /// Up to where this leader has applied reports.
    pub cursor: u64,
    /// How often this process began to lead.
    pub takeovers: u64,
    /// Commits that were acknowledged.
    pub commits: u64,
    /// Commits that were refused, or had no answer while the lead was certain.
    pub commit_failures: u64,
    /// Reports that had been heard before.
    pub doubles: u64,
    /// Reports that are known to be lost.
    pub lost: u64,
    /// Leases that were granted.
    pub granted: u64,
    /// Wishes for leases that could not be granted in full.
    pub refused: u64,
    /// Nothing is granted of a minute's quota: what was granted before is not known for certain.
    pub blind: bool,
    /// The store answered when this coordinator last claimed the lead.
    pub store_up: bool,
    /// Alerts that fire.
    pub alerts_firing: u64,
    /// Alerts that are wrong, and not yet for long enough.
    pub alerts_pending: u64,
    /// Messages about alerts that are not delivered.
    pub alerts_waiting: u64,
    /// Attempts of this process to deliver one, by receiver and by what became of it.
    pub alert_deliveries: BTreeMap<(String, &'static str), u64>,
}

impl Pulse {
    /// How far a leader is behind the stream that it was seen to read.
    pub fn lag(&self, tail: Option<Tail>) -> Option<Lag> {
        let Tail { last, age } = tail.filter(|_| self.role == Role::Leading)?;
        Some(Lag { reports: last.saturating_sub(self.cursor), age })
    }
}

/// How far a leader is behind what gateways report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Reports that wait to be applied.
    pub reports: u64,
    /// How long the stream had held the report that was read last.
    pub age: Duration,
}

/// What only the leader's ledger knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// How far ledger time has come.
    pub time: LedgerTime,
    /// How long nothing is granted yet of a minute's quota.
    pub blind_for: Duration,
    /// Limited buckets in the book.
    pub buckets: usize,
    /// Lots that are out.
    pub open_lots: usize,
    /// Replicas that said something lately, and how long ago.
    pub replicas: Vec<(ReplicaId, Duration)>,
    /// Refusals of a quota of which something was left by the ledger's count, since it began to lead.
    pub external_refusals: u64,
}

/// Every key, and every limited bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// The keys, by name.
    pub keys: Vec<KeyView>,
    /// The buckets, by name.
    pub buckets: Vec<BucketView>,
    /// Models that were answered for at some time: others may be inventions of clients.
    pub answered: BTreeSet<Model>,
}

impl Overview {
    pub(crate) fn of(ledger: &mut Ledger, now: Now) -> Self {
        Self { keys: ledger.view(now), buckets: ledger.buckets(now), answered: ledger.answered() }
    }
}

/// A question to the leader of this process. One whose asker has gone is not answered, and an operation not done.
#[derive(Debug)]
pub(crate) enum Question {
    Standing(oneshot::Sender<Standing>),
    Overview(oneshot::Sender<Overview>),
    Operate { operation: Operation, by: String, answer: oneshot::Sender<Answer> },
    Alerts(oneshot::Sender<View>),
    Silence { wish: Wish, by: String, answer: oneshot::Sender<Answer> },
}

/// What an operator wants of silences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Nobody is told of what it covers.
    Begin(Silence),
    /// The one of this number is over.
    End(u64),
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// This coordinator does not lead.
    #[error("this coordinator does not lead")]
    NotLeading,
    /// Too many wait.
    #[error("too many questions wait for the leader")]
    Busy,
    /// The lead was lost, or nobody answered in time. What was asked for may have been done or not.
    #[error("the leader did not answer in time; it may have been done or not")]
    Silent,
}

/// Where the leader of this process is asked. Clones ask the same.
#[derive(Debug, Clone)]
pub struct Desk {
    questions: mpsc::Sender<Question>,
    pulse: watch::Receiver<Pulse>,
}

/// Where the leader answers.
#[derive(Debug)]
pub struct Post {
    /// Where this coordinator's API is reached; part of the name in its claim.
    pub(crate) address: Option<String>,
    questions: mpsc::Receiver<Question>,
    pulse: Arc<watch::Sender<Pulse>>,
    heard: HashMap<ReplicaId, Mono>,
    /// Holders that had leases when they last spoke, and when that was.
    at_work: HashMap<ReplicaId, Mono>,
    reloads: watch::Receiver<Reloads>,
}

/// Both sides, for a coordinator whose API is reached at `address`, if it has one.
pub fn desk(address: Option<String>, reloads: watch::Receiver<Reloads>) -> (Desk, Post) {
    let (ask, questions) = mpsc::channel(WAITING);
    let (tell, pulse) = watch::channel(Pulse::default());
    let post = Post {
        address,
        questions,
        pulse: Arc::new(tell),
        heard: HashMap::new(),
        at_work: HashMap::new(),
        reloads,
    };
    (Desk { questions: ask, pulse }, post)
}

impl Desk {
    /// The figures as they are now.
    pub fn pulse(&self) -> Pulse {
        self.pulse.borrow().clone()
    }

    /// Asks how the leader stands.
    pub async fn standing(&self, patience: Duration) -> Result<Standing, NoAnswer> {
        self.ask(Question::Standing, patience).await
    }

    /// Asks for every key.
    pub async fn overview(&self, patience: Duration) -> Result<Overview, NoAnswer> {
        self.ask(Question::Overview, patience).await
    }

    /// Has something done to a key; answered when it is written down.
    pub async fn operate(
        &self,
        operation: Operation,
        by: String,
        patience: Duration,
    ) -> Result<Answer, NoAnswer> {
        self.ask(|answer| Question::Operate { operation, by, answer }, patience).await
    }

    /// Asks for everything that is known of alerts.
    pub async fn alerts(&self, patience: Duration) -> Result<View, NoAnswer> {
        self.ask(Question::Alerts, patience).await
    }

    /// Begins or ends a silence; answered when it is written down.
    pub async fn silence(&self, wish: Wish, by: String, patience: Duration) -> Result<Answer, NoAnswer> {
        self.ask(|answer| Question::Silence { wish, by, answer }, patience).await
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
        patience: Duration,
    ) -> Result<T, NoAnswer> {
        if self.pulse.borrow().role != Role::Leading {
            return Err(NoAnswer::NotLeading);
        }
        let (answer, answered) = oneshot::channel();
        self.questions.try_send(question(answer)).map_err(|_| NoAnswer::Busy)?;
        let answer = tokio::time::timeout(patience, answered).await;
        answer.ok().and_then(Result::ok).ok_or(NoAnswer::Silent)
    }
}

impl Post {
    /// The next question whose asker still waits; `None` if nobody can ask any more. An operation that was given up
    /// is not done later.
    pub(crate) async fn asked(&mut self) -> Option<Question> {
        loop {
            let question = self.questions.recv().await?;
            let waits = match &question {
                Question::Standing(asker) => !asker.is_closed(),
                Question::Overview(asker) => !asker.is_closed(),
                Question::Operate { answer, .. } | Question::Silence { answer, .. } => !answer.is_closed(),
                Question::Alerts(asker) => !asker.is_closed(),
            };
            if waits {
                return Some(question);
            }
        }
    }

    /// Changes the figures.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Pulse)) {
        self.pulse.send_modify(change);
    }

    /// Another hand on the figures.
    pub(crate) fn pulse(&self) -> Arc<watch::Sender<Pulse>> {
        self.pulse.clone()
    }

    /// A replica said something.
    pub(crate) fn heard(&mut self, replica: &ReplicaId) {
        let now = clock::mono();
        if let Some(at) = self.heard.get_mut(replica) {
            *at = now;
            return;
        }
        if self.heard.len() >= MAX_REPLICAS {
            self.heard.retain(|_, at| now.since(*at) < LATELY);
        }
        if self.heard.len() < MAX_REPLICAS {
            self.heard.insert(replica.clone(), now);
        }
    }

    /// A holder asks for leases, or gives them back.
    pub(crate) fn asks(&mut self, request: &LeaseRequest) {
        self.heard(&holders::replica(&request.boot));
        // Whoever was only refused may have nothing to say for long.
        if request.reports.iter().any(|report| !report.closed) {
            self.has_quota(&request.boot);
        } else {
            self.at_work.remove(&request.boot);
        }
    }

    /// What the last leader knew: who has quota in hand, and who was lost by then.
    pub(crate) fn inherits(
        &mut self,
        at_work: impl IntoIterator<Item = ReplicaId>,
        lost: impl IntoIterator<Item = ReplicaId>,
    ) {
        at_work.into_iter().for_each(|boot| self.has_quota(&boot));
        let silent = clock::mono().minus(SILENT);
        for boot in lost {
            if self.at_work.len() < MAX_REPLICAS {
                self.at_work.entry(boot).or_insert(silent);
            }
        }
    }

    /// A holder has quota in hand, or gets some, and will be heard of again.
    pub(crate) fn has_quota(&mut self, boot: &ReplicaId) {
        if self.at_work.len() < MAX_REPLICAS || self.at_work.contains_key(boot) {
            self.at_work.insert(boot.clone(), clock::mono());
        }
    }

    /// Replicas that had leases and are silent for longer than leases hold.
    pub(crate) fn lost(&mut self, now: Mono) -> Vec<ReplicaId> {
        self.at_work.retain(|_, at| now.since(*at) < LATELY);
        let silent = self.at_work.iter().filter(|(_, at)| now.since(**at) >= SILENT);
        let mut lost: Vec<_> = silent.map(|(boot, _)| holders::replica(boot)).collect();
        lost.sort();
        lost.dedup();
        lost
    }

    /// Whether the configuration on disk has a mistake.
    pub(crate) fn config_rejected(&self) -> bool {
        !self.reloads.borrow().in_force()
    }

    /// A report was taken.
    pub(crate) fn reported(&mut self, replica: &ReplicaId, step: &Step) {
        self.heard(replica);
        if !step.heard.iter().any(|(heard, _)| heard == replica) {
            self.note(|pulse| pulse.doubles += 1);
        }
        if step.lost > 0 {
            self.note(|pulse| pulse.lost += step.lost);
        }
    }

    /// Leases are answered.
    pub(crate) fn leased(&self, replies: &[LeaseReply]) {
        let sum = |count: fn(&LeaseReply) -> usize| replies.iter().map(count).sum::<usize>() as u64;
        self.note(|pulse| {
            pulse.granted += sum(|reply| reply.grants.len());
            pulse.refused += sum(|reply| reply.refusals.len());
        });
    }

    /// A commit was acknowledged, or not.
    pub(crate) fn committed(&self, ok: bool) {
        self.note(|pulse| {
            let count = if ok { &mut pulse.commits } else { &mut pulse.commit_failures };
            *count += 1;
        });
    }

    /// What is known of the ledger and of those who speak with it.
    pub(crate) fn standing(&mut self, ledger: &Ledger, now: Now) -> Standing {
        self.heard.retain(|_, at| now.mono.since(*at) < LATELY);
        let mut replicas: Vec<_> =
            self.heard.iter().map(|(replica, at)| (replica.clone(), now.mono.since(*at))).collect();
        replicas.sort();
        let (buckets, open_lots) = ledger.counts();
        let time = ledger.time(now);
        let external_refusals = ledger.external_refusals();
        let blind_for = ledger.blind_until().since(time);
        Standing { time, blind_for, buckets, open_lots, replicas, external_refusals }
    }
}

/// What the store says: for a coordinator that does not lead.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What stands beside the entries.
    pub meta: Meta,
    /// The keys and buckets, as a leader would see them that took over now.
    pub overview: Overview,
    /// Limited buckets in the book.
    pub buckets: usize,
    /// What was stored of alerts.
    pub alerts: View,
}

/// Reads what is stored.
pub async fn stored(store: &dyn StateStore, config: &Config) -> Result<Stored, StoreError> {
    let image = store.load().await?;
    let (saved, _) = Saved::read(&image);
    let (machine, _) = Alerts::restore(&image, clock::utc());
    let meta = image.meta;
    let term = Term {
        epoch: meta.epoch,
        time: meta.time,
        blind_until: meta.blind_until,
        suspect: false,
        partition: Partition::default(),
    };
    let now = clock::now();
    let (mut ledger, _) = Ledger::new(crate::roster(config), saved, term, now);
    let buckets = image.entries.iter().filter(|entry| entry.table == Table::Accounts).count();
    let alerts = View::of(&machine, &config.alerts.policy, now.utc);
    Ok(Stored { meta, overview: Overview::of(&mut ledger, now), buckets, alerts })
}

/// The address in a leader's name, if it told one.
pub fn address(holder: &ReplicaId) -> Option<&str> {
    holder.as_str().rsplit_once('/').map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use keyfleet_core::quota::message::{LotReport, Want};

    use super::*;

    fn desk(address: Option<String>) -> (Desk, Post) {
        super::desk(address, watch::channel(Reloads::new(clock::utc())).1)
    }

    #[tokio::test]
    async fn one_that_does_not_lead_is_not_asked() {
        let (desk, mut post) = desk(None);
        let patience = Duration::from_secs(20);
        assert_eq!(desk.standing(patience).await, Err(NoAnswer::NotLeading));
        assert!(post.asked().now_or_never().is_none());
        post.note(|pulse| pulse.role = Role::Leading);
        let waiting: Vec<_> = (0..=WAITING).map(|_| desk.overview(Duration::ZERO)).collect();
        let answers = futures_util::future::join_all(waiting).await;
        assert_eq!(answers[WAITING], Err(NoAnswer::Busy));
        assert_eq!(answers[0], Err(NoAnswer::Silent));
        drop(post);
        assert_eq!(desk.standing(patience).await, Err(NoAnswer::Busy));
    }

    #[tokio::test]
    async fn what_was_given_up_is_not_done() {
        let (desk, mut post) = desk(None);
        post.note(|pulse| pulse.role = Role::Leading);
        let probe = || Operation::Probe { key: keyfleet_core::id::KeyId::new("k") };
        let asked = |by: &str| desk.operate(probe(), by.to_owned(), Duration::from_secs(20));
        assert!(asked("one that does not wait").now_or_never().is_none());
        let mut waits = Box::pin(asked("one that waits"));
        assert!(waits.as_mut().now_or_never().is_none());
        let Some(Question::Operate { by, .. }) = post.asked().await else { panic!("nobody asks") };
        assert_eq!(by, "one that waits");
        assert_eq!(waits.await, Err(NoAnswer::Silent), "a leader that drops a question ends the wait");
    }

    #[test]
    fn what_is_taken_and_answered_is_counted() {
        let (desk, mut post) = desk(None);
        let replica = ReplicaId::new("r");
        let heard = vec![(replica.clone(), 1), (ReplicaId::new("one that is forgotten"), 0)];
        post.reported(&replica, &Step { heard: heard.clone(), ..Step::default() });
        post.reported(&replica, &Step { heard: heard[1..].to_vec(), lost: 4, ..Step::default() });
        post.committed(true);
        post.committed(false);
        assert_eq!(
            desk.pulse(),
            Pulse { doubles: 1, lost: 4, commits: 1, commit_failures: 1, ..Pulse::default() }
        );
        assert_eq!(post.heard.len(), 1);
    }

    #[test]
    fn whoever_had_quota_in_hand_and_is_silent_is_lost() {
        let (_desk, mut post) = desk(None);
        let bucket = keyfleet_core::quota::Bucket::Client(keyfleet_core::id::ClientName::new("web"));
        let lot = keyfleet_core::quota::LotId { epoch: 1, number: 1 };
        let report = |closed| LotReport { bucket: bucket.clone(), lot, drawn: 0, given_back: 0, closed };
        let want = Want { bucket: bucket.clone(), need: 1, ahead: 0, debt: 0 };
        let holder = |boot: &str, reports| LeaseRequest {
            boot: ReplicaId::new(boot),
            number: 1,
            epoch: 1,
            reports,
            wants: vec![want.clone()],
        };
        post.asks(&holder("holds", vec![report(false)]));
        post.asks(&holder("only asks", Vec::new()));
        post.asks(&holder("gave back", vec![report(false)]));
        post.asks(&holder("gave back", vec![report(true)]));
        post.asks(&holder("gets more", vec![report(true)]));
        post.has_quota(&ReplicaId::new("gets more"));
        let now = clock::mono();
        assert_eq!(post.lost(now), []);
        assert_eq!(post.lost(now.plus(SILENT)), ["gets more", "holds"].map(ReplicaId::new));
        assert_eq!(post.lost(now.plus(2 * LATELY)), [], "nobody waits for it any more");
    }

    #[test]
    fn replicas_are_remembered_in_bounds() {
        let (_desk, mut post) = desk(None);
        for n in 0..=MAX_REPLICAS {
            post.heard(&ReplicaId::new(n.to_string()));
        }
        assert_eq!(post.heard.len(), MAX_REPLICAS);
    }

    #[test]
    fn a_claim_tells_where_its_holder_is_reached() {
        assert_eq!(address(&ReplicaId::new("[::1]:4807/a-b")), Some("[::1]:4807"));
        assert_eq!(address(&ReplicaId::new("a-b")), None);
    }
}
