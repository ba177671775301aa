//! The end of a process, as its clients see it.

use std::fs;
use std::time::{Duration, Instant};

use keyfleet_simulator::{Action, AnswerSpec, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually, free_port};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

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

/// A request whose body does not come.
async fn half_a_request(gateway: &Gateway) -> TcpStream {
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100\r\n\r\n{";
    let buffered = async || gateway.metric("keyfleet_buffered_body_bytes").await;
    let before = buffered().await.expect("a figure");
    let address = gateway.url();
    let mut wire = TcpStream::connect(address.trim_start_matches("http://")).await.expect("a connection");
    wire.write_all(head.as_bytes()).await.expect("it is written");
    eventually("the body has begun to come", SOON, || async {
        (buffered().await == Some(before + 1.0)).then_some(())
    })
    .await;
    wire
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
    let mut unsent = half_a_request(&gateway).await;
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
    let mut answer = String::new();
    unsent.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting down"), "{answer}");
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

/// Idle connections are given a moment to end, which may be longer than the drain is to take: that is nobody's loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_drain_is_only_complained_about_if_a_request_is_lost() {
    for busy in [false, true] {
        let sim = slow(ENDLESS).await;
        let mut config = sim.config();
        config["server"]["drain_timeout_secs"] = json!(0);
        let mut gateway = Gateway::start(config).await;
        // Its connection stays open, idle.
        let client = gateway.client();
        assert_eq!(client.get("/health").await.expect("an answer").status, 200);
        let stream =
            if busy { Some(Stream::open(&gateway, "/v1/chat/completions", &chat(true)).await) } else { None };
        gateway.signal("TERM");
        assert_eq!(gateway.exit().await.code(), Some(0));
        assert_eq!(gateway.logs().contains("the drain time is over"), busy, "{}", gateway.logs());
        drop(stream);
    }
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

/// Nothing that the gateway writes reaches it, not even the last event: it is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_cannot_hold_the_process() {
    let mut world = World::pool(1, 1);
    // More than the sockets on the way hold.
    world.answer = AnswerSpec { chunks: 200, chunk_bytes: 64 * 1024, ..AnswerSpec::default() };
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    config["server"]["drain_timeout_secs"] = json!(0);
    let mut gateway = Gateway::start(config).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let address = gateway.url().trim_start_matches("http://").parse().expect("an address");
    let mut unread = socket.connect(address).await.expect("a connection");
    let body = chat(true).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length:";
    unread.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await.expect("it is written");
    let mut stuck = (0, 0);
    eventually("the gateway can write no more", SOON, || {
        let queued = queued_for(unread.local_addr().expect("an address").port());
        stuck = (queued, if queued > 0 && queued == stuck.0 { stuck.1 + 1 } else { 0 });
        async move { (stuck.1 == 10).then_some(()) }
    })
    .await;
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
    gateway.says("some connections did not end in time").await;
}

/// Bytes that were written for this peer and that it has not taken.
fn queued_for(port: u16) -> u64 {
    let table = fs::read_to_string("/proc/net/tcp").expect("the system's sockets");
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let peer = format!("0100007F:{port:04X}");
    let socket = sockets.into_iter().find(|fields| fields.get(2) == Some(&peer.as_str()));
    let queue = socket.and_then(|fields| u64::from_str_radix(fields[4].split(':').next()?, 16).ok());
    queue.unwrap_or_default()
}
