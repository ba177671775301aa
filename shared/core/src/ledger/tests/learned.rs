//! What refusals by quota teach.

use super::*;
use crate::quota::message::Want;
use crate::quota::rules::Rule;
use crate::quota::{Bucket, Dimension};

const HOUR: u64 = 3_600_000;

fn rpm() -> Bucket {
    Bucket::Quota(ProjectId::new("a"), Model::new(MODEL), Dimension::Rpm)
}

impl World {
    /// A 429 that tells limits.
    pub(super) fn is_refused(&mut self, cause: Cause, limits: &[(Dimension, u64)]) {
        self.report(Record::Failed {
            key: KeyId::new("a1"),
            model: Model::new(MODEL),
            scope: Scope::Bucket,
            cause,
            n: 1,
            retry_after_ms: Some(60_000),
            draw: 0,
            probe: false,
            limits: limits.to_vec(),
            in_a_row: None,
            age_ms: 0,
        });
    }

    /// A replica asks for so many permits; how many it gets.
    fn wants(&mut self, number: u64, need: u64) -> u64 {
        self.wants_of(rpm(), "r", number, need)
    }

    pub(super) fn wants_of(&mut self, bucket: Bucket, replica: &str, number: u64, need: u64) -> u64 {
        let wants = vec![Want { bucket, need, ahead: 0, debt: 0 }];
        let boot = ReplicaId::new(replica);
        let request = LeaseRequest { boot, number, epoch: 0, reports: Vec::new(), wants };
        let mut step = self.ledger.apply(Event::Lease(vec![request]), now(self.ms));
        let leases = std::mem::take(&mut step.leases);
        self.take(step);
        leases[0].grants.iter().map(|grant| grant.size).sum()
    }

    /// Every minute of an hour more is asked for than there is.
    fn hour_of_want(&mut self) -> Vec<u64> {
        let number = self.ms;
        (1..=60)
            .map(|minute| {
                self.ms += 60_000;
                self.wants(number + minute, 1_000);
                self.ms += 1_000;
                self.apply(Event::Tick);
                self.ms -= 1_000;
                self.ledger.limit(&rpm()).unwrap()
            })
            .collect()
    }

    fn external(&mut self) -> u64 {
        let buckets = self.ledger.buckets(now(self.ms));
        buckets.iter().filter_map(|view| view.external).map(|external| external.times).sum()
    }

    fn configure(&mut self, limit: u64) {
        self.apply(Event::Roster(limited(Rule { rpm: Some(limit), ..Rule::default() })));
    }

    /// Whether whoever was refused has been told to ask again since the last time.
    fn lets_ask_again(&mut self) -> bool {
        self.blocked.remove(&bucket("a")) == Some(None)
    }
}

pub(super) fn limited(rule: Rule) -> Roster {
    let mut roster = roster();
    roster.limits.projects.insert(ProjectId::new("a"), vec![vec![rule]]);
    roster
}

#[test]
fn a_learned_limit_is_raised_with_care_and_taken_back() {
    let mut world = world();
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpm, 20)]);
    let limits = world.hour_of_want();
    assert!(limits[..59].iter().all(|limit| *limit == 20), "not within an hour of the refusal: {limits:?}");
    let limits = world.hour_of_want();
    assert!(
        limits.is_sorted() && (30..=34).contains(limits.last().unwrap()),
        "a tenth at a time: {limits:?}"
    );
    let stored = world.saved().limits[0].1;
    assert_eq!((stored.limit, stored.stated), (*limits.last().unwrap(), Some(20)));
    // The refusal that follows need not state the limit again.
    world.is_refused(Cause::PerMinute, &[]);
    assert_eq!(world.ledger.limit(&rpm()), Some(20));
    assert_eq!(world.saved().limits[0].1.stated, None);
    let limits = world.hour_of_want();
    assert!(limits[..59].iter().all(|limit| *limit == 20), "the hour begins anew: {limits:?}");
}

#[test]
fn a_limit_that_suffices_is_not_raised() {
    let mut world = world();
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpm, 20)]);
    for minute in 1..=180 {
        world.ms = minute * 60_000;
        assert_eq!(world.wants(minute, 5), if minute == 1 { 0 } else { 5 });
        world.apply(Event::Tick);
    }
    assert_eq!(world.ledger.limit(&rpm()), Some(20));
}

#[test]
fn a_configured_limit_is_never_raised() {
    let mut world = world();
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpm, 20)]);
    world.configure(10);
    for _ in 0..4 {
        assert!(world.hour_of_want().iter().all(|limit| *limit == 10));
    }
    assert!(world.saved().limits.iter().all(|(_, learned)| learned.limit == 20));
}

