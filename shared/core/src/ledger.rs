//! The coordinator's machine: folds what replicas saw into health scores and blocks that hold for all of them.
//!
//! [`Ledger::apply`] takes one event and the time, changes its state, and says what is to be done; it does nothing
//! itself. A replica acts on its own findings at once and by the same rules, so a decision made here mostly
//! confirms what the replica that saw the failure already does, and tells the others.
//!
//! What an event changes is stored before anybody hears of it: [`Step::entries`] and [`Step::delta`] are committed
//! together, and only then are decisions spread and leases handed out.

mod blocking;
mod breakers;
mod learned;
mod models;
mod observed;
mod operating;
mod probing;
mod quotas;
mod rates;
mod roster;
mod saved;
mod stored;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::block::{self, Block};
use crate::health::{self, Health, Score};
use crate::id::{KeyId, Model, ProjectId, ReplicaId, Resource};
use crate::latency::Latencies;
use crate::message::{Change, Delta, MOST_TIMES, Operation, Owned, Record, Report, Subject};
use crate::outcome::{Cause, Outcome, Retry, Scope};
use crate::owner::{Owner, Partition};
use crate::quota::message::{LeaseReply, LeaseRequest};
use crate::quota::{Bucket, Terms};
use crate::state::Entry;
use crate::time::{Mono, Now, Utc};
use blocking::Failure;
pub use learned::{External, Learned};
use models::{Models, Slowness};
use probing::Appointment;
pub use probing::SavedProbe;
use quotas::Quotas;
pub use quotas::Term;
use rates::Rates;
pub use roster::{Member, Roster};
pub use saved::Saved;
use stored::{AllTotals, Touched};
pub use stored::{Totals, read_owner, snapshot};
pub use view::{BucketView, KeyView};

/// How often scores are looked at without an event: they heal with time.
const SCORE_TICK: Duration = Duration::from_secs(1);
/// A block that strikes again within this time after its end counts as one more in a row.
const IN_A_ROW: Duration = Duration::from_mins(10);
/// A publisher that is silent for so long is gone, and so are its reports: the stream keeps them for a shorter time.
const FORGET_PUBLISHER: Duration = Duration::from_hours(50);
/// The most blocks and the most owned resources that are kept; beyond it the ones that end first make room.
pub const MAX_ENTRIES: usize = 100_000;

/// What happens to the ledger.
#[derive(Debug, Clone)]
pub enum Event {
    /// A replica reports. What was heard of it already is skipped.
    Report(Report),
    /// Holders report what they used of their quota and ask for more; they are answered together.
    Lease(Vec<LeaseRequest>),
    /// A gateway is about to tell its client of something that was created upstream.
    Own(Owned),
    /// An operator wants something.
    Operate(Operation),
    /// The prober has a verdict: `None`, the key is valid.
    Probed {
        /// The key.
        key: KeyId,
        /// What was wrong with it.
        outcome: Option<Outcome>,
        /// A random draw.
        draw: u32,
    },
    /// The prober's round begins.
    Scan,
    /// The configuration changed.
    Roster(Roster),
    /// Time has passed.
    Tick,
}

/// What follows from an event. `entries`, `delta` and `heard` are stored first and together; only then is the rest
/// done, and the delta spread.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// What is stored.
    pub entries: Vec<Entry>,
    /// What every replica hears.
    pub delta: Option<Delta>,
    /// Up to which report each publisher has been heard.
    pub heard: Vec<(ReplicaId, u64)>,
    /// The answers to [`Event::Lease`], in the order of its requests.
    pub leases: Vec<LeaseReply>,
    /// Keys to look at.
    pub probes: Vec<KeyId>,
    /// Why an operator's wish cannot be granted.
    pub refused: Option<String>,
    /// Reports that their publisher sent before this one and nobody will hear any more.
    pub lost: u64,
}

impl Step {
    /// Whether there is anything to store.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.delta.is_none() && self.heard.is_empty()
    }
}

#[derive(Debug)]
struct KeyState {
    project: ProjectId,
    fingerprint: KeyId,
    health: Health,
    slowness: Slowness,
    score: Score,
    failures_in_a_row: u32,
    /// When model or way out last failed with it.
    failed_at: Option<Mono>,
    appointment: Appointment,
}

/// The machine.
#[derive(Debug)]
pub struct Ledger {
    partition: Partition,
    roster: Roster,
    rev: u64,
    keys: HashMap<KeyId, KeyState>,
    blocks: HashMap<Subject, Block>,
    models: Models,
    rates: Rates,
    owned: HashMap<Resource, (ProjectId, Utc)>,
    quotas: Quotas,
    totals: AllTotals,
    /// Up to which report each publisher has been heard, and when.
    heard: HashMap<ReplicaId, (u64, Mono)>,
    epoch: u64,
    next_tick: Mono,
}

