//! What is blocked is tried by one request of the whole fleet.

use super::*;
use crate::id::Host;
use crate::quota::LotId;
use crate::quota::message::{Refusal, Want};

fn model() -> Subject {
    Subject::Model(Host::new("host"), Model::new(MODEL))
}

impl World {
    /// A replica asks for the right to try, as its `number`th question; how long it has to wait else, in ms.
    fn asks(&mut self, replica: &str, number: u64, subject: &Subject) -> Result<LotId, u64> {
        let wants = vec![Want { bucket: Bucket::Probe(subject.clone()), need: 1, ahead: 0, debt: 0 }];
        let boot = ReplicaId::new(replica);
        let request = LeaseRequest { boot, number, epoch: 0, reports: Vec::new(), wants };
        let reply = self.ledger.apply(Event::Lease(vec![request]), now(self.ms)).leases.remove(0);
        match (&reply.grants[..], &reply.refusals[..]) {
            ([grant], []) => Ok(grant.lot),
            ([], [Refusal { retry_ms, .. }]) => Err(*retry_ms),
            _ => panic!("{reply:?}"),
        }
    }

    fn trips(&mut self, probe: bool) {
        let (host, model) = (Host::new("host"), Model::new(MODEL));
        let cause = Cause::Overloaded;
        self.report(Record::Tripped { host, model, cause, recovery_ms: 2_000, draw: 0, probe, age_ms: 0 });
    }

    fn judged(&mut self, subject: &Subject, lot: LotId) {
        self.report(Record::Judged { subject: subject.clone(), lot });
    }
}

#[test]
fn a_breaker_whose_report_waited_may_be_tried_at_once() {
    let mut world = world();
    world.ms = 60_000;
    let (host, model_name) = (Host::new("host"), Model::new(MODEL));
    let cause = Cause::Overloaded;
    let (recovery_ms, draw, probe) = (2_000, 0, false);
    let tripped = Record::Tripped { host, model: model_name, cause, recovery_ms, draw, probe, age_ms: 1_500 };
    world.report(tripped);
    assert_eq!(world.asks("r", 1, &model()), Err(500));
    world.ms += 500;
    assert!(world.asks("r", 2, &model()).is_ok());
}

#[test]
fn a_breaker_is_tried_once_at_a_time_and_later_each_time() {
    let mut world = world();
    world.trips(false);
    world.trips(false);
    assert_eq!(world.blocked[&model()], Some((Cause::Overloaded, None)), "every replica stops");
    assert_eq!(world.asks("r", 1, &model()), Err(2_000));
    for (round, pause) in [2_000, 4_000, 8_000, 16_000, 30_000, 30_000].into_iter().enumerate() {
        let round = round as u64;
        world.ms += pause - 1;
        assert_eq!(world.asks("r", 2 + round * 3, &model()), Err(1));
        world.ms += 1;
        let lot = world.asks("r", 3 + round * 3, &model()).unwrap();
        assert_eq!(world.asks("s", 1 + round, &model()), Err(1_000), "another one is trying");
        world.trips(true);
        world.judged(&model(), lot);
    }
    world.ms += 30_000;
    let lot = world.asks("r", 100, &model()).unwrap();
    world.report(Record::Recovered { host: Host::new("host"), model: Model::new(MODEL) });
    world.judged(&model(), lot);
    assert_eq!(world.blocked[&model()], None);
    assert!(world.saved().blocks.is_empty());
    world.trips(false);
    assert_eq!(world.asks("s", 100, &model()), Err(2_000), "it counts anew");
}

#[test]
fn a_breaker_that_nobody_asks_for_is_forgotten() {
    let mut world = world();
    world.trips(false);
    world.ms = 601_000;
    world.apply(Event::Tick);
    assert!(world.blocked[&model()].is_some());
    world.ms = 603_000;
    world.apply(Event::Tick);
    assert_eq!(world.blocked[&model()], None);
}

#[test]
fn a_key_whose_probe_fails_rests_twice_as_long() {
    let mut world = world();
    (0..3).for_each(|_| world.fails("a1", Cause::CredentialRejected));
    assert_eq!(world.asks("r", 1, &key("a1")), Err(60_000));
    world.ms = 300_000;
    let lot = world.asks("r", 2, &key("a1")).unwrap();
    world.fails_as("a1", Cause::CredentialRejected.outcome(), true);
    world.judged(&key("a1"), lot);
    world.ms += 599_000;
    assert_eq!(world.asks("r", 3, &key("a1")), Err(1_000));
    world.ms += 1_000;
    let lot = world.asks("r", 4, &key("a1")).unwrap();
    world.answers("a1", true);
    assert_eq!(world.blocked[&key("a1")], None);
    world.judged(&key("a1"), lot);
    assert!(world.asks("s", 1, &key("a1")).is_ok(), "whose report is missing may try");
}

#[test]
fn what_an_operator_disabled_is_not_tried() {
    let mut world = world();
    world.apply(Event::Operate(Operation::Disable { key: KeyId::new("a1") }));
    assert_eq!(world.asks("r", 1, &key("a1")), Err(60_000));
}
