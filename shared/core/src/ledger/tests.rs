use super::*;
use crate::block::Policy;
use crate::id::Host;
use crate::outcome::Cause;
use crate::quota::rules::Rules;
use crate::state::{Image, Meta, Table};

mod learned;
mod observed;
mod operating;
mod partitions;
mod probes;
mod takeover;

const MODEL: &str = "gemini-2.5-flash";

struct World {
    ledger: Ledger,
    ms: u64,
    /// The last announcement per subject: `None` when it was cleared.
    blocked: HashMap<Subject, Option<(Cause, Option<u64>)>>,
    scores: HashMap<KeyId, u8>,
    probes: Vec<KeyId>,
    reports: u64,
    stored: BTreeMap<(Table, String), Entry>,
}

fn roster() -> Roster {
    let keys = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")];
    Roster {
        keys: keys
            .map(|(key, project)| Member {
                key: KeyId::new(key),
                project: ProjectId::new(project),
                fingerprint: KeyId::new(format!("secret of {key}")),
            })
            .to_vec(),
        billing_accounts: [("a", "bill"), ("b", "bill"), ("c", "other")]
            .map(|(project, account)| (ProjectId::new(project), account.to_owned()))
            .into(),
        policy: Policy {
            bare_until_midnight: false,
            max_failures: 3,
            temporary_block: Duration::from_mins(5),
        },
        limits: Rules::default(),
    }
}

fn now(ms: u64) -> Now {
    Now { mono: Mono::from_ms(ms), utc: Utc::from_ms(1_795_435_200_000).plus(Duration::from_millis(ms)) }
}

fn world() -> World {
    let (ledger, step) = Ledger::new(roster(), Saved::default(), Term::default(), now(0));
    let mut world = World {
        ledger,
        ms: 0,
        blocked: HashMap::new(),
        scores: HashMap::new(),
        probes: Vec::new(),
        reports: 0,
        stored: BTreeMap::new(),
    };
    world.take(step);
    world
}

impl World {
    fn apply(&mut self, event: Event) {
        let step = self.ledger.apply(event, now(self.ms));
        self.take(step);
    }

    /// The next leader begins, with another roster perhaps.
    fn restart(&mut self, roster: Roster) {
        let (ledger, step) = Ledger::new(roster, self.saved(), Term::default(), now(self.ms));
        self.ledger = ledger;
        self.take(step);
    }

    fn take(&mut self, step: Step) {
        for change in step.delta.into_iter().flat_map(|delta| delta.changes) {
            self.see(change);
        }
        self.probes.extend(step.probes);
        for entry in step.entries {
            self.stored.insert((entry.table, entry.key.clone()), entry);
        }
    }

    /// What the next leader finds.
    fn saved(&self) -> Saved {
        let (saved, unread) = Saved::read(&self.image());
        assert_eq!(unread, 0);
        saved
    }

    fn image(&self) -> Image {
        let entries = self.stored.values().filter(|entry| entry.value.is_some()).cloned().collect();
        let meta = Meta { at: now(self.ms).utc, ..Meta::default() };
        Image { meta, entries, ..Image::default() }
    }

    /// What a gateway reads that holds, but for scores.
    fn holds(&self) -> Vec<Change> {
        let (mut snapshot, unread) = snapshot(&self.image());
        assert_eq!(unread, 0);
        snapshot.changes.retain(|change| !matches!(change, Change::Scored { .. }));
        snapshot.changes
    }

    fn see(&mut self, change: Change) {
        match change {
            Change::Blocked { subject, cause, ttl_ms, .. } => {
                self.blocked.insert(subject, Some((cause, ttl_ms)));
            }
            Change::Cleared { subject, .. } => {
                self.blocked.insert(subject, None);
            }
            Change::Scored { key, score } => {
                self.scores.insert(key, score.tenths());
            }
            Change::Owned(_) | Change::Validated { .. } | Change::Limited { .. } => {}
        }
    }

    fn report(&mut self, record: Record) {
        self.reports += 1;
        self.apply(Event::Report(Report {
            replica: crate::id::ReplicaId::new("r"),
            seq: self.reports,
            records: vec![record],
            times: None,
            traces: Vec::new(),
        }));
    }

    fn fails(&mut self, key: &str, cause: Cause) {
        self.fails_as(key, cause.outcome(), false);
    }

