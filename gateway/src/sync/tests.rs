use std::sync::atomic::Ordering::Acquire;

use keyfleet_core::id::{KeyId, Model, ReplicaId};
use keyfleet_core::latency::Latencies;
use keyfleet_core::ledger::{Event, Ledger, Member, Roster, Saved, Term};
use keyfleet_core::message::{Change, Operation, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::select::Want;
use keyfleet_core::state::{Commit, Meta};
use keyfleet_fabric::bus::local::{LocalLeader, REPORTS, fabric};
use keyfleet_fabric::bus::{LeaderBus as _, Told};
use keyfleet_fabric::store::memory::MemoryStore;
use keyfleet_fabric::store::{Claim, Lead, StateStore as _};
use keyfleet_service::config::{Sources, fingerprint, load};
use keyfleet_service::follow::Reloads;
use keyfleet_service::shutdown::Shutdown;

use super::*;
use crate::Fabric;
use crate::live::Live;

const ASK_TIMEOUT: Duration = Duration::from_millis(250);
/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(10);

/// The other side: a ledger that is stored before it is told of, as the coordinator does it.
struct Leader {
    bus: LocalLeader,
    store: Arc<MemoryStore>,
    ledger: Ledger,
    meta: Meta,
    began: u64,
    keys: Vec<KeyId>,
}

async fn fixture() -> (Arc<App>, Leader) {
    let env = [("GEMINI_API_KEYS".to_owned(), "a-key,b-key,c-key".to_owned())].into();
    let config = Arc::new(load(&Sources { env, ..Sources::default() }).unwrap().config);
    let (gateway, mut bus) = fabric(ASK_TIMEOUT);
    let store = Arc::new(MemoryStore::default());
    let claim = Claim { holder: ReplicaId::new("c"), ttl: SOON, epoch: 0, above: 0, clock: None };
    let Ok(Lead::Mine(meta)) = store.lead(&claim).await else { panic!("nobody else leads") };
    bus.lead("", 0).await.unwrap();
    let keys: Vec<_> = config.groups.iter().flat_map(|group| &group.keys).collect();
    let members = keys.iter().map(|key| Member {
        key: key.id.clone(),
        project: key.project.clone(),
        fingerprint: fingerprint(key.secret.expose()),
    });
    let roster = Roster {
        keys: members.collect(),
        billing_accounts: std::collections::HashMap::new(),
        policy: config.failure.blocks(),
        limits: config.rules(),
    };
    let term = Term { epoch: meta.epoch, ..Term::default() };
    let (ledger, _) = Ledger::new(roster, Saved::default(), term, clock::now());
    let keys = keys.into_iter().map(|key| key.id.clone()).collect();
    let (_, reach) = tokio::sync::watch::channel(keyfleet_service::reach::Reach::default());
    let fabric = Fabric { bus: Arc::new(gateway), store: store.clone(), reach };
    let (_, reloads) = tokio::sync::watch::channel(Reloads::new(clock::utc()));
    let app = App::new(Live::new(&config, 1).unwrap(), reloads, fabric, None, &Shutdown::new());
    (app, Leader { bus, store, ledger, began: meta.rev, meta, keys })
}

impl Leader {
    /// Decides to block a key and stores it; nobody is told.
    async fn block(&mut self, key: usize) -> Delta {
        let operation = Operation::Block { key: self.keys[key].clone(), ttl_ms: 60_000 };
        let step = self.ledger.apply(Event::Operate(operation), clock::now());
        let delta = step.delta.expect("a decision");
        let follows = self.meta.commit;
        self.meta = Meta { commit: follows + 1, rev: delta.rev, ..self.meta.clone() };
        let commit = Commit {
            follows,
            meta: self.meta.clone(),
            heard: Vec::new(),
            entries: step.entries,
            delta: Some(delta.clone()),
        };
        self.store.commit(&commit).await.unwrap();
        delta
    }

    fn beat(&self) -> Beat {
        Beat { epoch: self.meta.epoch, rev: self.meta.rev, began: self.began }
    }

    /// The next report.
    async fn hear(&mut self) -> Report {
        loop {
            let told = tokio::time::timeout(SOON, self.bus.next()).await.expect("a report");
            if let Told::Report { mut report, .. } = told {
                report.records.iter_mut().for_each(forget_age);
                return report;
            }
        }
    }
}

/// One that has read everything.
async fn up_to_date(app: &App) -> Following<'_> {
    let mut state = Following { app, epoch: 0, rev: None };
    state.catch_up().await;
    state
}