/// What one call of [`Ledger::apply`] gathers.
#[derive(Default)]
struct Notes {
    changes: Vec<Change>,
    probes: Vec<KeyId>,
    touched: Touched,
    heard: Vec<(ReplicaId, u64)>,
    refused: Option<String>,
    lost: u64,
}

impl KeyState {
    fn new(project: ProjectId, fingerprint: KeyId, health: Health, now: Now) -> Self {
        Self {
            project,
            fingerprint,
            health,
            slowness: Slowness::default(),
            score: Score::PERFECT,
            failures_in_a_row: 0,
            failed_at: None,
            appointment: Appointment::new(now.mono),
        }
    }
}

impl Ledger {
    /// A ledger for a roster, with what an earlier one saved, in a leader's term; and what of that does not hold any
    /// more, which is the term's first commit.
    pub fn new(roster: Roster, saved: Saved, term: Term, now: Now) -> (Self, Step) {
        let mut ledger = Self {
            partition: term.partition,
            roster: Roster {
                keys: Vec::new(),
                billing_accounts: HashMap::new(),
                policy: roster.policy,
                limits: roster.limits.clone(),
            },
            rev: saved.rev,
            keys: HashMap::new(),
            blocks: saved.blocks.into_iter().collect(),
            models: Models::default(),
            rates: Rates::default(),
            owned: saved
                .owned
                .into_iter()
                .map(|(resource, project, until)| (resource, (project, until)))
                .collect(),
            quotas: Quotas::new(term, saved.accounts, saved.limits, now),
            totals: saved.totals.into_iter().collect(),
            heard: saved.heard.into_iter().map(|(replica, seq)| (replica, (seq, now.mono))).collect(),
            epoch: term.epoch,
            next_tick: now.mono,
        };
        let answered = ledger.totals.iter().filter(|(_, totals)| totals.answered > 0);
        ledger.quotas.grantor.served(answered.map(|((_, model), _)| model));
        let mut notes = Notes::default();
        ledger.enrol(roster, &saved.health, &saved.fingerprints, now, &mut notes);
        ledger.forget_the_past(now, &mut notes);
        ledger.keep_appointments(&saved.probes, now);
        let step = ledger.finish(notes, now);
        (ledger, step)
    }

    /// Takes an event.
    pub fn apply(&mut self, event: Event, now: Now) -> Step {
        let mut notes = Notes::default();
        let mut leases = Vec::new();
        match event {
            Event::Report(report) => self.report(report, now, &mut notes),
            Event::Lease(requests) => leases = self.lease(&requests, now),
            Event::Own(owned) => self.own(owned, now, &mut notes),
            Event::Operate(operation) => self.operate(operation, now, &mut notes),
            Event::Probed { key, outcome, draw } => self.probed(&key, outcome, draw, now, &mut notes),
            Event::Scan => self.scan(now, &mut notes),
            Event::Roster(roster) => {
                self.enrol(roster, &BTreeMap::new(), &BTreeMap::new(), now, &mut notes);
            }
            Event::Tick => {}
        }
        if now.mono >= self.next_tick {
            self.next_tick = now.mono.plus(SCORE_TICK);
            self.forget_the_past(now, &mut notes);
            self.settle_quotas(now, &mut notes);
            self.score_all(now, &mut notes);
        }
        Step { leases, ..self.finish(notes, now) }
    }

    /// When to call [`Ledger::apply`] with [`Event::Tick`] at the latest.
    pub fn next_timeout(&self) -> Mono {
        self.next_tick
    }

    /// The revision of what holds.
    pub fn rev(&self) -> u64 {
        self.rev
    }

    fn finish(&mut self, notes: Notes, now: Now) -> Step {
        let Notes { changes, probes, touched, heard, refused, lost } = notes;
        let delta = (!changes.is_empty()).then(|| {
            let prev = self.rev;
            self.rev += 1;
            Delta { epoch: self.epoch, rev: self.rev, prev, changes }
        });
        Step { entries: self.entries(&touched, now), delta, heard, leases: Vec::new(), probes, refused, lost }
    }

