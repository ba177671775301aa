//! What holds for all messages of one receiver.

use super::*;

/// Two rules fire: each has a message for the receiver.
fn two_messages() -> Bench {
    let mut bench = Bench::new();
    bench.policy.group_wait = Duration::ZERO;
    bench.set(RULE, "x", true);
    bench.set(Rule::PoolLow, "y", true);
    for _ in 0..11 {
        bench.now = bench.now.plus(SECOND);
        bench.tick();
    }
    assert_eq!(bench.alerts.due(bench.now).count(), 2);
    bench
}

fn first_due(bench: &Bench) -> u64 {
    bench.alerts.due(bench.now).next().expect("a message").0
}

#[test]
fn a_pause_that_a_receiver_asks_for_holds_for_each_of_its_messages_and_no_others() {
    for (asked, kept) in [(5, 5), (7_200, 3_600)] {
        let mut bench = two_messages();
        let busy = Attempt::Later { after: Some(asked * SECOND), why: "429".to_owned() };
        bench.alerts.attempted(first_due(&bench), busy, 0, bench.now);
        let resumes = bench.now.plus(kept * SECOND);
        let just_before = Utc::from_ms(resumes.as_ms() - 1);
        assert_eq!(bench.alerts.due(just_before).count(), 0, "{asked}");
        assert_eq!(bench.alerts.due(resumes).count(), 2, "{asked}");
        bench.policy.receivers.push(Recipient::named("b"));
        bench.now = bench.now.plus(SECOND);
        bench.tick();
        let due: Vec<_> = bench.alerts.due(bench.now).map(|(_, queued)| queued.receiver.as_str()).collect();
        assert_eq!(due, ["b", "b"]);
    }
}

#[test]
fn a_message_that_cannot_be_delivered_does_not_hold_up_the_others() {
    let mut bench = two_messages();
    let broken = Attempt::Later { after: None, why: "500".to_owned() };
    bench.alerts.attempted(first_due(&bench), broken, 0, bench.now);
    assert_eq!(bench.alerts.due(bench.now).count(), 1);
}

#[test]
fn what_waits_for_a_receiver_that_takes_nothing_is_given_up_after_a_day() {
    let mut bench = two_messages();
    let (stopped, made) = (first_due(&bench), bench.alerts.outbox().map(|queued| queued.made).max());
    bench.alerts.attempted(stopped, Attempt::Never { why: "gone".to_owned() }, 0, bench.now);
    let tick = |bench: &mut Bench, now: Utc| bench.alerts.tick(Vec::new(), |_| false, &bench.policy, now);
    let last = made.expect("two messages").plus(GIVE_UP);
    let just_before = Utc::from_ms(last.as_ms() - 1);
    assert_eq!(tick(&mut bench, just_before), Vec::<String>::new());
    assert_eq!(bench.alerts.outbox().count(), 1);
    assert_eq!(tick(&mut bench, last), ["a"]);
    assert_eq!(bench.alerts.outbox().count(), 0);
    bench.store();
    bench.take_over();
    let given_up: Vec<_> =
        bench.alerts.given_up().map(|one| (one.rule, one.why.as_str(), one.at == last)).collect();
    let (first, second) = (given_up[0].0, given_up[1].0);
    assert_ne!(first, second);
    assert_eq!(given_up, [(first, "gone", false), (second, "gone", true)]);
    assert_eq!(bench.alerts.outbox().count(), 0, "it is gone from the store as well");
}

#[test]
fn what_no_leader_could_try_for_a_day_is_tried_once() {
    let mut bench = two_messages();
    bench.take_over();
    bench.now = bench.now.plus(GIVE_UP + SECOND);
    bench.tick();
    assert_eq!(bench.alerts.due(bench.now).count(), 2);
}
