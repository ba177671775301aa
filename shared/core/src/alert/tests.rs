use std::collections::BTreeMap;
use std::time::Duration;

use super::delivery::{Attempt, Became, GIVE_UP, MAX_GIVEN_UP};
use super::pipeline::Queued;
use super::*;
use crate::state::{Entry, Image};

mod deliveries;
mod incidents;
mod muting;
mod rules;

const SECOND: Duration = Duration::from_secs(1);

/// A machine with a clock, a store, and receivers that take what they are given.
pub(super) struct Bench {
    pub(super) alerts: Alerts,
    pub(super) policy: Policy,
    pub(super) now: Utc,
    stored: BTreeMap<String, Entry>,
    wrong: BTreeMap<(Rule, String), bool>,
}

/// What a receiver has got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    receiver: String,
    rule: Rule,
    firing: Vec<String>,
    resolved: Vec<String>,
}

fn told(queued: &Queued) -> Told {
    let names = |over: bool| {
        let items = queued.items.iter().filter(|item| item.ended.is_some() == over);
        items.map(|item| item.labels.get("model").cloned().unwrap_or_default()).collect()
    };
    Told { receiver: queued.receiver.clone(), rule: queued.rule, firing: names(false), resolved: names(true) }
}

impl Bench {
    pub(super) fn new() -> Self {
        let mut policy = Policy { receivers: vec![Recipient::named("a")], ..Policy::default() };
        for rule in Rule::ALL {
            let timing = Timing { wait: 10 * SECOND, keep: 10 * SECOND, ..rule.timing() };
            policy.timings.insert(rule, timing);
        }
        let now = Utc::from_ms(1_800_000_000_000);
        Self { alerts: Alerts::default(), policy, now, stored: BTreeMap::new(), wrong: BTreeMap::new() }
    }

    /// Something begins to be wrong, or is between firing and clear.
    pub(super) fn set(&mut self, rule: Rule, of: &str, fires: bool) {
        self.wrong.insert((rule, of.to_owned()), fires);
    }

    pub(super) fn clear(&mut self, rule: Rule, of: &str) {
        self.wrong.remove(&(rule, of.to_owned()));
    }

    pub(super) fn tick(&mut self) {
        let readings = self.wrong.iter().map(|((rule, of), fires)| Reading {
            rule: *rule,
            labels: [("model".to_owned(), of.clone())].into(),
            fires: *fires,
            summary: format!("{of} is wrong"),
            value: None,
        });
        self.alerts.tick(readings.collect(), |_| true, &self.policy, self.now);
        self.store();
    }

    fn store(&mut self) {
        for entry in self.alerts.entries() {
            if entry.value.is_some() {
                self.stored.insert(entry.key.clone(), entry);
            } else {
                self.stored.remove(&entry.key);
            }
        }
    }

    /// Another leader goes on.
    pub(super) fn take_over(&mut self) {
        let image = Image { entries: self.stored.values().cloned().collect(), ..Image::default() };
        let (alerts, unread) = Alerts::restore(&image, self.now);
        assert_eq!(unread, 0);
        self.alerts = alerts;
    }

    /// Attempts all that is due.
    pub(super) fn attempt(&mut self, attempt: &Attempt) -> Vec<Told> {
        let due: Vec<_> = self.alerts.due(self.now).map(|(number, queued)| (number, told(queued))).collect();
        for (number, _) in &due {
            self.alerts.attempted(*number, attempt.clone(), 0, self.now);
        }
        self.store();
        due.into_iter().map(|(_, told)| told).collect()
    }

    /// Lets time pass, second by second, with receivers that take everything.
    pub(super) fn pass(&mut self, seconds: u64) -> Vec<Told> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            self.now = self.now.plus(SECOND);
            self.tick();
            all.extend(self.attempt(&Attempt::Delivered));
        }
        all
    }
}

pub(super) fn firing(rule: Rule, of: &[&str]) -> Told {
    let firing = of.iter().map(|of| (*of).to_owned()).collect();
    Told { receiver: "a".to_owned(), rule, firing, resolved: Vec::new() }
}

pub(super) fn resolved(rule: Rule, of: &[&str]) -> Told {
    let resolved = of.iter().map(|of| (*of).to_owned()).collect();
    Told { receiver: "a".to_owned(), rule, firing: Vec::new(), resolved }
}

