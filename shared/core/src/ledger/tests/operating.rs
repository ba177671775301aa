use super::*;

impl World {
    fn operate(&mut self, operation: Operation) -> Option<String> {
        let step = self.ledger.apply(Event::Operate(operation), now(self.ms));
        let refused = step.refused.clone();
        self.probes.extend(step.probes);
        for change in step.delta.into_iter().flat_map(|delta| delta.changes) {
            self.see(change);
        }
        for entry in step.entries {
            self.stored.insert((entry.table, entry.key.clone()), entry);
        }
        refused
    }

    fn disable(&mut self, name: &str) {
        assert_eq!(self.operate(Operation::Disable { key: KeyId::new(name) }), None);
    }

    fn enable(&mut self, name: &str) {
        assert_eq!(self.operate(Operation::Enable { key: KeyId::new(name) }), None);
    }

    fn unblock(&mut self, name: &str) -> Option<String> {
        self.operate(Operation::Unblock { key: KeyId::new(name) })
    }

    fn block_for(&mut self, name: &str, minutes: u64) {
        let operation = Operation::Block { key: KeyId::new(name), ttl_ms: minutes * 60_000 };
        assert_eq!(self.operate(operation), None);
    }

    fn state(&self, name: &str) -> &'static str {
        let view = self.ledger.view(now(self.ms));
        view.iter().find(|view| view.key.as_str() == name).unwrap().state()
    }
}

#[test]
fn only_enabling_brings_a_disabled_key_back() {
    let mut world = world();
    world.disable("a1");
    assert_eq!(world.blocked[&key("a1")], Some((Cause::ByOperator, None)));
    world.answers("a1", true);
    world.fails("a1", Cause::InvalidKey);
    world.apply(Event::Probed { key: KeyId::new("a1"), outcome: None, draw: 0 });
    (0..3).for_each(|_| world.fails("a1", Cause::CredentialRejected));
    world.apply(Event::Probed { key: KeyId::new("a1"), outcome: None, draw: 0 });
    world.block_for("a1", 5);
    assert!(world.unblock("a1").unwrap().contains("enable"));
    assert_eq!(world.blocked[&key("a1")], Some((Cause::ByOperator, None)));
    assert_eq!((world.state("a1"), world.state("a2")), ("disabled", "perfect"));
    world.enable("a1");
    assert_eq!(world.blocked[&key("a1")], None);
    assert_eq!(world.probes, [KeyId::new("a1")], "and it is looked at");
}

#[test]
fn a_key_that_the_upstream_refused_can_be_disabled_and_enabled() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    world.disable("a1");
    world.apply(Event::Probed { key: KeyId::new("a1"), outcome: None, draw: 0 });
    assert_eq!(world.state("a1"), "disabled", "a valid key stays as its operator left it");
    world.enable("a1");
    assert_eq!(world.state("a1"), "perfect", "and what was before is not back either");
    world.fails("b1", Cause::ProjectDisabled);
    world.fails("b1", Cause::PerDay);
    world.enable("b1");
    assert_eq!(world.blocked[&project("b")], None);
    assert!(world.blocked[&bucket("b")].is_some(), "that is no decision, and ends by itself");
}

#[test]
fn unblocking_ends_all_that_keeps_a_key_from_work_and_nothing_of_others() {
    let mut world = world();
    world.fails("a1", Cause::PerDay);
    world.fails("a1", Cause::ModelNotAvailable);
    world.fails("a1", Cause::Billing);
    world.fails("b1", Cause::PerDay);
    world.block_for("a1", 10);
    assert_eq!(world.state("a1"), "blocked");
    assert_eq!(world.unblock("a1"), None);
    assert_eq!(world.ledger.blocks.keys().collect::<Vec<_>>(), [&bucket("b")]);
    assert_eq!(world.blocked.iter().filter(|(_, blocked)| blocked.is_some()).count(), 1);
    let saved = world.saved();
    assert_eq!(saved.blocks.len(), 1, "and it is stored");
}

#[test]
fn an_operators_block_holds_for_its_time_and_no_probe_ends_it() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    world.block_for("a1", 10);
    assert_eq!(world.ttl(&key("a1")), Some(600_000), "the prober may have found it valid before");
    world.apply(Event::Probed { key: KeyId::new("a1"), outcome: None, draw: 0 });
    world.answers("a1", true);
    assert_eq!(world.ttl(&key("a1")), Some(600_000));
    world.block_for("a1", 5);
    assert_eq!(world.ttl(&key("a1")), Some(600_000), "a shorter one never shortens");
    world.block_for("a1", 20);
    assert_eq!(world.ttl(&key("a1")), Some(1_200_000));
    world.ms = 1_200_000;
    assert_eq!(world.state("a1"), "perfect");
}

#[test]
fn an_operator_hears_when_there_is_no_such_key() {
    let refused = world().operate(Operation::Enable { key: KeyId::new("x") });
    assert_eq!(refused.as_deref(), Some("there is no key x"));
}

#[test]
fn people_see_totals_and_what_is_used_of_every_bucket() {
    let mut world = world();
    world.answers("a1", false);
    world.fails("a1", Cause::Overloaded);
    world.ms = 100_000;
    world.is_refused(Cause::PerMinute, &[(crate::quota::Dimension::Rpm, 10)]);
    let view = world.ledger.view(now(world.ms));
    let names: Vec<_> = view.iter().map(|view| view.key.as_str()).collect();
    assert_eq!(names, ["a1", "a2", "b1", "c1"]);
    assert_eq!(view[0].totals, Totals { answered: 1, failed: 2 });
    assert_eq!(view[1].blocks.len(), 1, "its project's");
    let buckets = world.ledger.buckets(now(world.ms));
    assert_eq!(buckets.len(), 1);
    assert_eq!((buckets[0].used, buckets[0].open, buckets[0].limit), (10, 0, Some(10)));
    assert_eq!(world.ledger.counts(), (1, 0));
}

#[test]
fn gateways_hear_that_a_longer_block_is_over_before_a_shorter_one_takes_its_place() {
    let mut world = world();
    world.fails("a1", Cause::InvalidKey);
    let operation = Operation::Block { key: KeyId::new("a1"), ttl_ms: 60_000 };
    let step = world.ledger.apply(Event::Operate(operation), now(world.ms));
    let blocked = Change::Blocked {
        subject: key("a1"),
        cause: Cause::ByOperator,
        ttl_ms: Some(60_000),
        probe_ms: None,
    };
    assert_eq!(
        step.delta.unwrap().changes,
        [Change::Cleared { subject: key("a1"), slow_start: false }, blocked]
    );
}
