//! Upstreams that fall silent, and clients that go away.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Action, AnswerSpec, Latency, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually, read};
use serde_json::json;

use super::{Form, SOON, alike, calls, events};

async fn start(world: World, options: &[(&str, u64)]) -> (Sim, Gateway) {
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    for (name, value) in options {
        config["server"][name] = json!(value);
    }
    let gateway = Gateway::start(config).await;
    (sim, gateway)
}

async fn until_given_up(sim: &Sim) {
    eventually("the upstream call is given up", SOON, || async {
        calls(sim).iter().any(|request| request.client_gone).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_falls_silent_is_ended_with_an_error() {
    let (sim, gateway) = start(World::pool(3, 1), &[("idle_timeout_secs", 1)]).await;
    for form in Form::EVENTS {
        sim.rules(vec![Rule::new(Action::StallMidStream { after_chunks: 2, ms: None })]);
        sim.forget();
        let began = Instant::now();
        let answer = form.ask(&gateway).await;
        let took = began.elapsed();
        assert!((Duration::from_millis(900)..SOON).contains(&took), "{form:?}: ended after {took:?}");
        assert!(answer.whole && !answer.text.contains("[DONE]"), "{form:?}: {}", answer.text);
        let events = events(&answer.text);
        assert_eq!(events.len(), 3, "two chunks and the error: {}", answer.text);
        assert_eq!(events[2]["error"]["code"], 503, "{form:?}: {}", answer.text);
        // The simulator breaks its side off by itself only after an hour.
        until_given_up(&sim).await;
    }
}

/// What lies between is no time that a client sees: the limit is on each silence, not on their sum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_stream_is_not_a_silent_one() {
    let mut world = World::pool(1, 1);
    world.latency = Latency::Fixed { ttft_ms: 10, gap_ms: 400 };
    let (_sim, gateway) = start(world, &[("idle_timeout_secs", 1), ("request_timeout_secs", 1)]).await;
    for form in Form::EVENTS {
        let answer = form.ask(&gateway).await;
        assert!(answer.whole, "{}", answer.text);
        assert!(events(&answer.text).iter().all(|event| event["error"].is_null()), "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_byte_that_does_not_come_is_a_time_out() {
    let (sim, gateway) = start(World::pool(3, 1), &[("request_timeout_secs", 1)]).await;
    let stalls =
        [Action::StallBeforeHeaders { ms: None }, Action::StallMidStream { after_chunks: 0, ms: None }];
    for stall in stalls {
        for form in Form::ALL {
            sim.rules(vec![Rule::new(stall.clone())]);
            sim.forget();
            let began = Instant::now();
            let answer = form.ask(&gateway).await;
            let (took, told) = (began.elapsed(), format!("{form:?} {stall:?}: {}", answer.text));
            assert!((Duration::from_millis(900)..SOON).contains(&took), "after {took:?}: {told}");
            assert_eq!(answer.status, 504, "{told}");
            assert_eq!(calls(&sim).len(), 1, "the time is over, also for another attempt: {told}");
            until_given_up(&sim).await;
            // Otherwise the next ones would meet an open breaker.
            sim.rules(Vec::new());
            assert_eq!(form.ask(&gateway).await.status, 200, "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_the_upstream_call_along() {
    let mut world = World::pool(2, 1);
    world.answer = AnswerSpec { chunks: 2_000, ..AnswerSpec::default() };
    world.latency = Latency::Fixed { ttft_ms: 1, gap_ms: 50 };
    let (sim, gateway) = start(world, &[]).await;
    for form in [Form::ChatEvents, Form::NativeEvents, Form::NativeArray] {
        sim.forget();
        let mut response = form.request(&gateway.client(), "placeholder").send().await.expect("an answer");
        response.chunk().await.expect("no end").expect("a first chunk");
        drop(response);
        let left = Instant::now();
        until_given_up(&sim).await;
        assert!(left.elapsed() < Duration::from_secs(2), "{form:?}: after {:?}", left.elapsed());
    }
    for form in Form::ALL {
        sim.rules(vec![Rule::new(Action::StallBeforeHeaders { ms: None })]);
        sim.forget();
        let request = tokio::spawn(read(form.request(&gateway.client(), "placeholder")));
        eventually("the upstream is asked", SOON, || async { (!calls(&sim).is_empty()).then_some(()) }).await;
        request.abort();
        until_given_up(&sim).await;
        assert_eq!(calls(&sim).len(), 1, "{form:?}: nobody waits for another attempt");
    }
}

/// `stream_heartbeat_secs`: comments in the silence, which change nothing of the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comments_fill_the_silence() {
    let (sim, gateway) = start(World::pool(3, 1), &[("stream_heartbeat_secs", 1)]).await;
    let before = Action::StallBeforeHeaders { ms: Some(2_500) };
    let within = Action::StallMidStream { after_chunks: 2, ms: Some(2_500) };
    for form in Form::EVENTS {
        sim.rules(Vec::new());
        let good = form.ask_directly(&sim).await;
        for stall in [before.clone(), within.clone()] {
            sim.rules(vec![Rule::new(stall.clone())]);
            let answer = form.ask(&gateway).await;
            let told = format!("{form:?} {stall:?}: {} {}", answer.status, answer.text);
            assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"), "{told}");
            assert!(answer.text.matches(": keep-alive\n\n").count() >= 2, "{told}");
            assert_eq!(alike(&answer.text.replace(": keep-alive\n\n", "")), alike(&good.text), "{told}");
        }
    }
    // Where there are no events there can be no comments.
    for form in [Form::ChatPlain, Form::NativePlain, Form::NativeArray] {
        sim.rules(Vec::new());
        let good = form.ask_directly(&sim).await;
        sim.rules(vec![Rule::new(before.clone())]);
        let answer = form.ask(&gateway).await;
        assert_eq!(answer.header("content-type"), good.header("content-type"), "{form:?}: {}", answer.text);
        assert_eq!(alike(&answer.text), alike(&good.text), "{form:?}");
    }
}

/// When the head has gone out with the first comment, an error can only be an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_error_is_an_event() {
    let options = [("stream_heartbeat_secs", 1), ("request_timeout_secs", 2)];
    let (sim, gateway) = start(World::pool(3, 1), &options).await;
    sim.rules(vec![Rule::new(Action::StallBeforeHeaders { ms: None })]);
    for form in Form::EVENTS {
        let answer = form.ask(&gateway).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{form:?}: {}", answer.text);
        assert!(answer.text.starts_with(": keep-alive\n\n"), "{form:?}: {}", answer.text);
        let events = events(&answer.text);
        assert_eq!(events.len(), 1, "{form:?}: {}", answer.text);
        assert!(events[0]["error"]["message"].is_string(), "{form:?}: {}", answer.text);
    }
}