#[test]
fn a_refusal_while_something_is_left_shows_that_others_use_the_project() {
    let mut world = world();
    world.configure(10);
    assert_eq!(world.wants(1, 9), 9);
    world.is_refused(Cause::PerMinute, &[]);
    assert_eq!(world.external(), 1);
    assert!(world.ttl(&bucket("a")).is_some(), "it is closed all the same");
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpm, 9)]);
    assert_eq!(world.external(), 1, "the upstream allows less than the operator thinks");
    world.ms += 1;
    assert_eq!(world.wants(1, 1), 1);
    world.is_refused(Cause::PerMinute, &[]);
    world.is_refused(Cause::BareRateLimit, &[]);
    assert_eq!((world.external(), world.ledger.external_refusals()), (1, 1), "all of it may be used by us");
    world.ms = 30 * HOUR;
    world.apply(Event::Tick);
    assert_eq!((world.external(), world.ledger.external_refusals()), (0, 1));
}

#[test]
fn what_was_seen_against_another_limit_says_nothing_of_the_new_one() {
    let mut world = world();
    world.configure(10);
    world.is_refused(Cause::PerMinute, &[]);
    assert_eq!(world.external(), 1);
    world.configure(10);
    assert_eq!(world.external(), 1, "it is the same");
    world.configure(5);
    assert_eq!(world.external(), 0);
}

#[test]
fn what_was_used_before_a_limit_was_known_may_have_been_ours() {
    let mut world = world();
    for (cause, dimension) in [
        (Cause::PerMinute, Dimension::Rpm),
        (Cause::InputTokensPerMinute, Dimension::Tpm),
        (Cause::PerDay, Dimension::Rpd),
    ] {
        world.is_refused(cause, &[(dimension, 20)]);
        world.is_refused(cause, &[(dimension, 20)]);
    }
    assert_eq!(world.external(), 0);
    world.ms = 2 * 60_000;
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpm, 20)]);
    assert_eq!(world.external(), 1, "a minute that was counted from its beginning");
}

#[test]
fn whoever_was_refused_hears_that_a_limit_was_raised() {
    let mut world = world();
    world.configure(10);
    assert_eq!(world.wants(1, 30), 10);
    world.configure(10);
    world.configure(5);
    assert!(world.blocked.is_empty());
    world.configure(60);
    assert!(world.lets_ask_again());
    assert_eq!(world.wants(1, 30), 30);
    world.configure(100);
    assert!(!world.lets_ask_again(), "nobody was refused by the last limit");
}

/// Whoever was refused for the day would wait until midnight.
#[test]
fn a_day_that_allows_more_is_told_of_by_whomever_the_limit_was_given() {
    let daily = Bucket::Quota(ProjectId::new("a"), Model::new(MODEL), Dimension::Rpd);
    let rule = |rpd| limited(Rule { rpd: Some(rpd), ..Rule::default() });
    let mut world = world();
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpd, 50)]);
    world.ms = 2 * 60_000;
    assert_eq!(world.wants_of(daily.clone(), "r1", 1, 60), 50);
    world.apply(Event::Roster(rule(50)));
    assert!(!world.lets_ask_again(), "the operator says the same as the upstream");
    world.apply(Event::Roster(rule(90)));
    assert!(world.lets_ask_again(), "more than the upstream said");
    assert_eq!(world.wants_of(daily.clone(), "r2", 1, 60), 40);
    world.restart(rule(90));
    assert!(!world.lets_ask_again());
    world.restart(rule(100));
    assert!(world.lets_ask_again(), "after a restart with another configuration");
    assert_eq!(world.wants_of(daily.clone(), "r3", 1, 60), 10);
    world.is_refused(Cause::PerMinute, &[]);
    world.apply(Event::Roster(rule(120)));
    assert!(!world.lets_ask_again(), "it is blocked");
    world.ms += 70_000;
    world.apply(Event::Tick);
    assert!(world.lets_ask_again(), "the block is over");
    world.apply(Event::Tick);
    assert!(!world.lets_ask_again(), "once");
}

#[test]
fn a_learned_limit_that_lapses_or_is_raised_lets_ask_again() {
    let mut world = world();
    world.is_refused(Cause::PerMinute, &[(Dimension::Rpm, 20)]);
    world.hour_of_want();
    world.lets_ask_again();
    world.hour_of_want();
    assert!(world.lets_ask_again(), "it was raised");
    for ms in [24 * HOUR - 2_000, 24 * HOUR - 1_000] {
        world.ms = ms;
        assert!(world.wants(ms, 1_000) < 1_000);
        world.lets_ask_again();
    }
    world.ms += 2_000;
    world.apply(Event::Tick);
    assert_eq!(world.ledger.limit(&rpm()), None);
    assert!(world.lets_ask_again(), "nobody knows a limit any more");
}
