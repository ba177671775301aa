//! The coordinator's machine: folds what replicas saw into health scores and blocks that hold for all of them.
//!
//! [`Ledger::apply`] takes one event and the time, changes its state, and says what is to be done; it does nothing
//! itself. A replica acts on its own findings at once and by the same rules, so a decision made here mostly
//! confirms what the replica that saw the failure already does, and tells the others.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::block::{self, Block, Policy, Window};
use crate::health::{self, Health, Score};
use crate::id::{KeyId, Model, ProjectId, Resource};
use crate::message::{Change, Delta, Owned, Record, Report, Snapshot, Subject};
use crate::outcome::{Outcome, Retry, Scope};
use crate::time::{Mono, Now, Utc};

/// How long an answer of another project vouches for a model.
const VOUCH: Duration = Duration::from_secs(10);
/// How often scores are looked at without an event: they heal with time.
const SCORE_TICK: Duration = Duration::from_secs(1);
/// A block that strikes again within this time after its end counts as one more in a row.
const IN_A_ROW: Duration = Duration::from_mins(10);
/// A key that nobody saw working for so long is looked at by the prober.
const UNSEEN: Duration = Duration::from_hours(1);
/// A probe whose verdict does not arrive is asked for again after this time.
const PROBE_RETRY: Duration = Duration::from_mins(2);
/// The most blocks and the most owned resources that are kept; beyond it the ones that end first make room.
pub const MAX_ENTRIES: usize = 100_000;

/// The keys of a deployment and the operator's choices.
#[derive(Debug, Clone)]
pub struct Roster {
    /// Every key.
    pub keys: Vec<Member>,
    /// Projects that run dry together.
    pub billing_accounts: HashMap<ProjectId, String>,
    /// What the operator chose.
    pub policy: Policy,
}

/// One key of a roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, which the operator may have chosen.
    pub key: KeyId,
    /// Its project.
    pub project: ProjectId,
    /// What tells one secret from another without being it: a name whose secret was replaced starts afresh.
    pub fingerprint: KeyId,
}

/// What happens to the ledger.
#[derive(Debug, Clone)]
pub enum Event {
    /// A replica reports.
    Report(Report),
    /// The prober has a verdict: `None`, the key is valid.
    Probed {
        /// The key.
        key: KeyId,
        /// What was wrong with it.
        outcome: Option<Outcome>,
        /// A random draw.
        draw: u32,
    },
    /// An operator asks for a probe.
    Recheck(KeyId),
    /// The prober's round begins.
    Scan,
    /// The configuration changed.
    Roster(Roster),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Tell every replica.
    Publish(Delta),
    /// The state on disk is out of date.
    Save,
    /// Look whether this key works.
    Probe(KeyId),
}

/// The state that survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// When it was written.
    pub at: Utc,
    /// The revision that it holds.
    pub rev: u64,
    /// Blocks.
    pub blocks: Vec<(Subject, Block)>,
    /// Successes and failures that count for a key.
    pub health: BTreeMap<KeyId, (f64, f64)>,
    /// The fingerprint of the secret behind each key that is blocked.
    #[serde(default)]
    pub fingerprints: BTreeMap<KeyId, KeyId>,
    /// Owners of resources, and until when.
    pub owned: Vec<(Resource, ProjectId, Utc)>,
}

#[derive(Debug)]
struct KeyState {
    project: ProjectId,
    fingerprint: KeyId,
    health: Health,
    score: Score,
    failures_in_a_row: u32,
    /// When model or way out last failed with it.
    failed_at: Option<Mono>,
    seen_working: Option<Mono>,
    probe_due: Mono,
    failed_probes: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Ledger {
    roster: Roster,
    rev: u64,
    keys: HashMap<KeyId, KeyState>,
    blocks: HashMap<Subject, Block>,
    /// The two projects that were last seen to get an answer from a model.
    answered: HashMap<Model, [Option<(ProjectId, Mono)>; 2]>,
    owned: HashMap<Resource, (ProjectId, Utc)>,
    next_tick: Mono,
    /// The median of the keys' latencies at the last tick.
    median_ms: Option<f64>,
}

/// What one call of [`Ledger::apply`] gathers.
#[derive(Default)]
struct Step {
    changes: Vec<Change>,
    probes: Vec<KeyId>,
    save: bool,
}

impl KeyState {
    fn new(project: ProjectId, fingerprint: KeyId, health: Health, now: Now) -> Self {
        Self {
            project,
            fingerprint,
            health,
            score: Score::PERFECT,
            failures_in_a_row: 0,
            failed_at: None,
            seen_working: None,
            probe_due: now.mono,
            failed_probes: 0,
        }
    }
}

impl Ledger {
    /// A ledger for a roster, with what an earlier one saved.
    pub fn new(roster: Roster, saved: Saved, now: Now) -> Self {
        let mut ledger = Self {
            roster: Roster { keys: Vec::new(), billing_accounts: HashMap::new(), policy: roster.policy },
            rev: saved.rev,
            keys: HashMap::new(),
            blocks: saved.blocks.into_iter().collect(),
            answered: HashMap::new(),
            owned: saved
                .owned
                .into_iter()
                .map(|(resource, project, until)| (resource, (project, until)))
                .collect(),
            next_tick: now.mono,
            median_ms: None,
        };
        ledger.enrol(roster, &saved.health, &saved.fingerprints, now);
        ledger.forget_the_past(now);
        ledger.keep_appointments(now);
        ledger
    }