const RULE: Rule = Rule::ErrorRate;

#[test]
fn an_incident_is_told_once_when_it_begins_and_once_when_it_is_over() {
    let mut bench = Bench::new();
    bench.set(RULE, "x", true);
    // 10 s of being wrong, and 30 s of waiting for more; the first second is the first look.
    assert_eq!(bench.pass(40), []);
    assert_eq!(bench.pass(1), [firing(RULE, &["x"])]);
    assert_eq!(bench.pass(3_600), []);
    bench.clear(RULE, "x");
    assert_eq!(bench.pass(40), []);
    assert_eq!(bench.pass(1), [resolved(RULE, &["x"])]);
    assert_eq!(bench.pass(3_600), []);
    let past: Vec<_> = bench.alerts.history().map(|past| past.ended.since(past.started)).collect();
    assert_eq!(past, [Duration::from_secs(3_641)]);
    assert!(bench.alerts.instances().next().is_none());
    let kept: Vec<_> = bench.stored.keys().map(|key| key.split('/').next().unwrap()).collect();
    assert_eq!(kept, ["number", "past"], "nothing else stays in the store");
}

#[test]
fn what_is_wrong_only_for_a_moment_or_on_the_edge_is_nobody_s_business() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.set(RULE, "x", true);
        assert_eq!(bench.pass(9), []);
        bench.set(RULE, "x", false);
        assert_eq!(bench.pass(1), []);
    }
    assert_eq!(bench.alerts.history().count(), 0);
    // One that fires goes on for as long as it is on the edge, or clear for a moment.
    bench.set(RULE, "x", true);
    assert_eq!(bench.pass(100), [firing(RULE, &["x"])]);
    for _ in 0..20 {
        bench.set(RULE, "x", false);
        assert_eq!(bench.pass(600), []);
        bench.clear(RULE, "x");
        assert_eq!(bench.pass(9), []);
    }
}

#[test]
fn what_goes_wrong_together_is_one_message_and_the_next_one_waits() {
    let mut bench = Bench::new();
    for of in 0..12 {
        bench.set(RULE, &format!("{of:02}"), true);
        assert_eq!(bench.pass(2), []);
    }
    let all: Vec<_> = (0..12).map(|of| format!("{of:02}")).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    assert_eq!(bench.pass(30), [firing(RULE, &all)]);
    bench.set(RULE, "later", true);
    bench.clear(RULE, "00");
    assert_eq!(bench.pass(280), []);
    let next = bench.pass(30);
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].resolved, ["00"]);
    assert_eq!(next[0].firing.len(), 12, "the message says all that fires");
}

#[test]
fn what_still_fires_is_told_again_after_hours() {
    let mut bench = Bench::new();
    bench.set(RULE, "x", true);
    assert_eq!(bench.pass(41).len(), 1);
    assert_eq!(bench.pass(4 * 3_600 - 1), []);
    assert_eq!(bench.pass(31), [firing(RULE, &["x"])]);
}

#[test]
fn a_receiver_that_is_away_hears_everything_in_order_and_costs_one_message() {
    let mut bench = Bench::new();
    bench.policy.receivers.push(Recipient::named("b"));
    bench.set(RULE, "x", true);
    let mut attempts = 0;
    let later = Attempt::Later { after: None, why: "away".to_owned() };
    for second in 0..7_200 {
        bench.now = bench.now.plus(SECOND);
        if second == 600 {
            bench.clear(RULE, "x");
        }
        bench.tick();
        attempts += bench.attempt(&later).len();
        assert!(bench.alerts.outbox().count() <= 2);
    }
    assert!((20..60).contains(&attempts), "{attempts}");
    let heard = bench.pass(1_200);
    for receiver in ["a", "b"] {
        let of: Vec<_> = heard.iter().filter(|told| told.receiver == receiver).collect();
        assert_eq!(of.len(), 2, "{of:?}");
        assert_eq!((of[0].firing.len(), of[1].resolved.len()), (1, 1));
    }
}