    fn fails_as(&mut self, key: &str, outcome: Outcome, probe: bool) {
        self.report(Record::Failed {
            key: KeyId::new(key),
            model: Model::new(MODEL),
            scope: outcome.scope,
            cause: outcome.cause,
            n: 1,
            retry_after_ms: None,
            draw: 0,
            probe,
            limits: Vec::new(),
            in_a_row: None,
            age_ms: 0,
        });
    }

    /// Three failures that were summed up and waited.
    fn late(&mut self, key: &str, cause: Cause, in_a_row: Option<u32>, asked_ms: Option<u64>, age_ms: u64) {
        self.report(Record::Failed {
            key: KeyId::new(key),
            model: Model::new(MODEL),
            scope: cause.outcome().scope,
            cause,
            n: 3,
            retry_after_ms: asked_ms,
            draw: 0,
            probe: false,
            limits: Vec::new(),
            in_a_row,
            age_ms,
        });
    }

    fn answers(&mut self, key: &str, probe: bool) {
        let (key, model) = (KeyId::new(key), Model::new(MODEL));
        self.report(Record::Succeeded { key, model, n: 1, ttfb_ms: 10, probe });
    }

    /// Answers of this model by these keys, each with its time to the first byte, until the averages have settled.
    fn serves(&mut self, model: &str, times: &[(&str, u32)]) {
        for _ in 0..20 {
            self.ms += 1_000;
            for (key, ttfb_ms) in times {
                let (key, model) = (KeyId::new(*key), Model::new(model));
                self.report(Record::Succeeded { key, model, n: 2, ttfb_ms: *ttfb_ms, probe: false });
            }
        }
    }

    fn ttl(&self, subject: &Subject) -> Option<u64> {
        self.blocked.get(subject).copied().flatten().and_then(|(_, ttl)| ttl)
    }
}

fn bucket(project: &str) -> Subject {
    Subject::Bucket(ProjectId::new(project), Model::new(MODEL))
}

fn key(name: &str) -> Subject {
    Subject::Key(KeyId::new(name))
}

fn project(name: &str) -> Subject {
    Subject::Project(ProjectId::new(name))
}

#[test]
fn a_429_blocks_the_project_for_that_model_and_nobody_else() {
    let mut world = world();
    world.fails("a1", Cause::PerMinute);
    assert_eq!(world.blocked.keys().collect::<Vec<_>>(), [&bucket("a")]);
}

#[test]
fn one_burst_is_one_strike_and_a_new_one_escalates() {
    let mut world = world();
    (0..5).for_each(|_| world.fails("a1", Cause::BareRateLimit));
    assert_eq!(world.ttl(&bucket("a")), Some(2_000), "in-flight failures of one incident do not escalate");
    world.ms = 3_000;
    world.fails("a2", Cause::BareRateLimit);
    assert_eq!(world.ttl(&bucket("a")), Some(4_000));
    world.ms = 8_000;
    world.answers("a1", false);
    world.fails("a1", Cause::BareRateLimit);
    assert_eq!(world.ttl(&bucket("a")), Some(2_000), "an answer in between starts anew");
}

#[test]
fn a_later_shorter_finding_never_shortens() {
    let mut world = world();
    world.fails("a1", Cause::LimitZero);
    let long = world.ttl(&bucket("a"));
    world.fails("a2", Cause::PerMinute);
    assert_eq!(world.ttl(&bucket("a")), long);
}

#[test]
fn only_the_probe_ends_a_block_before_its_time() {
    let mut world = world();
    world.fails("a1", Cause::PerDay);
    world.answers("a2", false);
    assert!(world.blocked[&bucket("a")].is_some(), "an answer that was under way proves nothing");
    world.answers("a2", true);
    assert_eq!(world.blocked[&bucket("a")], None);
}

#[test]
fn one_bill_stops_every_project_that_it_pays_for() {
    let mut world = world();
    let outcome = Outcome { scope: Scope::BillingAccount, ..Cause::Billing.outcome() };
    world.fails_as("a1", outcome, false);
    let mut blocked: Vec<_> = world.blocked.keys().cloned().collect();
    blocked.sort();
    assert_eq!(blocked, [project("a"), project("b")]);
}