    /// Takes an event. Effects are to be carried out in order.
    pub fn apply(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut step = Step::default();
        match event {
            Event::Report(report) => {
                for record in report.records {
                    self.record(record, now, &mut step);
                }
            }
            Event::Probed { key, outcome, draw } => self.probed(&key, outcome, draw, now, &mut step),
            Event::Recheck(key) => step.probes.extend(self.keys.contains_key(&key).then_some(key)),
            Event::Scan => self.scan(now, &mut step),
            Event::Roster(roster) => {
                for subject in self.enrol(roster, &BTreeMap::new(), &BTreeMap::new(), now) {
                    step.changes.push(Change::Cleared { subject, slow_start: false });
                }
                step.save = true;
            }
            Event::Tick => {}
        }
        if now.mono >= self.next_tick {
            self.next_tick = now.mono.plus(SCORE_TICK);
            self.forget_the_past(now);
            self.score_all(now, &mut step);
        }
        self.finish(step)
    }

    /// When to call [`Ledger::apply`] with [`Event::Tick`] at the latest.
    pub fn next_timeout(&self) -> Mono {
        self.next_tick
    }

    /// Everything that holds.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let blocked = self.blocks.iter().map(|(subject, block)| announce(subject, block, now));
        let scored =
            self.keys.iter().map(|(key, state)| Change::Scored { key: key.clone(), score: state.score });
        let owned = self.owned.iter().map(|(resource, (project, until))| {
            let ttl_ms = millis(until.since(now.utc));
            Change::Owned(Owned { resource: resource.clone(), project: project.clone(), ttl_ms })
        });
        Snapshot { rev: self.rev, changes: blocked.chain(scored).chain(owned).collect() }
    }

    /// What is to survive a restart.
    pub fn save(&self, now: Now) -> Saved {
        let mut blocks: Vec<_> =
            self.blocks.iter().map(|(subject, block)| (subject.clone(), *block)).collect();
        blocks.sort_by(|a, b| a.0.cmp(&b.0));
        let mut owned: Vec<_> = self
            .owned
            .iter()
            .map(|(name, (project, until))| (name.clone(), project.clone(), *until))
            .collect();
        owned.sort();
        let health = self.keys.iter().map(|(key, state)| (key.clone(), state.health.counts(now.mono)));
        let health = health.filter(|(_, (_, failures))| *failures > 0.01).collect();
        let blocked = |key: &KeyId| {
            let is_key =
                |subject: &Subject| matches!(subject, Subject::Key(k) | Subject::KeyModel(k, _) if k == key);
            blocks.iter().any(|(subject, _)| is_key(subject))
        };
        let fingerprints = self.keys.iter().filter(|(key, _)| blocked(key));
        let fingerprints =
            fingerprints.map(|(key, state)| (key.clone(), state.fingerprint.clone())).collect();
        Saved { at: now.utc, rev: self.rev, blocks, health, fingerprints, owned }
    }