#[test]
fn what_is_refused_for_good_stops_that_receiver_until_it_is_reconsidered() {
    let mut bench = Bench::new();
    bench.set(RULE, "x", true);
    for _ in 0..41 {
        bench.now = bench.now.plus(SECOND);
        bench.tick();
    }
    let (number, _) = bench.alerts.due(bench.now).next().unwrap();
    let never = Attempt::Never { why: "gone".to_owned() };
    assert_eq!(bench.alerts.attempted(number, never, 0, bench.now), Some(Became::GivenUp));
    assert_eq!(bench.pass(1_000), []);
    bench.alerts.reconsider();
    assert_eq!(bench.pass(1), [firing(RULE, &["x"])]);
}

#[test]
fn a_message_that_is_refused_is_given_up_alone() {
    let mut bench = Bench::new();
    bench.policy.group_interval = Duration::ZERO;
    bench.set(RULE, "x", true);
    bench.pass(40);
    let refused = Attempt::Refused { why: "400".to_owned() };
    let mut refusals = Vec::new();
    // Another rule is told meanwhile.
    bench.set(Rule::PoolLow, "y", true);
    for second in 1..=190 {
        bench.now = bench.now.plus(SECOND);
        bench.tick();
        let due: Vec<_> = bench.alerts.due(bench.now).map(|(number, queued)| (number, queued.rule)).collect();
        for (number, rule) in due {
            if rule == RULE {
                refusals.push(second);
                assert_eq!(
                    bench.alerts.attempted(number, refused.clone(), 0, bench.now),
                    Some(Became::GivenUp)
                );
            } else {
                bench.alerts.attempted(number, Attempt::Delivered, 0, bench.now);
                assert_eq!(bench.alerts.receivers().count(), 0, "it takes messages");
            }
        }
        bench.store();
    }
    assert_eq!(refusals, [1, 61, 121, 181], "never at once");
    let (_, receiver) = bench.alerts.receivers().next().unwrap();
    assert_eq!((receiver.refused, receiver.stopped.as_ref()), (3, None), "one was before the other rule's");
    bench.take_over();
    let given_up: Vec<_> =
        bench.alerts.given_up().map(|one| (one.rule, one.alerts, one.why.as_str())).collect();
    assert_eq!(given_up, [(RULE, 1, "400"); 4]);
    assert_eq!(bench.pass(60), [firing(RULE, &["x"])], "the next one is taken");
    bench.clear(RULE, "x");
    assert_eq!(bench.pass(50), [resolved(RULE, &["x"])]);
}

#[test]
fn the_next_leader_believes_that_a_receiver_fails_until_it_takes_a_message() {
    let mut bench = Bench::new();
    let reading = |rule, name: &str, of: &str| Reading {
        rule,
        labels: [(name.to_owned(), of.to_owned())].into(),
        fires: true,
        summary: String::new(),
        value: None,
    };
    let readings = [reading(RULE, "model", "x"), reading(Rule::DeliveryFailing, "receiver", "a")];
    let never = Attempt::Never { why: "gone".to_owned() };
    for _ in 0..60 {
        bench.now = bench.now.plus(SECOND);
        bench.alerts.tick(readings.to_vec(), |_| true, &bench.policy, bench.now);
        bench.attempt(&never);
    }
    let failing = |bench: &Bench| {
        let mut known = bench.alerts.receivers().map(|(name, known)| (name.clone(), known.clone()));
        known.next()
    };
    assert!(failing(&bench).is_some_and(|(_, known)| known.stopped.is_some()));
    bench.take_over();
    let (name, known) = failing(&bench).expect("what fires goes on");
    assert_eq!((name.as_str(), known.why.as_str()), ("a", "gone"));
    assert_eq!((known.stopped, known.refused_at), (None, Some(bench.now)), "it is tried again");
    bench.set(RULE, "y", true);
    assert_ne!(bench.pass(600), []);
    assert_eq!(failing(&bench), None, "it took one");
}

#[test]
fn the_next_leader_knows_whether_the_lead_was_handed_over() {
    let mut bench = Bench::new();
    bench.alerts.hand_over(7);
    bench.store();
    bench.take_over();
    assert!(bench.alerts.was_handed_over(7));
    assert!(!bench.alerts.was_handed_over(8), "another one led since");
}