#[test]
fn server_errors_cost_a_key_only_while_others_are_served() {
    let mut world = world();
    (0..10).for_each(|_| world.fails("a1", Cause::Overloaded));
    assert!(world.scores.is_empty() && world.blocked.is_empty(), "a storm is the model's");
    world.ms += 1;
    world.answers("b1", false);
    world.fails("a1", Cause::Overloaded);
    assert_eq!(world.scores[&KeyId::new("a1")], 8);
    (0..9).for_each(|_| world.fails("a1", Cause::Overloaded));
    assert_eq!(
        world.scores[&KeyId::new("a1")],
        8,
        "nobody has been served since: it may be a storm that begins"
    );
    for _ in 0..20 {
        world.ms += 1;
        world.answers("b1", false);
        world.fails("a1", Cause::Overloaded);
    }
    assert!(world.scores[&KeyId::new("a1")] < 3 && world.blocked.is_empty(), "a poor score, but no block");
}

#[test]
fn a_key_that_fails_by_its_own_fault_rests_until_a_probe_succeeds() {
    let mut world = world();
    (0..2).for_each(|_| world.fails("a1", Cause::CredentialRejected));
    assert!(world.blocked.is_empty());
    world.fails("a1", Cause::CredentialRejected);
    assert_eq!(world.blocked[&key("a1")].map(|(_, ttl)| ttl), Some(None), "out until its probe");
    world.answers("a1", true);
    assert_eq!(world.blocked[&key("a1")], None);
}

#[test]
fn a_probe_that_meets_the_minute_shows_that_the_day_is_back() {
    let mut world = world();
    world.fails("a1", Cause::PerDay);
    world.fails_as("a1", Cause::PerMinute.outcome(), true);
    assert!(world.ttl(&bucket("a")).is_some_and(|ttl| ttl < 65_000), "{:?}", world.blocked);
}

#[test]
fn a_name_with_another_secret_starts_afresh() {
    let mut other = roster();
    other.keys[0].fingerprint = KeyId::new("another secret");
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    let stored = world.stored.clone();
    world.apply(Event::Roster(other.clone()));
    assert_eq!((world.blocked[&key("a1")], world.holds()), (None, vec![]), "at a reload");
    (world.stored, world.blocked) = (stored, HashMap::new());
    world.restart(other.clone());
    assert_eq!((world.blocked[&key("a1")], world.holds()), (None, vec![]), "at a restart");
    world.fails("a1", Cause::InvalidKey);
    world.blocked.clear();
    world.restart(other);
    assert_eq!((world.blocked.len(), world.holds().len()), (0, 1), "what was stored of the new one stays");
}

/// Gateways read what is stored: they would keep away for good.
#[test]
fn what_no_longer_holds_when_a_leader_begins_is_not_stored_any_more() {
    let mut world = world();
    world.fails("b1", Cause::InvalidKey);
    world.report(Record::Owned(Owned {
        resource: Resource::new("files/x"),
        project: ProjectId::new("a"),
        ttl_ms: 1_000,
    }));
    let (host, model) = (Host::new("h"), Model::new(MODEL));
    let breaker = Subject::Model(host.clone(), model.clone());
    let cause = Cause::Overloaded;
    world.report(Record::Tripped {
        host,
        model,
        cause,
        recovery_ms: 2_000,
        draw: 0,
        probe: false,
        age_ms: 0,
    });
    assert_eq!(world.holds().len(), 3);
    world.ms = 3_600_000;
    let mut fewer = roster();
    fewer.keys.retain(|member| member.key.as_str() != "b1");
    world.restart(fewer);
    assert_eq!(world.holds(), []);
    assert_eq!((world.blocked[&key("b1")], world.blocked[&breaker]), (None, None), "and all hear of it");
    assert!(!world.saved().fingerprints.contains_key(&KeyId::new("b1")));
}

#[test]
fn a_leader_that_begins_does_not_write_everything_again() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    let (_, step) = Ledger::new(roster(), world.saved(), Term::default(), now(1));
    assert_eq!(step, Step::default());
}

#[test]
fn a_key_that_is_taken_out_leaves_no_block_behind() {
    let mut world = world();
    world.fails("b1", Cause::InvalidKey);
    let mut fewer = roster();
    fewer.keys.retain(|member| member.key.as_str() != "b1");
    world.apply(Event::Roster(fewer));
    assert_eq!(world.blocked[&key("b1")], None);
}

