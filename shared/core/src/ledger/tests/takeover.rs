use super::*;
use crate::quota::Dimension;
use crate::quota::message::Want;
use crate::quota::rules::Rule;

fn lease(world: &mut World, bucket: Bucket, number: u64) -> LeaseReply {
    let wants = vec![Want { bucket, need: 1, ahead: 0, debt: 0 }];
    let boot = ReplicaId::new("holder");
    let request = LeaseRequest { boot, number, epoch: 0, reports: Vec::new(), wants };
    let mut step = world.ledger.apply(Event::Lease(vec![request]), now(1_000));
    let reply = step.leases.remove(0);
    world.take(step);
    reply
}

/// Whatever stands in the book is a model's that an upstream has answered for.
#[test]
fn the_next_leader_knows_which_models_are_no_inventions() {
    let mut roster = roster();
    roster.keys = (0..1_000)
        .map(|n| Member {
            key: KeyId::new(format!("k{n}")),
            project: ProjectId::new(format!("p{n}")),
            fingerprint: KeyId::new("same"),
        })
        .collect();
    let rule = Rule { rpm: Some(10), rpd: Some(10), ..Rule::default() };
    let projects = roster.keys.iter().map(|key| (key.project.clone(), vec![vec![rule.clone()]]));
    roster.limits.projects = projects.collect();
    let day = |n: u64| Bucket::Quota(ProjectId::new(format!("p{n}")), Model::new(MODEL), Dimension::Rpd);
    let mut world = world();
    world.restart(roster.clone());
    world.report(Record::Succeeded {
        key: KeyId::new("k0"),
        model: Model::new(MODEL),
        n: 1,
        ttfb_ms: 10,
        probe: false,
    });
    for n in 0..1_000 {
        assert_eq!(lease(&mut world, day(n), n + 1).grants.len(), 1, "bucket {n}");
    }
    world.apply(Event::Tick);
    world.restart(roster);
    let minute = Bucket::Quota(ProjectId::new("p7"), Model::new(MODEL), Dimension::Rpm);
    assert_eq!(lease(&mut world, minute, 9_999).grants.len(), 1);
}

/// Of keys that come and go, and of names that clients make up, no count is lost before there is no room at all.
#[test]
fn totals_are_bounded_and_those_of_living_keys_are_kept() {
    let totals = |n: u64| Totals { answered: n, failed: 0 };
    let pair = |key: &str, model: String| (KeyId::new(key), Model::new(model));
    let fill = |key: &'static str| (0..MAX_ENTRIES).map(move |n| (pair(key, format!("m{n}")), totals(1)));
    for (key, kept) in [("gone", 1), ("a1", MAX_ENTRIES + 1)] {
        let saved = Saved { totals: fill(key).collect(), ..Saved::default() };
        let (ledger, _) = Ledger::new(roster(), saved, Term::default(), now(0));
        let mut world = World { ledger, ..world() };
        world.answers("a1", false);
        world.answers("a1", false);
        assert_eq!(world.ledger.totals.len(), kept, "{key}");
        let of_a1 = world.ledger.totals.iter().filter(|((key, _), _)| key.as_str() == "a1");
        let sum: u64 = of_a1.map(|(_, totals)| totals.answered).sum();
        assert_eq!(sum, 2 + if key == "a1" { MAX_ENTRIES as u64 } else { 0 });
    }
}
