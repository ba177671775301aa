//! Every course that lease and fence can take in a small world: two gateways, two leaders, a quota of two, and time
//! that goes in ticks. What is searched is the real grantor; a gateway is written down anew, since the real holder
//! follows demand, which has too many states; `a_gateway_of_the_model_does_what_a_holder_does` holds the two against
//! each other.
//!
//! A message that is lost is one that never comes, and a process that stands still is one that nothing happens to: so
//! neither needs a step of its own. A general checker would have to compare states that the grantor keeps to itself;
//! here they are compared by what it stores.

#![expect(clippy::unwrap_used, reason = "a search that breaks down is a test that fails")]
#![expect(clippy::disallowed_macros, reason = "the figures of the search are for people")]

mod small;

use std::collections::{HashSet, VecDeque};

use keyfleet_core::id::ReplicaId;
use keyfleet_core::quota::LotId;
use keyfleet_core::quota::holder::Holder;
use keyfleet_core::quota::message::{Grant, LeaseReply};
use keyfleet_core::time::Mono;

use small::{Bounds, Flaw, Gateway, LIFE, State, TERMS, TICK, bucket};

/// How a search ended.
struct Search {
    states: usize,
    steps: usize,
    counter_example: Option<String>,
}

/// Looks at every state. A broken rule is looked for nearest first, so that the counter-example is a shortest one; in a
/// sound world all is looked at anyway, and going deep first leaves fewer states waiting.
fn search(bounds: Bounds, flaw: Option<Flaw>) -> Search {
    let first = State::new();
    let mut seen = HashSet::from([first.fingerprint()]);
    let mut open = VecDeque::from([first]);
    let mut steps = 0;
    while let Some(state) = if flaw.is_some() { open.pop_front() } else { open.pop_back() } {
        for next in state.successors(bounds, flaw) {
            steps += 1;
            if let Some(what) = next.broken() {
                let counter_example = Some(format!("{what} after {}", next.path()));
                return Search { states: seen.len(), steps, counter_example };
            }
            if seen.insert(next.fingerprint()) {
                open.push_back(next);
            }
        }
    }
    Search { states: seen.len(), steps, counter_example: None }
}

#[test]
fn no_course_exceeds_the_quota() {
    for bounds in Bounds::SMALL.into_iter().chain([Bounds::LARGE]) {
        let search = search(bounds, None);
        println!("{bounds:?}: {} states, {} steps", search.states, search.steps);
        assert_eq!(search.counter_example, None);
    }
}

#[test]
fn broken_rules_are_found_out() {
    for flaw in Flaw::ALL {
        let found = Bounds::SMALL.iter().find_map(|bounds| {
            let search = search(*bounds, Some(flaw));
            Some((search.counter_example?, search.states))
        });
        let (counter_example, states) = found.unwrap_or_else(|| panic!("{flaw:?} is not found out"));
        println!("{flaw:?}, {states} states: {counter_example}");
    }
}

/// Random courses: both draw, ask and hear alike. What to close is the holder's choice; the model tries everything.
#[test]
fn a_gateway_of_the_model_does_what_a_holder_does() {
    let (mut drawn, mut asked, mut heard) = (0, 0, 0);
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let clock = |tick: u64| Mono::from_ms((10 + tick) * TICK);
        let mut holder = Holder::new(ReplicaId::new("a"), TERMS, clock(0));
        let purse = holder.purse(&bucket(), clock(0));
        let mut gateway = Gateway::new(ReplicaId::new("a"));
        let (mut now, mut lots) = (0, 0);
        for _ in 0..60 {
            match rng.u32(0..6) {
                0 => now += 1,
                1 | 2 => {
                    let is_drawn = purse.draw(1, clock(now)).is_ok();
                    assert_eq!(gateway.draw(now), is_drawn, "seed {seed}");
                    drawn += u64::from(is_drawn);
                }
                3 | 4 => {
                    let Some(mut real) = holder.poll(clock(now)) else {
                        gateway.give_up();
                        continue;
                    };
                    let closed: HashSet<_> =
                        real.reports.iter().filter(|report| report.closed).map(|report| report.lot).collect();
                    let mut model = gateway.ask_closing(|lot| closed.contains(&lot), 0, now, None);
                    real.reports.sort_by_key(|report| report.lot);
                    model.reports.sort_by_key(|report| report.lot);
                    model.wants.clone_from(&real.wants);
                    assert_eq!(model, real, "seed {seed}");
                    asked += 1;
                }
                _ => {
                    lots += 1;
                    let lot = LotId { epoch: 1, number: lots };
                    let grant = Grant { bucket: bucket(), lot, size: rng.u64(1..3), life_ms: LIFE * TICK };
                    let number = gateway.asked().saturating_sub(rng.u64(0..2));
                    let epoch = if rng.u32(0..10) == 0 { 2 } else { 1 + u64::from(seed % 2 == 0) };
                    let reply = LeaseReply { epoch, number, grants: vec![grant], refusals: Vec::new() };
                    let is_heard = holder.answered(&reply, clock(now));
                    assert_eq!(gateway.hear(&reply, now, None), is_heard, "seed {seed}");
                    heard += u64::from(is_heard);
                }
            }
        }
    }
    println!("{drawn} draws, {asked} requests, {heard} answers");
    assert!(drawn.min(asked).min(heard) > 1_000);
}
