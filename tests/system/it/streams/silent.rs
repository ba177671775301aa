//! Upstreams that fall silent, and clients that go away.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use keyfleet_simulator::{Action, AnswerSpec, Latency, World};
use keyfleet_tests::{Answer, Gateway, Sim, eventually, read};
use serde_json::json;

use super::{Form, SOON, alike, calls, events, fault};

async fn start(world: World, options: &[(&str, u64)]) -> (Sim, Gateway) {
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    // What several time-outs do to a breaker is another story.
    config["circuit_breaker"]["failure_threshold"] = json!(100);
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
        sim.rules(vec![fault(Action::StallMidStream { after_chunks: 2, ms: None })]);
        sim.forget();
        let began = Instant::now();
        let answer = form.ask(&gateway).await;
        let took = began.elapsed();
        assert!((Duration::from_millis(900)..SOON).contains(&took), "{form:?}: ended after {took:?}");
        assert!(answer.whole && !answer.text.contains("[DONE]"), "{form:?}: {}", answer.text);
        let events = events(&answer.text);
        assert_eq!(events.len(), 3, "two chunks and the error: {}", answer.text);
        assert_eq!(events[2]["error"]["code"], 502, "{form:?}: {}", answer.text);
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
    let streams = [Form::ChatEvents, Form::NativeEvents, Form::NativeArray];
    // A head is no byte of an answer.
    let headless = Action::StallMidStream { after_chunks: 0, ms: None };
    for (stall, forms) in [(Action::StallBeforeHeaders { ms: None }, &Form::ALL[..]), (headless, &streams)] {
        sim.rules(vec![fault(stall.clone())]);
        sim.forget();
        let began = Instant::now();
        let answers = join_all(forms.iter().map(|form| form.ask(&gateway))).await;
        let took = began.elapsed();
        assert!((Duration::from_millis(900)..SOON).contains(&took), "{stall:?}: after {took:?}");
        for (answer, form) in answers.iter().zip(forms) {
            assert_eq!(answer.status, 504, "{form:?} {stall:?}: {}", answer.text);
        }
        assert_eq!(calls(&sim).len(), forms.len(), "{stall:?}: the time is over, also for another attempt");
        eventually("every upstream call is given up", SOON, || async {
            calls(&sim).iter().all(|request| request.client_gone).then_some(())
        })
        .await;
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
        sim.rules(vec![fault(Action::StallBeforeHeaders { ms: None })]);
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
    let good = join_all(Form::ALL.map(|form| form.ask_directly(&sim))).await;
    let before = Action::StallBeforeHeaders { ms: Some(2_500) };
    let within = Action::StallMidStream { after_chunks: 2, ms: Some(2_500) };
    for stall in [before, within] {
        sim.rules(vec![fault(stall.clone())]);
        let answers = join_all(Form::ALL.map(|form| form.ask(&gateway))).await;
        for ((answer, good), form) in answers.iter().zip(&good).zip(Form::ALL) {
            let told = format!("{form:?} {stall:?}: {} {}", answer.status, answer.text);
            assert_eq!(answer.status, 200, "{told}");
            assert!(!answer.header("x-request-id").is_empty(), "{told}");
            // The simulator's headers cannot be known when the first comment is due, but their kind can.
            let kind = |answer: &Answer| answer.header("content-type").split(';').next().map(str::to_owned);
            assert_eq!(kind(answer), kind(good), "{told}");
            let comments = answer.text.matches(": keep-alive\n\n").count();
            // Where there are no events there can be no comments.
            let expected = if Form::EVENTS.contains(&form) { 2..=3 } else { 0..=0 };
            assert!(expected.contains(&comments), "{comments} comments: {told}");
            assert_eq!(alike(&answer.text.replace(": keep-alive\n\n", "")), alike(&good.text), "{told}");
        }
    }
}

/// When the head has gone out with the first comment, an error can only be an event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_error_is_an_event() {
    let options = [("stream_heartbeat_secs", 1), ("request_timeout_secs", 2)];
    let (sim, gateway) = start(World::pool(3, 1), &options).await;
    sim.rules(vec![fault(Action::StallBeforeHeaders { ms: None })]);
    for form in Form::EVENTS {
        let answer = form.ask(&gateway).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{form:?}: {}", answer.text);
        assert!(answer.text.starts_with(": keep-alive\n\n"), "{form:?}: {}", answer.text);
        let events = events(&answer.text);
        assert_eq!(events.len(), 1, "{form:?}: {}", answer.text);
        assert!(events[0]["error"]["message"].is_string(), "{form:?}: {}", answer.text);
    }
    // An interaction's errors have a shape of their own.
    let request = gateway.client().request(reqwest::Method::POST, "/v1beta/interactions");
    let request = request.header("x-goog-api-key", "placeholder").header("x-request-id", "mine");
    let body = json!({"model": "gemini-2.5-flash", "input": "x", "stream": true}).to_string();
    let answer = read(request.body(body)).await.expect("an answer");
    assert_eq!((answer.status, answer.header("x-request-id")), (200, "mine"), "{}", answer.text);
    let event = answer.text.trim_start_matches(": keep-alive\n\n");
    assert!(event.starts_with("event: error\ndata: {") && event.ends_with("}\n\n"), "{}", answer.text);
    assert!(event.contains(r#""event_type":"error""#), "{}", answer.text);
}
