//! The end of a process, as its clients see it.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Action, AnswerSpec, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually, free_port};
use serde_json::{Value, json};

use super::{MODEL, SLOW, SOON, Stream, chat};

/// Ends long after any scenario unless somebody ends it.
const ENDLESS: usize = 3_000;

async fn slow(chunks: usize) -> Sim {
    let mut world = World::pool(2, 1);
    world.answer = AnswerSpec { chunks, ..AnswerSpec::default() };
    world.latency = SLOW;
    Sim::start(world).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_properly_before_the_process_does() {
    let sim = slow(25).await;
    let mut config = sim.config();
    config["server"]["ops_port"] = json!(free_port());
    let mut gateway = Gateway::start(config).await;
    let ops = gateway.operator();
    let ready = async |wanted: u16| {
        eventually("readiness", SOON, || async {
            let answer = ops.get("/health/ready").await.ok()?;
            (answer.status == wanted).then_some(answer.text)
        })
        .await
    };
    ready(200).await;
    let stream = Stream::open(&gateway, "/v1/chat/completions", &chat(true)).await;
    gateway.signal("TERM");
    assert_eq!(ready(503).await.trim(), "draining");
    assert_eq!(ops.get("/health").await.expect("an answer").status, 200);
    eventually("new connections are refused", SOON, || {
        let request = gateway.client().get("/health");
        async move { request.await.is_err_and(|error| error.is_connect()).then_some(()) }
    })
    .await;
    let text = stream.rest().await;
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlives_the_drain_time_ends_with_an_error() {
    let sim = slow(ENDLESS).await;
    sim.rules(vec![Rule::new(Action::StallBeforeHeaders { ms: None }).model("gemini-2.5-pro")]);
    let mut config = sim.config();
    config["server"]["drain_timeout_secs"] = json!(1);
    let mut gateway = Gateway::start(config).await;
    let contents = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
    let native = format!("/v1beta/models/{MODEL}:streamGenerateContent");
    let compat = Stream::open(&gateway, "/v1/chat/completions", &chat(true)).await;
    let events = Stream::open(&gateway, &format!("{native}?alt=sse"), &contents).await;
    let array = Stream::open(&gateway, &native, &contents).await;
    let silent = tokio::spawn(gateway.client().chat("gemini-2.5-pro", false));
    eventually("the silent request is upstream", SOON, || {
        let there = sim.log().iter().any(|request| request.model.as_deref() == Some("gemini-2.5-pro"));
        async move { there.then_some(()) }
    })
    .await;
    gateway.signal("TERM");

    let last_event = |text: &str| -> Value {
        let last = text.rsplit("data: ").next().expect("an event").trim();
        let errors = text.matches("\"error\"").count();
        assert_eq!(errors, 1, "{text}");
        serde_json::from_str(last).expect("JSON")
    };
    let text = compat.rest().await;
    assert!(!text.contains("[DONE]"), "an end that was not: {text}");
    assert_eq!(last_event(&text)["error"]["code"], 503);
    assert_eq!(last_event(&events.rest().await)["error"]["status"], "UNAVAILABLE");
    let array: Value = serde_json::from_str(&array.rest().await).expect("the array is closed");
    let last = array.as_array().and_then(|elements| elements.last()).expect("an element");
    assert_eq!(last["error"]["code"], 503);
    let silent = silent.await.expect("the request ends").expect("an answer");
    assert_eq!(silent.status, 503, "{}", silent.text);
    assert!(silent.json()["error"]["message"].is_string(), "{}", silent.text);
    assert_eq!(gateway.exit().await.code(), Some(0));
    eventually("no upstream call outlives the process", SOON, || {
        let left = sim.log().iter().filter(|request| !request.client_gone && !request.done).count();
        async move { (left == 0).then_some(()) }
    })
    .await;
    let calls = sim.log().iter().filter(|request| request.method == "POST").count();
    assert_eq!(calls, 4, "something was tried again on the way out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_gateway_ends_at_once() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut gateway = Gateway::start(sim.config()).await;
    // Its connection stays open, idle.
    let client = gateway.client();
    assert_eq!(client.chat(MODEL, false).await.expect("an answer").status, 200);
    let asked = Instant::now();
    gateway.signal("INT");
    assert_eq!(gateway.exit().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(4), "an idle connection kept it for {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_process_at_once() {
    let sim = slow(ENDLESS).await;
    let mut gateway = Gateway::start(sim.config()).await;
    let _stream = Stream::open(&gateway, "/v1/chat/completions", &chat(true)).await;
    gateway.signal("TERM");
    gateway.says("shutting down").await;
    let asked = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(143));
    assert!(asked.elapsed() < Duration::from_secs(4), "it took {:?}", asked.elapsed());
}