fn blocked(app: &App, key: &KeyId) -> bool {
    app.pool.blocks(clock::mono()).contains_key(&Subject::Key(key.clone()))
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(SOON, async {
        while !done() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} does not happen"));
}

/// How long it took is another matter.
fn forget_age(record: &mut Record) {
    if let Record::Failed { age_ms, .. } = record {
        *age_ms = 0;
    }
}

fn finding(model: &str) -> Record {
    Record::Failed {
        key: KeyId::new("k"),
        model: Model::new(model),
        scope: Cause::PerMinute.outcome().scope,
        cause: Cause::PerMinute,
        n: 1,
        retry_after_ms: None,
        draw: 0,
        probe: false,
        limits: Vec::new(),
        in_a_row: None,
        age_ms: 0,
    }
}

#[tokio::test]
async fn what_is_stored_holds_from_the_start_and_what_follows_is_applied() {
    let (app, mut leader) = fixture().await;
    leader.block(0).await;
    let mut state = up_to_date(&app).await;
    assert!(blocked(&app, &leader.keys[0]));
    let delta = leader.block(1).await;
    state.apply(&delta);
    assert!(blocked(&app, &leader.keys[1]));
    assert_eq!(state.rev, Some(delta.rev));
    let subject = Subject::Key(leader.keys[1].clone());
    app.pool.decide(&Change::Cleared { subject, slow_start: false }, clock::now());
    state.apply(&delta);
    assert!(!blocked(&app, &leader.keys[1]), "what was known already is not applied again");
    assert_eq!(state.rev, Some(delta.rev), "and is no reason to read everything");
}

#[tokio::test]
async fn after_a_gap_everything_is_read_again() {
    let (app, mut leader) = fixture().await;
    let mut state = up_to_date(&app).await;
    leader.block(0).await;
    let second = leader.block(1).await;
    state.apply(&second);
    assert_eq!(state.rev, None, "the first one was lost");
    assert!(!blocked(&app, &leader.keys[1]), "a decision is not applied to what it does not follow");
    state.catch_up().await;
    assert!(leader.keys[..2].iter().all(|key| blocked(&app, key)));
    assert_eq!(state.rev, Some(second.rev));
}

#[tokio::test]
async fn a_beat_keeps_the_state_young_and_reveals_a_lost_decision() {
    let (app, mut leader) = fixture().await;
    let stop = CancellationToken::new();
    let sync = tokio::spawn(run(app.clone(), stop.clone()));
    eventually("the first state", || app.state_at.load(Acquire) > 0).await;
    app.state_at.store(1, Release);
    leader.bus.beat(leader.beat()).await.unwrap();
    eventually("the state is young", || app.state_at.load(Acquire) > 1).await;
    leader.block(0).await;
    leader.bus.beat(leader.beat()).await.unwrap();
    eventually("the lost decision arrives", || blocked(&app, &leader.keys[0])).await;
    let next = leader.block(1).await;
    leader.bus.publish(&next).await.unwrap();
    eventually("the next one is applied", || blocked(&app, &leader.keys[1])).await;
    stop.cancel();
    sync.await.unwrap();
}

#[tokio::test]
async fn a_leader_that_was_replaced_is_ignored() {
    let (app, mut leader) = fixture().await;
    let mut state = up_to_date(&app).await;
    let rev = state.rev;
    let beat = Beat { epoch: leader.meta.epoch + 1, ..leader.beat() };
    state.hear(beat).await;
    app.state_at.store(1, Release);
    let late = leader.block(0).await;
    assert!(late.epoch < state.epoch);
    state.apply(&late);
    state.hear(leader.beat()).await;
    assert_eq!(state.rev, rev, "neither its decisions nor its revision count");
    assert!(!blocked(&app, &leader.keys[0]));
    assert_eq!(app.state_at.load(Acquire), 1, "nor is it a sign of life");
}

/// A store that lost writes gives revisions out again: the same number means something else.
#[tokio::test]
async fn a_new_leader_whose_store_lost_decisions_is_believed_in_everything() {
    for by_beat in [true, false] {
        let (app, mut leader) = fixture().await;
        let mut state = up_to_date(&app).await;
        let rev = state.rev.unwrap();
        // Decided and spread, and then lost by the store.
        let subject = Subject::Key(leader.keys[0].clone());
        let change = Change::Blocked { subject, cause: Cause::ByOperator, ttl_ms: None, probe_ms: None };
        let epoch = leader.meta.epoch;
        state.apply(&Delta { epoch, rev: rev + 1, prev: rev, changes: vec![change] });
        assert!(blocked(&app, &leader.keys[0]));
        let again = leader.block(1).await;
        assert_eq!(Some(again.rev), state.rev);
        if by_beat {
            state.hear(Beat { epoch: epoch + 1, ..leader.beat() }).await;
        } else {
            state.apply(&Delta { epoch: epoch + 1, ..again });
            assert_eq!(state.rev, None, "everything is to be read");
            state.catch_up().await;
        }
        assert_eq!(state.rev, Some(leader.meta.rev));
        assert!(!blocked(&app, &leader.keys[0]), "what is not stored does not hold");
        assert!(blocked(&app, &leader.keys[1]));
    }
}

#[tokio::test]
async fn a_new_leader_that_lost_nothing_costs_no_reading() {
    let (app, mut leader) = fixture().await;
    let mut state = up_to_date(&app).await;
    let decided = leader.block(0).await;
    state.apply(&decided);
    leader.began = decided.rev;
    let subject = Subject::Key(leader.keys[0].clone());
    app.pool.decide(&Change::Cleared { subject, slow_start: false }, clock::now());
    state.hear(Beat { epoch: leader.meta.epoch + 1, ..leader.beat() }).await;
    assert_eq!((state.rev, state.epoch), (Some(decided.rev), leader.meta.epoch + 1));
    assert!(!blocked(&app, &leader.keys[0]), "everything was read again");
}

/// The leader before died between the two.
#[tokio::test]
async fn what_was_stored_and_never_told_holds_under_the_next_leader() {
    let (app, mut leader) = fixture().await;
    let mut state = up_to_date(&app).await;
    let untold = leader.block(0).await;
    leader.began = untold.rev;
    state.hear(Beat { epoch: leader.meta.epoch + 1, ..leader.beat() }).await;
    assert_eq!((state.rev, state.epoch), (Some(untold.rev), leader.meta.epoch + 1));
    assert!(blocked(&app, &leader.keys[0]));
}

#[tokio::test]
async fn a_report_is_sent_unchanged_until_it_is_stored() {
    let (app, mut leader) = fixture().await;
    fill(&app).await;
    app.pool.reports.push(finding("first"));
    let sync = tokio::spawn({
        let app = app.clone();
        async move { report(&app).await }
    });
    eventually("the first report is made", || {
        app.reporting.try_lock().is_ok_and(|reporting| reporting.under_way.is_some())
    })
    .await;
    app.pool.reports.push(finding("second"));
    for seq in 1..=REPORTS as u64 {
        assert_eq!(leader.hear().await.seq, seq, "of the other gateway");
    }
    for (seq, model) in [(1, "first"), (2, "second")] {
        let expected = Report {
            replica: app.replica.clone(),
            seq,
            records: vec![finding(model)],
            times: Some(Vec::new()),
            traces: Vec::new(),
        };
        assert_eq!(leader.hear().await, expected);
    }
    sync.abort();
}

#[tokio::test]
async fn a_report_that_cannot_be_sent_grows_old() {
    let (app, _leader) = fixture().await;
    app.pool.reports.push(finding("m"));
    let mut reporting = Reporting::default();
    let now = clock::mono();
    let mut age = |secs| {
        let report = reporting.next(&app, now.plus(Duration::from_secs(secs))).unwrap();
        let [Record::Failed { age_ms, .. }] = report.records[..] else { panic!("{report:?}") };
        age_ms / 1_000
    };
    assert_eq!([10, 40, 100].map(&mut age), [10, 40, 100]);
}

/// Another gateway's reports leave no room.
async fn fill(app: &App) {
    for seq in 1..=REPORTS as u64 {
        let report = Report {
            replica: ReplicaId::new("other"),
            seq,
            records: Vec::new(),
            times: None,
            traces: Vec::new(),
        };
        app.fabric.bus.report(&report).await.unwrap();
    }
}

#[tokio::test]
async fn an_outage_loses_no_count_however_many_there_are() {
    const EACH: u32 = 20_000;
    let (app, mut leader) = fixture().await;
    fill(&app).await;
    let sync = tokio::spawn({
        let app = app.clone();
        async move { report(&app).await }
    });
    for _ in 0..EACH {
        for model in ["one", "other"] {
            app.pool.reports.push(finding(model));
        }
        tokio::task::yield_now().await;
    }
    let readings = crate::ops::readings(&app);
    assert!(readings.dropped_reports == 0 && readings.waiting_reports > 0, "{readings:?}");
    for _ in 1..=REPORTS {
        assert_eq!(leader.hear().await.replica.as_str(), "other");
    }
    let mut counts = std::collections::HashMap::new();
    let mut heard = 0;
    while counts.values().sum::<u32>() < 2 * EACH {
        let told = leader.hear().await;
        heard += 1;
        assert_eq!(told.seq, heard);
        for record in told.records {
            let Record::Failed { model, n, .. } = record else { panic!("{record:?}") };
            *counts.entry(model).or_default() += n;
        }
    }
    assert_eq!(counts, [(Model::new("one"), EACH), (Model::new("other"), EACH)].into());
    assert!(heard < 10, "in {heard} reports");
    sync.abort();
}

/// Answers end when their configuration is not in force any more, or when their model's lane has made room.
#[tokio::test]
async fn an_answer_counts_whatever_became_of_its_lane() {
    let (app, _leader) = fixture().await;
    let model = Model::new("m");
    let begin = |model: &Model| {
        let want = Want { tried: &[], project: None, session: None, stores: false, bytes: None };
        let permit = app.pool.acquire(&app.pool.live(), model, &want, None, false, clock::now());
        let mut permit = permit.expect("a key");
        permit.succeeded(Duration::from_millis(5), clock::mono());
        permit
    };
    let (before, after) = (begin(&model), begin(&model));
    drop(before);
    let config = app.pool.live().config.clone();
    app.pool.replace(Live::new(&config, 1).unwrap());
    drop(after);
    assert_eq!(app.pool.reports.waiting(), 2);
    let (before, after) = (begin(&model), begin(&model));
    drop(before);
    // More models than there are lanes.
    (0..300).for_each(|n| drop(begin(&Model::new(n.to_string()))));
    drop(after);
    app.pool.gather(&app.pool.live());
    assert_eq!(app.pool.reports.waiting(), 2 + 2 + 300);
    let mut times = Vec::new();
    while let some = app.pool.reports.take(clock::mono()).times
        && !some.is_empty()
    {
        times.extend(some);
    }
    let mut four = Latencies::default();
    four.count(4, 5);
    assert_eq!(times.len(), 1 + 300);
    assert!(times.contains(&(model, four)), "and so does how long it took");
}

#[tokio::test]
async fn the_last_findings_are_reported_and_quota_is_given_back() {
    let (app, mut leader) = fixture().await;
    let stop = CancellationToken::new();
    stop.cancel();
    app.pool.reports.push(finding("last"));
    let sync = tokio::spawn(run(app.clone(), stop));
    let (mut given_back, mut reported) = (false, false);
    while !(given_back && reported) {
        match tokio::time::timeout(SOON, leader.bus.next()).await.expect("the last words") {
            Told::Ask(Ask::Lease(_), _) => given_back = true,
            Told::Report { mut report, .. } => {
                report.records.iter_mut().for_each(forget_age);
                reported = report.records == [finding("last")];
            }
            told => panic!("{told:?}"),
        }
    }
    sync.await.unwrap();
}

#[tokio::test]
async fn a_coordinator_that_is_gone_is_a_death() {
    let (app, leader) = fixture().await;
    let sync = tokio::spawn(run(app.clone(), CancellationToken::new()));
    eventually("the first state", || app.state_at.load(Acquire) > 0).await;
    drop(leader);
    sync.await.unwrap();
}

/// Nobody is there to grant the right to try: keys that may be back are not left alone for ever.
#[tokio::test]
async fn what_is_blocked_is_tried_unasked_after_a_long_silence() {
    let (app, leader) = fixture().await;
    let now = clock::now();
    for key in &leader.keys {
        let (subject, cause) = (Subject::Key(key.clone()), Cause::CredentialRejected);
        app.pool.decide(&Change::Blocked { subject, cause, ttl_ms: None, probe_ms: Some(0) }, now);
    }
    app.pool.heard(now.mono);
    let is_tried = |secs| {
        let later = Now { mono: now.mono.plus(Duration::from_secs(secs)), ..now };
        let (live, want) = (app.pool.live(), Want::default());
        app.pool.acquire(&live, &Model::new("m"), &want, None, false, later).is_ok()
    };
    assert_eq!([0, 15, 29].map(is_tried), [false; 3]);
    assert!(is_tried(61));
}