#[test]
fn a_dead_key_is_rechecked_after_an_hour_then_every_six() {
    let mut world = world();
    for key in ["a1", "a2", "b1", "c1"] {
        world.answers(key, false);
    }
    world.fails("a1", Cause::InvalidKey);
    assert_eq!(world.blocked.keys().collect::<Vec<_>>(), [&key("a1")]);
    let mut looked = Vec::new();
    for minute in 1..=14 * 60 {
        world.ms = minute * 60_000;
        for key in ["a2", "b1", "c1"] {
            world.answers(key, false);
        }
        world.apply(Event::Scan);
        for key in std::mem::take(&mut world.probes) {
            assert_eq!(key, KeyId::new("a1"));
            looked.push(minute / 60);
            world.apply(Event::Probed { key, outcome: Some(Cause::InvalidKey.outcome()), draw: 0 });
        }
    }
    assert_eq!(looked, [1, 7, 13]);
    world.apply(Event::Probed { key: KeyId::new("a1"), outcome: None, draw: 0 });
    assert_eq!(world.blocked[&key("a1")], None);
}

#[test]
fn a_restart_does_not_bring_the_recheck_forward() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    world.ms = 10;
    world.restart(roster());
    let mut looked = |ms| {
        world.ms = ms;
        for key in ["a2", "b1", "c1"] {
            world.answers(key, false);
        }
        world.apply(Event::Scan);
        std::mem::take(&mut world.probes)
    };
    assert_eq!(looked(1_000), []);
    assert_eq!(looked(3_600_000), [KeyId::new("a1")]);
}

#[test]
fn a_restart_keeps_what_failed_looks_have_put_off() {
    const HOUR: u64 = 3_600_000;
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    world.ms = HOUR;
    world.apply(Event::Scan);
    let outcome = Some(Cause::InvalidKey.outcome());
    world.apply(Event::Probed { key: KeyId::new("a1"), outcome, draw: 0 });
    let saved = serde_json::to_value(world.saved()).unwrap();
    let looked = |saved: serde_json::Value, ms| {
        let saved = serde_json::from_value(saved).unwrap();
        let (mut ledger, _) = Ledger::new(roster(), saved, Term::default(), now(2 * HOUR));
        ledger.apply(Event::Scan, now(ms)).probes.contains(&KeyId::new("a1"))
    };
    assert!(!looked(saved.clone(), 7 * HOUR - 1) && looked(saved.clone(), 7 * HOUR));
    let mut wrong = saved.clone();
    wrong["probes"]["a1"]["due"] = serde_json::json!(i64::MAX);
    assert!(looked(wrong, 8 * HOUR), "a wrong calendar puts it off for good");
    let mut old = saved;
    assert!(old.as_object_mut().unwrap().remove("probes").is_some());
    assert!(looked(old, 2 * HOUR), "a file of an earlier release holds no appointments");
}

#[test]
fn a_slow_model_does_not_make_its_keys_slow() {
    let mut world = world();
    world.serves("fast", &[("a2", 200), ("b1", 200), ("c1", 200)]);
    world.serves("slow", &[("a1", 6_000), ("b1", 6_000)]);
    assert!(world.scores.is_empty(), "{:?}", world.scores);
}

#[test]
fn a_key_slower_than_others_on_the_same_model_scores_lower() {
    let mut world = world();
    world.serves("fast", &[("a1", 6_000), ("b1", 200), ("c1", 200)]);
    assert_eq!(world.scores, [(KeyId::new("a1"), 5)].into(), "halved at most");
    world.serves("fast", &[("a1", 200), ("b1", 200), ("c1", 200)]);
    assert_eq!(world.scores, [(KeyId::new("a1"), 10)].into(), "and only while it is slow");
}

#[test]
fn a_suspended_project_takes_all_its_keys_out() {
    let mut world = world();
    world.fails("a1", Cause::ProjectDisabled);
    assert_eq!(world.blocked.keys().collect::<Vec<_>>(), [&project("a")]);
}

#[test]
fn scores_heal_with_time_alone() {
    let mut world = world();
    world.fails("a1", Cause::CredentialRejected);
    assert_eq!(world.scores[&KeyId::new("a1")], 8);
    for second in 1..400 {
        world.ms = second * 1_000;
        world.apply(Event::Tick);
    }
    assert_eq!(world.scores[&KeyId::new("a1")], 10);
}

