//! The contract of the bus, for both worlds.

use std::sync::Arc;

use keyfleet_core::message::{Answer, Hint, MOST_TRACES, Report};
use keyfleet_fabric::bus::{Heard, Told, Unreachable};
use tokio::time::timeout;

use crate::world::{World, ask, beat, delta, heard, hint, lead, report, told, told_report, traces, until};

macro_rules! suite {
    ($($scenario:ident),+ $(,)?) => {
        mod local {
            $(#[tokio::test] async fn $scenario() { super::$scenario(super::World::local()).await; })+
        }
        mod nats {
            $(#[tokio::test] async fn $scenario() { super::$scenario(super::World::nats().await).await; })+
        }
    };
}

suite! {
    a_report_arrives_as_it_was_sent,
    a_repeated_report_is_stored_once,
    reports_wait_for_a_leader,
    a_question_is_answered,
    a_question_without_an_answer_times_out,
    a_question_without_a_leader_is_met_with_silence,
    a_leader_that_resigned_answers_nothing_more,
    decisions_reach_every_listener_in_order,
    a_hint_reaches_gateways_and_leader,
    what_caused_a_report_or_a_hint_travels_with_it,
    a_slow_listener_is_told_that_it_missed_some,
    a_resignation_is_heard,
    a_new_leader_continues_after_the_cursor,
    a_leader_can_go_back_to_its_cursor,
    a_stranger_to_the_stream_hears_it_from_the_beginning,
    nothing_is_lost_by_not_waiting_for_it,
}

async fn nothing_is_lost_by_not_waiting_for_it(mut world: World) {
    lead(&mut *world.leader).await;
    let gateway = world.gateway().await;
    let mut news = gateway.listen().await.unwrap();
    for n in 1..=50 {
        gateway.report(&report("a", n)).await.unwrap();
        world.leader.publish(&delta(n)).await.unwrap();
    }
    let impatient = std::time::Duration::from_micros(50);
    let (mut reports, mut deltas) = (0, 0);
    let start = std::time::Instant::now();
    while reports < 50 || deltas < 50 {
        assert!(start.elapsed() < crate::world::LONG, "{reports} reports and {deltas} deltas came");
        if let Ok(Told::Report { position, .. }) = timeout(impatient, world.leader.next()).await {
            reports += 1;
            assert_eq!(position, reports);
        }
        if let Ok(heard) = timeout(impatient, news.next()).await {
            deltas += 1;
            assert_eq!(heard, Heard::Delta(Arc::new(delta(deltas))));
        }
    }
}

async fn a_report_arrives_as_it_was_sent(mut world: World) {
    let position = lead(&mut *world.leader).await;
    assert_eq!((position.before, position.last), (0, 0));
    let gateway = world.gateway().await;
    for seq in 1..=300 {
        gateway.report(&report("a", seq)).await.unwrap();
    }
    for seq in 1..=300 {
        assert_eq!(told_report(&mut *world.leader).await, (report("a", seq), seq));
    }
}

async fn what_caused_a_report_or_a_hint_travels_with_it(mut world: World) {
    lead(&mut *world.leader).await;
    let gateway = world.gateway().await;
    let mut news = gateway.listen().await.unwrap();
    for (seq, n) in [(1, 1), (2, 0), (3, MOST_TRACES as u64)] {
        let caused = Report { traces: traces(n), ..report("a", seq) };
        gateway.report(&caused).await.unwrap();
        assert_eq!(told_report(&mut *world.leader).await, (caused, seq));
    }
    for trace in [None, traces(1).pop()] {
        let caused = Hint { trace, ..hint("a") };
        gateway.hint(&caused);
        assert_eq!(heard(&mut *news).await, Heard::Hint(caused.clone()));
        let Told::Hint(told) = told(&mut *world.leader).await else { panic!("no hint") };
        assert_eq!(told, caused);
    }
}

async fn a_repeated_report_is_stored_once(mut world: World) {
    lead(&mut *world.leader).await;
    let (first, second) = (world.gateway().await, world.gateway().await);
    for gateway in [&first, &second] {
        gateway.report(&report("a", 1)).await.unwrap();
        gateway.report(&report("b", 1)).await.unwrap();
    }
    first.report(&report("a", 2)).await.unwrap();
    for (expected, position) in [(report("a", 1), 1), (report("b", 1), 2), (report("a", 2), 3)] {
        assert_eq!(told_report(&mut *world.leader).await, (expected, position));
    }
}

async fn reports_wait_for_a_leader(mut world: World) {
    let gateway = world.gateway().await;
    let stream = lead(&mut *world.leader).await.stream;
    world.leader.resign().await;
    gateway.report(&report("a", 1)).await.unwrap();
    let position = world.leader.lead(&stream, 0).await.unwrap();
    assert_eq!((position.stream, position.last), (stream, 1));
    assert_eq!(told_report(&mut *world.leader).await, (report("a", 1), 1));
}

async fn a_question_is_answered(mut world: World) {
    lead(&mut *world.leader).await;
    let gateway = world.gateway().await;
    let answer = tokio::spawn(async move { gateway.ask(ask("k7")).await });
    let Told::Ask(asked, asker) = told(&mut *world.leader).await else { panic!("no question") };
    assert_eq!(asked, ask("k7"));
    asker.answer(Answer::Refused { why: "unknown".to_owned() });
    assert_eq!(answer.await.unwrap(), Ok(Answer::Refused { why: "unknown".to_owned() }));
}

async fn a_question_without_an_answer_times_out(mut world: World) {
    lead(&mut *world.leader).await;
    let gateway = world.gateway().await;
    let (answer, told) = tokio::join!(gateway.ask(ask("k7")), told(&mut *world.leader));
    assert!(matches!(told, Told::Ask(..)));
    assert_eq!(answer, Err(Unreachable::Silent));
}

async fn a_question_without_a_leader_is_met_with_silence(mut world: World) {
    let gateway = world.gateway().await;
    assert_eq!(gateway.ask(ask("k7")).await, Err(Unreachable::Silent));
    lead(&mut *world.leader).await;
    world.leader.resign().await;
    let start = std::time::Instant::now();
    assert_eq!(gateway.ask(ask("k7")).await, Err(Unreachable::Silent));
    assert!(start.elapsed() < crate::world::ASK, "it is known at once that nobody leads");
}

async fn a_leader_that_resigned_answers_nothing_more(mut world: World) {
    lead(&mut *world.leader).await;
    let gateway = world.gateway().await;
    let (answer, ()) = tokio::join!(gateway.ask(ask("k7")), async {
        let Told::Ask(_, asker) = told(&mut *world.leader).await else { panic!("no question") };
        world.leader.resign().await;
        asker.answer(Answer::Done);
    });
    assert_eq!(answer, Err(Unreachable::Silent));
}

async fn decisions_reach_every_listener_in_order(mut world: World) {
    lead(&mut *world.leader).await;
    let (first, second) = (world.gateway().await, world.gateway().await);
    let mut listeners = [first.listen().await.unwrap(), second.listen().await.unwrap()];
    for rev in 1..=100 {
        world.leader.publish(&delta(rev)).await.unwrap();
        world.leader.beat(beat(rev)).await.unwrap();
    }
    for news in &mut listeners {
        for rev in 1..=100 {
            assert_eq!(heard(&mut **news).await, Heard::Delta(Arc::new(delta(rev))));
            assert_eq!(heard(&mut **news).await, Heard::Beat(beat(rev)));
        }
    }
}

async fn a_hint_reaches_gateways_and_leader(mut world: World) {
    lead(&mut *world.leader).await;
    let (first, second) = (world.gateway().await, world.gateway().await);
    let mut news = second.listen().await.unwrap();
    first.hint(&hint("a"));
    assert_eq!(heard(&mut *news).await, Heard::Hint(hint("a")));
    let Told::Hint(told) = told(&mut *world.leader).await else { panic!("no hint") };
    assert_eq!(told, hint("a"));
}

async fn a_slow_listener_is_told_that_it_missed_some(mut world: World) {
    lead(&mut *world.leader).await;
    let (slow, quick) = (world.gateway().await, world.gateway().await);
    let (mut slow, mut quick) = (slow.listen().await.unwrap(), quick.listen().await.unwrap());
    // The quick one sets the pace, so that nothing is refused on the way.
    for rev in 1..=10_000 {
        world.leader.publish(&delta(rev)).await.unwrap();
        if rev % 100 == 0 {
            until(&mut *quick, |heard| *heard == Heard::Delta(Arc::new(delta(rev)))).await;
        }
    }
    until(&mut *slow, |heard| *heard == Heard::Missed).await;
}

async fn a_resignation_is_heard(mut world: World) {
    lead(&mut *world.leader).await;
    let gateway = world.gateway().await;
    let mut news = gateway.listen().await.unwrap();
    world.leader.resign().await;
    until(&mut *news, |heard| *heard == Heard::Resigned).await;
}

async fn a_new_leader_continues_after_the_cursor(mut world: World) {
    let stream = lead(&mut *world.leader).await.stream;
    let gateway = world.gateway().await;
    for seq in 1..=5 {
        gateway.report(&report("a", seq)).await.unwrap();
    }
    for _ in 1..=3 {
        told_report(&mut *world.leader).await;
    }
    world.leader.resign().await;
    let mut world = world.succeed().await;
    let position = world.leader.lead(&stream, 2).await.unwrap();
    assert_eq!((position.stream, position.before, position.last), (stream, 0, 5));
    for seq in 3..=5 {
        assert_eq!(told_report(&mut *world.leader).await, (report("a", seq), seq));
    }
    let (answer, ()) = tokio::join!(gateway.ask(ask("k7")), async {
        let Told::Ask(_, asker) = told(&mut *world.leader).await else { panic!("no question") };
        asker.answer(Answer::Done);
    });
    assert_eq!(answer, Ok(Answer::Done));
}

async fn a_leader_can_go_back_to_its_cursor(mut world: World) {
    let stream = lead(&mut *world.leader).await.stream;
    let gateway = world.gateway().await;
    for seq in 1..=3 {
        gateway.report(&report("a", seq)).await.unwrap();
        told_report(&mut *world.leader).await;
    }
    world.leader.lead(&stream, 1).await.unwrap();
    assert_eq!(told_report(&mut *world.leader).await, (report("a", 2), 2));
}

async fn a_stranger_to_the_stream_hears_it_from_the_beginning(mut world: World) {
    let stream = lead(&mut *world.leader).await.stream;
    let gateway = world.gateway().await;
    gateway.report(&report("a", 1)).await.unwrap();
    gateway.report(&report("a", 2)).await.unwrap();
    let position = world.leader.lead("another stream", 2).await.unwrap();
    assert_eq!(position.stream, stream);
    assert_eq!(told_report(&mut *world.leader).await, (report("a", 1), 1));
    // A stream that forgot its end is heard from there.
    let position = world.leader.lead(&stream, 99).await.unwrap();
    assert_eq!(position.last, 2);
    gateway.report(&report("a", 3)).await.unwrap();
    assert_eq!(told_report(&mut *world.leader).await, (report("a", 3), 3));
}
