//! Whatever happens: no incident that lasts goes untold, and none is told twice unless a leader was lost in between.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const THINGS: [&str; 3] = ["x", "y", "z"];

#[derive(Debug, Clone)]
enum Happens {
    Breaks(usize),
    Heals(usize),
    Edges(usize),
    /// So many seconds.
    Time(u64),
    /// What is due is tried: each receiver takes it or not.
    Try(bool, bool),
    /// It is taken, but the leader is killed before that is written down.
    Killed,
    /// The leader is killed where nothing is lost.
    TakenOver,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (0..THINGS.len()).prop_map(Happens::Breaks),
        (0..THINGS.len()).prop_map(Happens::Heals),
        (0..THINGS.len()).prop_map(Happens::Edges),
        (1..60_u64).prop_map(Happens::Time),
        any::<(bool, bool)>().prop_map(|(a, b)| Happens::Try(a, b)),
        Just(Happens::Killed),
        Just(Happens::TakenOver),
    ]
}

/// What one receiver got, in order: of each thing, whether it fires.
#[derive(Default)]
struct Inbox {
    heard: BTreeMap<String, Vec<bool>>,
    ids: BTreeSet<String>,
    doubles: usize,
}

impl Inbox {
    fn take(&mut self, queued: &Queued) {
        if !self.ids.insert(queued.id.clone()) {
            self.doubles += 1;
            return;
        }
        for item in &queued.items {
            let heard = self.heard.entry(item.labels["model"].clone()).or_default();
            let fires = item.ended.is_none();
            // A message lists all that fires: what is known already is no news.
            if heard.last() == Some(&fires) {
                assert!(fires, "an end is told once");
            } else {
                heard.push(fires);
            }
        }
    }
}

struct World {
    bench: Bench,
    inboxes: BTreeMap<String, Inbox>,
    kills: usize,
}

impl World {
    fn deliver(&mut self, takes: impl Fn(&str) -> bool, written: bool) {
        let due: Vec<_> =
            self.bench.alerts.due(self.bench.now).map(|(number, queued)| (number, queued.clone())).collect();
        for (number, queued) in due {
            let taken = takes(&queued.receiver);
            if taken {
                self.inboxes.entry(queued.receiver.clone()).or_default().take(&queued);
            }
            if written {
                let attempt = if taken {
                    Attempt::Delivered
                } else {
                    Attempt::Later { after: None, why: "away".to_owned() }
                };
                self.bench.alerts.attempted(number, attempt, 7, self.bench.now);
            }
        }
        self.bench.store();
    }

    fn happen(&mut self, happens: &Happens) {
        match happens {
            Happens::Breaks(of) => self.bench.set(RULE, THINGS[*of], true),
            Happens::Edges(of) => self.bench.set(RULE, THINGS[*of], false),
            Happens::Heals(of) => self.bench.clear(RULE, THINGS[*of]),
            Happens::Time(seconds) => {
                for _ in 0..*seconds {
                    self.bench.now = self.bench.now.plus(SECOND);
                    self.bench.tick();
                }
            }
            Happens::Try(a, b) => self.deliver(|to| if to == "a" { *a } else { *b }, true),
            Happens::Killed => {
                self.kills += 1;
                self.deliver(|_| true, false);
                self.bench.take_over();
            }
            Happens::TakenOver => self.bench.take_over(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn are_never_lost_and_never_doubled_without_a_failover(
        story in prop::collection::vec(happens(), 1..60),
    ) {
        let mut bench = Bench::new();
        bench.policy.receivers.push(Recipient::named("b"));
        bench.policy.repeat_interval = Duration::from_hours(1_000);
        let mut world = World { bench, inboxes: BTreeMap::new(), kills: 0 };
        for happens in &story {
            world.happen(happens);
        }
        // Whatever was, one incident that lasts is told to everybody, and its end as well.
        world.bench.wrong.clear();
        for breaks in [true, false] {
            if breaks {
                world.bench.set(RULE, "x", true);
            } else {
                world.bench.clear(RULE, "x");
            }
            for _ in 0..100 {
                world.happen(&Happens::Time(20));
                world.deliver(|_| true, true);
            }
            for (receiver, inbox) in &world.inboxes {
                let last = inbox.heard["x"].last();
                prop_assert_eq!(last, Some(&breaks), "{}", receiver);
            }
            prop_assert_eq!(world.inboxes.len(), 2);
        }
        for inbox in world.inboxes.values() {
            prop_assert!(world.kills > 0 || inbox.doubles == 0);
            for heard in inbox.heard.values() {
                prop_assert_eq!(heard.first(), Some(&true), "an end without a beginning");
                prop_assert_eq!(heard.last(), Some(&false), "somebody believes that it still fires");
            }
        }
        prop_assert!(world.bench.alerts.instances().next().is_none());
        prop_assert!(world.bench.alerts.groups.is_empty() && world.bench.alerts.outbox.is_empty());
    }
}