    fn report(&mut self, report: Report, now: Now, notes: &mut Notes) {
        // One that is not known may have been forgotten, which proves no loss.
        let last = self.heard.get(&report.replica).map_or(report.seq.saturating_sub(1), |(last, _)| *last);
        if report.seq <= last {
            return; // it was stored twice
        }
        // A publisher goes on to the next number when the one before is stored.
        notes.lost += report.seq - last - 1;
        self.heard.insert(report.replica.clone(), (report.seq, now.mono));
        notes.heard.push((report.replica.clone(), report.seq));
        for record in report.records {
            if let (None, Record::Succeeded { model, n, ttfb_ms, .. }) = (&report.times, &record) {
                let mut mean = Latencies::default();
                mean.count(*n, *ttfb_ms);
                self.rates.took(model, &mean, now.mono);
            }
            self.record(record, &report.replica, now, notes);
        }
        for (model, times) in report.times.into_iter().flatten().take(MOST_TIMES) {
            self.rates.took(&model, &times, now.mono);
        }
    }

    fn record(&mut self, record: Record, replica: &ReplicaId, now: Now, notes: &mut Notes) {
        match record {
            // Of keys that are not ours nothing is known either.
            Record::Tripped { model, .. } | Record::Recovered { model, .. }
                if !self.partition.owns(Owner::Model(&model)) => {}
            Record::Owned(owned) if !self.partition.owns(Owner::Project(&owned.project)) => {}
            Record::Succeeded { key, model, n, ttfb_ms, probe } => {
                self.succeeded(&key, &model, n, ttfb_ms, probe, now, notes);
            }
            Record::Failed {
                key,
                model,
                scope,
                cause,
                n,
                retry_after_ms,
                draw,
                probe,
                limits,
                in_a_row,
                age_ms,
            } => {
                let retry_after = retry_after_ms.map(Duration::from_millis);
                let outcome = Outcome { scope, cause, retry: Retry::OtherKey, retry_after };
                let age = Duration::from_millis(age_ms);
                if scope == Scope::Bucket
                    && let Some(project) = self.keys.get(&key).map(|state| state.project.clone())
                {
                    let back_in = retry_after.unwrap_or(Terms::MINUTE.window).saturating_sub(age);
                    self.refused((&project, &model), cause, &limits, back_in, now, notes);
                }
                let in_a_row = in_a_row.unwrap_or(n);
                let failure = Failure { outcome, n, in_a_row, draw, probe, at: now.ago(age) };
                self.failed(&key, &model, &failure, now, notes);
            }
            Record::Owned(owned) => self.own(owned, now, notes),
            Record::Tripped { host, model, cause, recovery_ms, draw, probe, age_ms } => {
                let recovery = Duration::from_millis(recovery_ms);
                let at = now.ago(Duration::from_millis(age_ms));
                self.tripped(Subject::Model(host, model), cause, recovery, (draw, probe), at, now, notes);
            }
            Record::Judged { subject, lot } => {
                self.quotas.grantor.judged(&Bucket::Probe(subject), replica, lot);
            }
            Record::Recovered { host, model } => self.clear(&Subject::Model(host, model), now, notes),
        }
    }

    fn own(&mut self, owned: Owned, now: Now, notes: &mut Notes) {
        let until = now.utc.plus(Duration::from_millis(owned.ttl_ms));
        self.owned.insert(owned.resource.clone(), (owned.project.clone(), until));
        notes.touched.owners.insert(owned.resource.clone());
        notes.touched.owners.extend(make_room(&mut self.owned, |(_, until)| *until));
        notes.changes.push(Change::Owned(owned));
    }

