//! What people may have to be told of.

use super::*;
use crate::alert::seen::Seen;
use crate::latency::Latencies;

fn seen(world: &mut World) -> Seen {
    let keys: Vec<_> = roster().keys.into_iter().map(|member| member.key).collect();
    world.ledger.observe(|_| keys.iter(), now(world.ms))
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