    fn finish(&mut self, step: Step) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !step.changes.is_empty() {
            let prev = self.rev;
            self.rev += 1;
            effects.push(Effect::Publish(Delta { rev: self.rev, prev, changes: step.changes }));
        }
        if step.save {
            effects.push(Effect::Save);
        }
        effects.extend(step.probes.into_iter().map(Effect::Probe));
        effects
    }

    /// Takes a roster over; keys that are known keep their state. Those that are gone, or have another secret, lose
    /// it: what was blocked for them is returned.
    fn enrol(
        &mut self,
        roster: Roster,
        health: &BTreeMap<KeyId, (f64, f64)>,
        fingerprints: &BTreeMap<KeyId, KeyId>,
        now: Now,
    ) -> Vec<Subject> {
        let mut old = std::mem::take(&mut self.keys);
        let mut replaced = std::collections::HashSet::new();
        for Member { key, project, fingerprint } in &roster.keys {
            let known = old.remove(key);
            let before = known.as_ref().map(|state| &state.fingerprint).or_else(|| fingerprints.get(key));
            let is_same = before.is_none_or(|before| before == fingerprint);
            if !is_same {
                replaced.insert(key.clone());
            }
            let state = known.filter(|_| is_same).unwrap_or_else(|| {
                let (successes, failures) = health.get(key).copied().filter(|_| is_same).unwrap_or_default();
                KeyState::new(
                    project.clone(),
                    fingerprint.clone(),
                    Health::restore(successes, failures, now.mono),
                    now,
                )
            });
            self.keys.insert(key.clone(), KeyState { project: project.clone(), ..state });
        }
        self.roster = roster;
        let projects: std::collections::HashSet<_> = self.keys.values().map(|state| &state.project).collect();
        let gone = self.blocks.extract_if(|subject, _| match subject {
            Subject::Key(key) | Subject::KeyModel(key, _) => {
                !self.keys.contains_key(key) || replaced.contains(key)
            }
            Subject::Bucket(project, _) | Subject::Project(project) => !projects.contains(project),
        });
        gone.map(|(subject, _)| subject).collect()
    }

    fn record(&mut self, record: Record, now: Now, step: &mut Step) {
        match record {
            Record::Succeeded { key, model, n, ttfb_ms, probe } => {
                self.succeeded(&key, &model, n, ttfb_ms, probe, now, step);
            }
            Record::Failed { key, model, scope, cause, retry_after_ms, draw, probe } => {
                let retry_after = retry_after_ms.map(Duration::from_millis);
                let outcome = Outcome { scope, cause, retry: Retry::OtherKey, retry_after };
                self.failed(&key, &model, &outcome, draw, probe, now, step);
            }
            Record::Owned(owned) => {
                let until = now.utc.plus(Duration::from_millis(owned.ttl_ms));
                self.owned.insert(owned.resource.clone(), (owned.project.clone(), until));
                make_room(&mut self.owned, |(_, until)| *until);
                step.changes.push(Change::Owned(owned));
                step.save = true;
            }
        }
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
        step: &mut Step,
    ) {
        let Some(state) = self.keys.get_mut(key) else { return };
        state.health.succeeded(n, Duration::from_millis(u64::from(ttfb_ms)), now.mono);
        state.failures_in_a_row = 0;
        state.seen_working = Some(now.mono);
        state.failed_probes = 0;
        let project = state.project.clone();
        let recent = self.answered.entry(model.clone()).or_default();
        let slot = usize::from(recent[0].as_ref().is_some_and(|(seen, _)| *seen != project));
        recent[slot] = Some((project.clone(), now.mono));
        recent.sort_by_key(|seen| std::cmp::Reverse(seen.as_ref().map(|(_, at)| *at)));
        let subjects = [
            Subject::Bucket(project.clone(), model.clone()),
            Subject::KeyModel(key.clone(), model.clone()),
            Subject::Key(key.clone()),
            Subject::Project(project),
        ];
        for subject in subjects {
            // Answers that were under way when the block began say nothing about it; the probe does.
            let ended = self.blocks.get(&subject).is_some_and(|block| !block.holds(now));
            if ended {
                self.blocks.remove(&subject);
            } else if probe {
                self.clear(&subject, now, step);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    fn failed(
        &mut self,
        key: &KeyId,
        model: &Model,
        outcome: &Outcome,
        draw: u32,
        probe: bool,
        now: Now,
        step: &mut Step,
    ) {
        let Some(state) = self.keys.get_mut(key) else { return };
        let project = state.project.clone();
        let is_shared = matches!(outcome.scope, Scope::Model | Scope::Egress);
        let before = if is_shared { state.failed_at.replace(now.mono) } else { None };
        let others = self.others_succeed(model, &project, before, now.mono);
        if let Some(weight) = health::weight(outcome.scope, outcome.cause, others) {
            self.charge(key, weight, outcome, draw, now, step);
        }
        let subject = match outcome.scope {
            Scope::Key => Subject::Key(key.clone()),
            Scope::KeyModel => Subject::KeyModel(key.clone(), model.clone()),
            Scope::Bucket => Subject::Bucket(project, model.clone()),
            Scope::Project | Scope::BillingAccount => Subject::Project(project),
            Scope::Client | Scope::Model | Scope::Egress => return,
        };
        let level = self.next_level(&subject, probe, now);
        let Some(window) = block::window(outcome, level, &self.roster.policy, now.utc, draw) else { return };
        for subject in self.paid_together(subject, outcome.scope) {
            self.block(subject, outcome, window, level, probe, now, step);
        }
    }

    /// Charges a failure to the key itself; too many in a row block it for a while.
    fn charge(&mut self, key: &KeyId, weight: f64, outcome: &Outcome, draw: u32, now: Now, step: &mut Step) {
        let policy = self.roster.policy;
        let Some(state) = self.keys.get_mut(key) else { return };
        state.health.failed(weight, now.mono);
        // Only what is the key's own fault takes it out. An overload that strikes some of all calls strikes every key
        // a few times in a row.
        if outcome.scope == Scope::Key {
            state.failures_in_a_row += 1;
        }
        let blocked = state.failures_in_a_row >= policy.max_failures;
        if blocked {
            state.failures_in_a_row = 0;
        }
        score(key, state, self.median_ms, now, step);
        if blocked {
            let subject = Subject::Key(key.clone());
            let level = self.next_level(&subject, true, now);
            let window = block::temporary(level, &policy, draw);
            self.block(subject, outcome, window, level, true, now, step);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a block has this many parts")]
    fn block(
        &mut self,
        subject: Subject,
        outcome: &Outcome,
        window: Window,
        level: u32,
        anew: bool,
        now: Now,
        step: &mut Step,
    ) {
        let found = Block::begin(outcome.cause, window, level, now.utc);
        let old = self.blocks.get(&subject).filter(|block| block.holds(now)).copied();
        let block = match old {
            // A probe that meets another, shorter limit shows that the long one is over.
            Some(old) if anew && found.cause != old.cause && found.until < old.until => {
                step.changes.push(Change::Cleared { subject: subject.clone(), slow_start: false });
                found
            }
            // A failed probe settles when the next one is due; anything else can only prolong.
            Some(old) if anew => Block { until: old.until.max(found.until), since: old.since, ..found },
            Some(old) => old.extend(found),
            None => found,
        };
        if outcome.cause.is_terminal()
            && let Subject::Key(key) = &subject
            && let Some(state) = self.keys.get_mut(key)
        {
            state.probe_due = now.mono.plus(block::recheck_after(state.failed_probes));
        }
        if old != Some(block) {
            step.changes.push(announce(&subject, &block, now));
            step.save = true;
            self.blocks.insert(subject, block);
            make_room(&mut self.blocks, |block| block.until);
        }
    }

    fn clear(&mut self, subject: &Subject, now: Now, step: &mut Step) {
        let Some(block) = self.blocks.remove(subject) else { return };
        if block.holds(now) {
            let slow_start = block.cause.outcome().scope != Scope::Bucket;
            step.changes.push(Change::Cleared { subject: subject.clone(), slow_start });
            step.save = true;
        }
    }

    /// How many times in a row a subject has struck before: 0 the first time.
    fn next_level(&self, subject: &Subject, probe: bool, now: Now) -> u32 {
        match self.blocks.get(subject) {
            Some(block) if block.holds(now) && !probe => block.level,
            Some(block) => block.level + 1,
            None => 0,
        }
    }

    fn paid_together(&self, subject: Subject, scope: Scope) -> Vec<Subject> {
        let Subject::Project(project) = &subject else { return vec![subject] };
        let accounts = &self.roster.billing_accounts;
        let account = accounts.get(project).filter(|_| scope == Scope::BillingAccount);
        let Some(account) = account else { return vec![subject] };
        let same = accounts.iter().filter(|(_, other)| *other == account);
        same.map(|(project, _)| Subject::Project(project.clone())).collect()
    }

    /// Whether others are answered while a key fails: since it failed `before`, if it did. What they got earlier does
    /// not make the second failure of a storm the key's own.
    fn others_succeed(&self, model: &Model, project: &ProjectId, before: Option<Mono>, now: Mono) -> bool {
        let vouches = |at: Mono| now.since(at) <= VOUCH && before.is_none_or(|before| at > before);
        let seen = self.answered.get(model).into_iter().flatten().flatten();
        seen.into_iter().any(|(other, at)| other != project && vouches(*at))
    }

    fn probed(&mut self, key: &KeyId, outcome: Option<Outcome>, draw: u32, now: Now, step: &mut Step) {
        let Some(state) = self.keys.get_mut(key) else { return };
        let project = state.project.clone();
        let Some(outcome) = outcome else {
            state.seen_working = Some(now.mono);
            state.failed_probes = 0;
            state.probe_due = now.mono.plus(UNSEEN);
            step.changes.push(Change::Validated { key: key.clone() });
            for subject in [Subject::Key(key.clone()), Subject::Project(project)] {
                // Listing models needs a credential, but neither quota nor money: it vouches for nothing else.
                if self.blocks.get(&subject).is_some_and(|block| block.cause.is_terminal()) {
                    self.clear(&subject, now, step);
                }
            }
            return;
        };
        if matches!(outcome.scope, Scope::Key | Scope::Project) && outcome.cause.is_terminal() {
            let out = |subject: &Subject| self.blocks.get(subject).is_some_and(|b| b.cause.is_terminal());
            if out(&Subject::Key(key.clone())) || out(&Subject::Project(project)) {
                state.failed_probes += 1;
            }
            let model = Model::new("");
            self.failed(key, &model, &outcome, draw, false, now, step);
        }
        let says_something = outcome.scope != Scope::Model && outcome.scope != Scope::Egress;
        if let Some(state) = self.keys.get_mut(key) {
            let wait = if says_something { block::recheck_after(state.failed_probes) } else { PROBE_RETRY };
            state.probe_due = now.mono.plus(wait);
        }
    }

    /// Keys that are due for a look: out for good, or not seen working for long.
    fn scan(&mut self, now: Now, step: &mut Step) {
        for (key, state) in &mut self.keys {
            let recent = state.seen_working.is_some_and(|at| now.mono.since(at) < UNSEEN);
            let blocked = |subject: &Subject| self.blocks.get(subject).is_some_and(|b| b.cause.is_terminal());
            let out =
                blocked(&Subject::Key(key.clone())) || blocked(&Subject::Project(state.project.clone()));
            if (out || !recent) && state.probe_due <= now.mono {
                state.probe_due = now.mono.plus(PROBE_RETRY);
                step.probes.push(key.clone());
            }
        }
        step.probes.sort();
    }

    /// A restart does not bring the look at a key forward that is out for good.
    fn keep_appointments(&mut self, now: Now) {
        for (key, state) in &mut self.keys {
            let subjects = [Subject::Key(key.clone()), Subject::Project(state.project.clone())];
            let out = subjects.iter().filter_map(|subject| self.blocks.get(subject));
            let out = out.filter(|block| block.cause.is_terminal());
            let due = out.map(|block| now.mono_at(block.since.plus(block::recheck_after(0)))).max();
            state.probe_due = due.unwrap_or(state.probe_due);
        }
    }

    /// Drops what no longer matters.
    fn forget_the_past(&mut self, now: Now) {
        self.blocks.retain(|_, block| block.until.plus(IN_A_ROW) > now.utc);
        self.owned.retain(|_, (_, until)| *until > now.utc);
        self.answered.retain(|_, recent| recent.iter().flatten().any(|(_, at)| now.mono.since(*at) <= VOUCH));
    }

    fn score_all(&mut self, now: Now, step: &mut Step) {
        let mut latencies: Vec<f64> =
            self.keys.values().filter_map(|state| state.health.latency_ms()).collect();
        latencies.sort_by(f64::total_cmp);
        self.median_ms = latencies.get(latencies.len() / 2).copied();
        for (key, state) in &mut self.keys {
            score(key, state, self.median_ms, now, step);
        }
    }
}

fn score(key: &KeyId, state: &mut KeyState, median_ms: Option<f64>, now: Now, step: &mut Step) {
    let score = state.health.score_at(median_ms, now.mono);
    if score != state.score {
        state.score = score;
        step.changes.push(Change::Scored { key: key.clone(), score });
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

/// Keeps a map below its limit: the entry that ends first makes room.
fn make_room<K: Clone + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, until: impl Fn(&V) -> Utc) {
    if map.len() > MAX_ENTRIES {
        let first = map.iter().min_by_key(|(_, value)| until(value)).map(|(key, _)| key.clone());
        if let Some(first) = first {
            map.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests;