    /// Adds to what was ever reported of a key and model. When there are too many of these, what more models there are
    /// counts as one without a name.
    fn count(&mut self, key: &KeyId, model: &Model, answered: u64, failed: u64, notes: &mut Notes) {
        let mut pair = (key.clone(), model.clone());
        if self.totals.len() >= MAX_ENTRIES && !self.totals.contains_key(&pair) {
            pair.1 = Model::new("");
        }
        let totals = self.totals.entry(pair.clone()).or_default();
        totals.answered += answered;
        totals.failed += failed;
        notes.touched.totals.insert(pair);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    fn succeeded(
        &mut self,
        key: &KeyId,
        model: &Model,
        n: u32,
        ttfb_ms: u32,
        probe: bool,
        now: Now,
        notes: &mut Notes,
    ) {
        let Some(state) = self.keys.get_mut(key) else { return };
        notes.touched.keys.insert(key.clone());
        state.health.succeeded(n, Duration::from_millis(u64::from(ttfb_ms)), now.mono);
        state.failures_in_a_row = 0;
        state.appointment.seen_working(now.mono);
        let project = state.project.clone();
        self.count(key, model, u64::from(n), 0, notes);
        self.rates.answered(model, n, now.mono);
        self.quotas.grantor.served([model]);
        if let Some(factor) = self.models.answered(model, (key, &project), n, ttfb_ms, now.mono) {
            self.keys.entry(key.clone()).and_modify(|state| state.slowness.saw(factor, n));
        }
        let subjects = [
            Subject::Bucket(project.clone(), model.clone()),
            Subject::KeyModel(key.clone(), model.clone()),
            Subject::Key(key.clone()),
            Subject::Project(project),
        ];
        for subject in subjects {
            // Answers that were under way when the block began say nothing about it; the probe does.
            let block = self.blocks.get(&subject).copied();
            if block.is_some_and(|block| !block.holds(now)) {
                self.blocks.remove(&subject);
                notes.touched.blocks.insert(subject);
            } else if probe && block.is_some_and(|block| block.cause != Cause::ByOperator) {
                self.clear(&subject, now, notes);
            }
        }
    }

    fn failed(&mut self, key: &KeyId, model: &Model, failure: &Failure, now: Now, notes: &mut Notes) {
        let Failure { outcome, n, draw, probe, at, .. } = failure;
        let Some(state) = self.keys.get_mut(key) else { return };
        let project = state.project.clone();
        notes.touched.keys.insert(key.clone());
        self.count(key, model, 0, u64::from(*n), notes);
        // What clients get wrong says nothing of the model; they may even have invented it.
        if outcome.scope != Scope::Client {
            self.rates.failed(model, *n, outcome.scope == Scope::Bucket, now.mono);
        }
        let Some(state) = self.keys.get_mut(key) else { return };
        let is_shared = matches!(outcome.scope, Scope::Model | Scope::Egress);
        // What others got before its last failure does not make this one, in a storm, the key's own.
        let before = if is_shared { state.failed_at.replace(now.mono) } else { None };
        let others = self.models.others_succeed(model, &project, before, now.mono);
        if let Some(weight) = health::weight(outcome.scope, outcome.cause, others) {
            self.charge(key, weight, failure, now, notes);
        }
        let Some(subject) = self.subject(key, model, outcome.scope) else { return };
        let level = self.next_level(&subject, *probe, *at);
        let Some(window) = block::window(outcome, level, &self.roster.policy, at.utc, *draw) else { return };
        let found = Block::begin(outcome.cause, window, level, at.utc);
        if !found.holds(now) {
            return; // it waited to be reported until it was over
        }
        for subject in self.paid_together(subject, outcome.scope) {
            self.block(subject, found, *probe, now, notes);
        }
    }

    /// Drops what no longer matters.
    fn forget_the_past(&mut self, now: Now, notes: &mut Notes) {
        let over = self.blocks.extract_if(|_, block| block.until.plus(IN_A_ROW) <= now.utc);
        notes.touched.blocks.extend(over.map(|(subject, _)| subject));
        self.forget_breakers(now, notes);
        let over = self.owned.extract_if(|_, (_, until)| *until <= now.utc);
        notes.touched.owners.extend(over.map(|(resource, _)| resource));
        let silent = self.heard.extract_if(|_, (_, at)| now.mono.since(*at) > FORGET_PUBLISHER);
        // The number 0 tells the store to forget it.
        notes.heard.extend(silent.map(|(replica, _)| (replica, 0)));
        self.models.settle(now.mono);
    }

    fn score_all(&mut self, now: Now, notes: &mut Notes) {
        for (key, state) in &mut self.keys {
            score(key, state, now, notes);
        }
    }
}

fn score(key: &KeyId, state: &mut KeyState, now: Now, notes: &mut Notes) {
    let median_ms = state.health.latency_ms().and_then(|own| state.slowness.median_ms(own));
    let score = state.health.score_at(median_ms, now.mono);
    if score != state.score {
        state.score = score;
        notes.changes.push(Change::Scored { key: key.clone(), score });
    }
}

fn announce(subject: &Subject, block: &Block, now: Now) -> Change {
    Change::Blocked {
        subject: subject.clone(),
        cause: block.cause,
        ttl_ms: (block.until != Utc::FOREVER).then(|| millis(block.until.since(now.utc))),
        probe_ms: block.probe_at.map(|at| millis(at.since(now.utc))),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Keeps a map below its limit: the entry that ends first makes room, and is returned.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    until: impl Fn(&V) -> Utc,
) -> Option<K> {
    if map.len() <= MAX_ENTRIES {
        return None;
    }
    let first = map.iter().min_by_key(|(_, value)| until(value)).map(|(key, _)| key.clone())?;
    map.remove(&first);
    Some(first)
}

#[cfg(test)]
mod tests;