#[test]
fn what_was_given_up_is_kept_in_the_order_of_that() {
    let mut bench = Bench::new();
    bench.policy.group_wait = Duration::ZERO;
    bench.set(RULE, "x", true);
    bench.pass(10);
    bench.tick();
    bench.set(Rule::PoolLow, "y", true);
    for _ in 0..11 {
        bench.now = bench.now.plus(SECOND);
        bench.tick();
    }
    let due: Vec<_> = bench.alerts.due(bench.now).map(|(number, queued)| (number, queued.rule)).collect();
    assert_eq!(due.iter().map(|(_, rule)| *rule).collect::<Vec<_>>(), [RULE, Rule::PoolLow]);
    for (number, rule) in due.into_iter().rev() {
        bench.alerts.attempted(number, Attempt::Refused { why: "400".to_owned() }, 0, bench.now);
        assert_eq!(bench.alerts.given_up().next_back().map(|last| last.rule), Some(rule));
    }
    bench.store();
    bench.take_over();
    let rules: Vec<_> = bench.alerts.given_up().map(|given_up| given_up.rule).collect();
    assert_eq!(rules, [Rule::PoolLow, RULE]);
}

#[test]
fn whoever_forgets_is_reminded_however_seldom_people_are() {
    let mut bench = Bench::new();
    bench.policy.receivers = vec![Recipient { refresh: Some(600 * SECOND), ..Recipient::named("a") }];
    bench.policy.repeat_interval = Duration::from_hours(1_000);
    bench.set(RULE, "x", true);
    assert_eq!(bench.pass(41).len(), 1);
    assert_eq!(bench.pass(599), []);
    assert_eq!(bench.pass(31), [firing(RULE, &["x"])]);
}

#[test]
fn a_message_is_given_up_after_a_day() {
    let mut bench = Bench::new();
    bench.set(RULE, "x", true);
    for _ in 0..41 {
        bench.now = bench.now.plus(SECOND);
        bench.tick();
    }
    let (number, queued) = bench.alerts.due(bench.now).next().unwrap();
    let made = queued.made;
    let later = || Attempt::Later { after: None, why: "away".to_owned() };
    let last = made.plus(GIVE_UP);
    assert_eq!(bench.alerts.attempted(number, later(), 0, made), Some(Became::Waits));
    assert_eq!(bench.alerts.attempted(number, later(), 0, last), Some(Became::GivenUp));
    assert_eq!(bench.alerts.attempted(number, Attempt::Delivered, 0, last), None);
}

#[test]
fn everything_is_bounded() {
    let mut bench = Bench::new();
    for of in 0..MAX_INSTANCES + 5 {
        bench.set(RULE, &of.to_string(), true);
    }
    for _ in 0..2 {
        bench.tick();
        assert_eq!((bench.alerts.instances().count(), bench.alerts.overflow()), (MAX_INSTANCES, 5));
    }
    bench.wrong.clear();
    for of in 0..MAX_HISTORY + 10 {
        let past = Past {
            rule: RULE,
            labels: Labels::new(),
            summary: of.to_string(),
            started: bench.now,
            ended: bench.now,
        };
        bench.alerts.remember(past);
    }
    bench.store();
    bench.take_over();
    assert_eq!(bench.alerts.history().count(), MAX_HISTORY);
    assert_eq!(bench.alerts.history().next().unwrap().summary, "10");
    bench.set(RULE, "x", true);
    bench.pass(40);
    for _ in 0..2 * MAX_GIVEN_UP + 10 {
        bench.now = bench.now.plus(Duration::from_mins(10));
        bench.tick();
        bench.attempt(&Attempt::Refused { why: "400".to_owned() });
    }
    bench.take_over();
    assert_eq!(bench.alerts.given_up().count(), MAX_GIVEN_UP);
}

#[test]
fn a_fingerprint_stays_what_it_is() {
    let reading = Reading {
        rule: Rule::PoolLow,
        labels: [("model".to_owned(), "m".to_owned())].into(),
        fires: true,
        summary: String::new(),
        value: None,
    };
    // Receivers and stores know it: no release may change it.
    assert_eq!(reading.fingerprint(), "cc86434654332015");
    let other = Reading { labels: [("mod".to_owned(), "elm".to_owned())].into(), ..reading.clone() };
    assert_ne!(reading.fingerprint(), other.fingerprint());
}
