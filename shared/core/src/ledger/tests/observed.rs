//! What people may have to be told of.

use super::learned::limited;
use super::*;
use crate::alert::seen::Seen;
use crate::latency::Latencies;
use crate::quota::Dimension;
use crate::quota::rules::Rule;

fn seen(world: &mut World) -> Seen {
    let keys: Vec<_> = roster().keys.into_iter().map(|member| member.key).collect();
    world.ledger.observe(|_| keys.iter(), [], now(world.ms))
}

fn served(world: &mut World, times: Option<Vec<(Model, Latencies)>>) -> Seen {
    let (key, model) = (KeyId::new("a1"), Model::new(MODEL));
    let records = vec![Record::Succeeded { key, model, n: 100, ttfb_ms: 700, probe: false }];
    let replica = crate::id::ReplicaId::new("another");
    world.apply(Event::Report(Report { replica, seq: 1, records, times, traces: Vec::new() }));
    seen(world)
}

#[test]
fn times_are_those_that_were_counted_and_means_where_nobody_counts() {
    let mut counted = Latencies::default();
    counted.count(90, 100);
    counted.count(10, 6_000);
    let of_new = served(&mut world(), Some(vec![(Model::new(MODEL), counted)]));
    assert_eq!(of_new.models[0].traffic.p95, counted.p95());
    assert_eq!((of_new.overall.p95, of_new.overall.attempts), (counted.p95(), 100));
    let mut mean = Latencies::default();
    mean.count(100, 700);
    let of_old = served(&mut world(), None);
    assert_eq!(of_old.models[0].traffic.p95, mean.p95());
    let untold = served(&mut world(), Some(Vec::new()));
    assert_eq!((untold.overall.p95, untold.overall.attempts), (None, 100), "they come with another report");
}

#[test]
fn a_key_is_usable_unless_it_its_project_or_its_quota_is_out() {
    let mut world = world();
    world.answers("a1", false);
    let usable = |world: &mut World| {
        let model = seen(world).models.pop().unwrap();
        (model.usable, model.all)
    };
    assert_eq!(usable(&mut world), (4, 4));
    world.fails("c1", Cause::PerDay);
    assert_eq!(usable(&mut world), (3, 4));
    world.fails("b1", Cause::Leaked);
    assert_eq!(usable(&mut world), (2, 4));
    assert_eq!(seen(&mut world).disabled, [(KeyId::new("b1"), "leaked")]);
    world.fails("a1", Cause::ProjectDisabled);
    assert_eq!(usable(&mut world), (0, 4));
    let out: Vec<_> = seen(&mut world).disabled.into_iter().map(|(key, _)| key).collect();
    assert_eq!(out, ["a1", "a2", "b1"].map(KeyId::new), "every key of the project");
}

/// A quota of which nothing is left keeps a key from work as a block does; that of a minute only for as long as it lasts.
#[test]
fn a_key_without_quota_is_usable_when_its_quota_comes_back() {
    let rule = Rule { rpm: Some(5), ..Rule::default() };
    let daily = Rule { rpd: Some(5), ..Rule::default() };
    for (dimension, rule, usable) in [(Dimension::Rpd, daily, 2), (Dimension::Rpm, rule, 4)] {
        let roster = limited(rule);
        let mut world = world();
        world.restart(roster.clone());
        world.answers("c1", false);
        let counts = |world: &mut World| {
            let model = seen(world).models.pop().unwrap();
            (model.usable, model.ready, model.all)
        };
        assert_eq!(counts(&mut world), (4, 4, 4));
        let bucket = Bucket::Quota(ProjectId::new("a"), Model::new(MODEL), dimension);
        assert_eq!(world.wants_of(bucket.clone(), "r", 1, 5), 5);
        assert_eq!(counts(&mut world), (4, 4, 4), "nobody was refused");
        assert_eq!(world.wants_of(bucket, "another", 1, 1), 0);
        assert_eq!(counts(&mut world), (usable, 2, 4), "{dimension:?}");
        // The next leader has heard of no attempt.
        world.restart(roster);
        assert_eq!(counts(&mut world), (usable, 2, 4), "{dimension:?}");
    }
}