#[test]
fn what_is_saved_comes_back() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    world.fails("b1", Cause::PerDay);
    world.fails("c1", Cause::CredentialRejected);
    let owned = Owned { resource: Resource::new("files/x"), project: ProjectId::new("b"), ttl_ms: 60_000 };
    world.report(Record::Owned(owned));
    let (mut restored, _) = Ledger::new(roster(), world.saved(), Term::default(), now(0));
    let before = world.holds();
    assert_eq!(before.len(), 3);
    world.stored.clear();
    world.take(Step { entries: restored.all_entries(now(0)), ..Step::default() });
    assert_eq!(world.holds(), before);
    let key = KeyId::new("c1");
    assert_eq!(
        restored.keys[&key].health.counts(Mono::default()),
        world.ledger.keys[&key].health.counts(Mono::default())
    );
}

#[test]
fn a_new_roster_keeps_what_it_still_names() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    world.fails("b1", Cause::InvalidKey);
    let mut fewer = roster();
    fewer.keys.retain(|member| member.key.as_str() != "b1");
    world.apply(Event::Roster(fewer));
    let holds = world.holds();
    assert_eq!(holds.len(), 1, "{holds:?}");
}

/// Else whoever was refused by the old limit would wait for as long as it was told to.
#[test]
fn a_higher_limit_of_clients_is_told_to_those_whom_the_old_one_refused() {
    let mut world = world();
    let mut limited = roster();
    limited.limits.client = Some(3);
    world.apply(Event::Roster(limited.clone()));
    let bucket = crate::quota::Bucket::Client(crate::id::ClientName::new("a"));
    let want = crate::quota::message::Want { bucket: bucket.clone(), need: 5, ahead: 0, debt: 0 };
    let boot = ReplicaId::new("r");
    let request = LeaseRequest { boot, number: 1, epoch: 0, reports: Vec::new(), wants: vec![want] };
    let step = world.ledger.apply(Event::Lease(vec![request]), now(0));
    assert_eq!(step.leases[0].grants[0].size, 3);
    let changes = |world: &mut World, roster| {
        let step = world.ledger.apply(Event::Roster(roster), now(0));
        step.delta.map(|delta| delta.changes).unwrap_or_default()
    };
    assert_eq!(changes(&mut world, limited.clone()), []);
    limited.limits.client = Some(2);
    assert_eq!(changes(&mut world, limited.clone()), [], "it holds for them as it did");
    limited.limits.client = Some(8);
    assert_eq!(changes(&mut world, limited.clone()), [Change::Limited { bucket, limit: Some(8) }]);
    limited.limits.client = Some(9);
    assert_eq!(changes(&mut world, limited), [], "nobody was refused since");
}

#[test]
fn hostile_names_stay_bounded() {
    let mut world = world();
    for n in 0..MAX_ENTRIES + 50 {
        let resource = Resource::new(format!("files/{n}"));
        let ttl_ms = 60_000 + n as u64;
        world.report(Record::Owned(Owned { resource, project: ProjectId::new("a"), ttl_ms }));
        if n < 50 {
            assert_eq!(world.ledger.owned.len(), n + 1);
        }
    }
    assert!(world.ledger.owned.len() <= MAX_ENTRIES);
}

#[test]
fn a_report_that_comes_twice_counts_once() {
    let mut world = world();
    world.answers("a1", false);
    world.reports -= 1;
    world.answers("a1", false);
    world.answers("a1", false);
    let totals: Vec<_> = world.saved().totals.into_iter().map(|(_, totals)| totals.answered).collect();
    assert_eq!(totals, [2]);
}

/// A gateway sums up what tells the same while it cannot report.
#[test]
fn failures_that_were_summed_up_weigh_and_count_as_many() {
    let (mut one_by_one, mut at_once) = (world(), world());
    (0..3).for_each(|_| one_by_one.fails("a1", Cause::CredentialRejected));
    at_once.report(Record::Failed {
        key: KeyId::new("a1"),
        model: Model::new(MODEL),
        scope: Scope::Key,
        cause: Cause::CredentialRejected,
        n: 3,
        retry_after_ms: None,
        draw: 0,
        probe: false,
        limits: Vec::new(),
        in_a_row: None,
        age_ms: 0,
    });
    assert!(at_once.blocked.contains_key(&key("a1")), "three in a row");
    assert_eq!(at_once.blocked, one_by_one.blocked);
    assert_eq!(at_once.scores, one_by_one.scores);
    assert_eq!(at_once.saved().totals, one_by_one.saved().totals);
}

#[test]
fn failures_that_were_summed_up_and_were_apart_are_not_in_a_row() {
    let mut world = world();
    world.late("a1", Cause::CredentialRejected, Some(2), None, 0);
    assert!(world.blocked.is_empty(), "{:?}", world.blocked);
    world.late("a1", Cause::CredentialRejected, Some(1), None, 0);
    assert!(world.blocked.contains_key(&key("a1")));
}

/// A gateway was cut off for a while.
#[test]
fn what_waited_to_be_reported_blocks_for_the_rest_of_its_time() {
    let mut world = world();
    world.late("a1", Cause::PerMinute, None, Some(30_000), 20_000);
    assert_eq!(world.ttl(&bucket("a")), Some(10_020));
    world.late("b1", Cause::PerMinute, None, Some(30_000), 120_000);
    assert!(!world.blocked.contains_key(&bucket("b")), "it is over");
    // The pool's calendar shows 12:00 UTC, four hours after midnight of the upstream's day.
    world.late("b1", Cause::PerDay, None, None, 5 * 3_600_000);
    assert!(!world.blocked.contains_key(&bucket("b")), "it was yesterday");
    world.late("b1", Cause::PerDay, None, None, 3_600_000);
    assert!(world.blocked.contains_key(&bucket("b")));
    let failed: u64 = world.saved().totals.iter().map(|(_, totals)| totals.failed).sum();
    assert_eq!(failed, 12, "and every one counts");
}

#[test]
fn a_gap_in_what_a_publisher_sends_proves_a_loss() {
    let mut ledger = world().ledger;
    let mut lost = |seq| {
        let report = Report {
            replica: crate::id::ReplicaId::new("r"),
            seq,
            records: Vec::new(),
            times: None,
            traces: Vec::new(),
        };
        ledger.apply(Event::Report(report), now(seq)).lost
    };
    assert_eq!(
        [7, 8, 8, 12, 9, 13].map(&mut lost),
        [0, 0, 0, 3, 0, 0],
        "nobody knows what was before the first"
    );
}

#[test]
fn a_limit_that_an_error_tells_is_kept_to_and_lapses() {
    let mut world = world();
    world.ms = 100_000;
    let bucket =
        crate::quota::Bucket::Quota(ProjectId::new("a"), Model::new(MODEL), crate::quota::Dimension::Rpm);
    world.report(Record::Failed {
        key: KeyId::new("a1"),
        model: Model::new(MODEL),
        scope: Scope::Bucket,
        cause: Cause::PerMinute,
        n: 1,
        retry_after_ms: Some(20_000),
        draw: 0,
        probe: false,
        limits: vec![(crate::quota::Dimension::Rpm, 10)],
        in_a_row: None,
        age_ms: 0,
    });
    assert_eq!(world.ledger.limit(&bucket), Some(10));
    let want = |n| crate::quota::message::Want { bucket: bucket.clone(), need: n, ahead: 0, debt: 0 };
    let granted = |world: &mut World, number| {
        let request = LeaseRequest {
            boot: ReplicaId::new("r"),
            number,
            epoch: 0,
            reports: Vec::new(),
            wants: vec![want(4)],
        };
        let step = world.ledger.apply(Event::Lease(vec![request]), now(world.ms));
        step.leases[0].grants.iter().map(|grant| grant.size).sum::<u64>()
    };
    assert_eq!(granted(&mut world, 1), 0, "what it allows counts as used");
    world.ms = 121_000;
    assert_eq!(granted(&mut world, 2), 4, "until the upstream says that it is back");
    assert_eq!(Saved::read(&Image::default()).0.limits, []);
    assert_eq!(world.saved().limits.len(), 1);
    world.ms = 25 * 3_600_000;
    world.apply(Event::Tick);
    assert_eq!(world.ledger.limit(&bucket), None, "a tier may have been raised since");
    assert_eq!(world.saved().limits.len(), 0);
}
