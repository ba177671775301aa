//! Rules: each fault as a client meets it, and what the log says of it.

use std::io::Read as _;

use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keyfleet_simulator::{Action, Family, Latency, Rule, World};
use serde_json::{Value, json};

use crate::client::{CHAT, HELLO, NATIVE, SOON, STREAM, chat, gemini, open, post, read, send};

const EVENTS: &str = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse";

/// One simulator and one rule: the answers to a compatible stream and to a native one.
async fn streams(action: Action) -> [crate::client::Answer; 2] {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    gemini.add_rule(Rule::new(action));
    let compat = post(&gemini, secret, CHAT, &chat("gemini-2.5-flash", true)).await;
    [compat, post(&gemini, secret, EVENTS, HELLO).await]
}

#[tokio::test]
async fn every_family_is_an_error_in_the_dialect_of_its_surface() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    for family in Family::ALL {
        gemini.clear_rules();
        gemini.add_rule(Rule::family(*family));
        let native = post(&gemini, secret, NATIVE, HELLO).await;
        let compat = post(&gemini, secret, CHAT, &chat("gemini-2.5-flash", false)).await;
        assert_eq!(native.status, compat.status);
        assert!(native.status >= 400, "{family:?}");
        if native.header("content-type").starts_with("application/json") {
            assert_eq!(native.json()["error"]["code"], native.status, "{family:?}");
            assert_eq!(compat.json()[0]["error"]["code"], native.status, "{family:?}");
            assert_eq!(native.message().is_empty(), compat.message().is_empty());
        } else {
            assert_eq!(native.body, compat.body, "{family:?}");
        }
    }
    let log = gemini.log();
    assert_eq!(log.last().unwrap().outcome, format!("rule:{}", Family::ALL.last().unwrap().name()));
}

#[tokio::test]
async fn an_error_inside_a_stream_is_an_event_or_a_bare_tail() {
    let event = |wrapped| Action::ErrorEvent { after_chunks: 1, family: Family::Overloaded, wrapped };
    let [compat, native] = streams(event(false)).await;
    let (compat, native) = (compat.text(), native.text());
    let [first, error, end] = compat.split("\n\n").collect::<Vec<_>>()[..] else { panic!("{compat}") };
    assert!(first.starts_with("data: {\"choices\"") && end.is_empty());
    let error: Value = serde_json::from_str(error.trim_start_matches("data: ")).unwrap();
    assert_eq!(error["error"]["status"], "UNAVAILABLE");
    assert!(native.ends_with("\"UNAVAILABLE\"}}\r\n\r\n"), "{native}");
    let [compat, _] = streams(event(true)).await;
    assert!(compat.text().contains("\n\ndata: [{\"error\":{\"code\":503"), "{}", compat.text());
    let [compat, native] = streams(Action::RawTail { after_chunks: 1, family: Family::Overloaded }).await;
    assert!(native.whole && native.text().contains("\r\n\r\n{\n  \"error\": {\n"), "{}", native.text());
    assert!(compat.text().contains("\n\n[{\n  \"error\": {\n"), "{}", compat.text());
}

#[tokio::test]
async fn a_stream_can_break_off_end_empty_or_repeat_its_end() {
    let [compat, native] = streams(Action::TruncateAt { bytes: 10 }).await;
    assert_eq!((compat.text().as_str(), compat.whole), ("data: {\"ch", false));
    assert_eq!((native.body.len(), native.whole), (10, false));
    let gemini = gemini(World::pool(1, 1)).await;
    gemini.add_rule(Rule::new(Action::TruncateAt { bytes: 10 }));
    let plain = post(&gemini, &gemini.world().secrets()[0], NATIVE, HELLO).await;
    assert_eq!((plain.body.len(), plain.whole), (10, false));
    assert!(plain.header("content-length").parse::<usize>().unwrap() > 100);
    for answer in streams(Action::EmptyStream).await {
        assert_eq!((answer.status, answer.body.len(), answer.whole), (200, 0, true));
    }
    for answer in streams(Action::Empty200).await {
        assert_eq!((answer.status, answer.header("content-length")), (200, "0"));
    }
    let [compat, _] = streams(Action::DuplicateDone).await;
    assert!(compat.text().ends_with("data: [DONE]\n\ndata: [DONE]\n\n"));
    let [compat, native] = streams(Action::EmptyCandidates).await;
    assert!(compat.text().starts_with("data: {\"choices\":[],"), "{}", compat.text());
    assert!(native.text().contains("\"blockReason\"") && !native.text().contains("candidates\": ["));
}

#[tokio::test]
async fn an_answer_can_change_its_wrapping_but_not_its_content() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    gemini.add_rule(Rule::new(Action::Gzip).times(1));
    gemini.add_rule(Rule::new(Action::BytePerChunk).times(1));
    gemini.add_rule(Rule::new(Action::NoUsage).times(1));
    let texts = |stream: &str| -> Vec<String> {
        let events = stream.split("\r\n\r\n").filter(|event| !event.is_empty());
        let text = |event: &str| {
            let event: Value = serde_json::from_str(event.trim_start_matches("data: ")).unwrap();
            event["candidates"][0]["content"]["parts"][0]["text"].as_str().unwrap().to_owned()
        };
        events.map(text).collect()
    };
    let zipped = post(&gemini, secret, EVENTS, HELLO).await;
    assert_eq!(zipped.header("content-encoding"), "gzip");
    let mut unzipped = String::new();
    flate2::read::GzDecoder::new(&zipped.body[..]).read_to_string(&mut unzipped).unwrap();
    let single = post(&gemini, secret, EVENTS, HELLO).await.text();
    let no_usage = post(&gemini, secret, EVENTS, HELLO).await.text();
    let plain = post(&gemini, secret, EVENTS, HELLO).await.text();
    assert_eq!(texts(&plain).len(), 5);
    for other in [&unzipped, &single, &no_usage] {
        assert_eq!(texts(other), texts(&plain));
    }
    assert!(plain.contains("usageMetadata") && !no_usage.contains("usageMetadata"));
}

#[tokio::test]
async fn brotli_comes_only_to_those_who_accept_it() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = gemini.world().secrets().remove(0);
    let ask = async |accepted: &str| {
        let headers = [("x-goog-api-key", secret.as_str()), ("accept-encoding", accepted)];
        send(&gemini, "POST", EVENTS, &headers, HELLO).await
    };
    gemini.add_rule(Rule::new(Action::Brotli));
    for refusing in ["identity", "gzip, deflate", "br;q=0, gzip"] {
        let plain = ask(refusing).await;
        assert_eq!((plain.header("content-encoding"), &plain.body[..6]), ("", &b"data: "[..]), "{refusing}");
    }
    let packed = ask("gzip, br;q=0.5").await;
    assert_eq!(packed.header("content-encoding"), "br");
    let mut text = String::new();
    brotli_decompressor::Decompressor::new(&packed.body[..], 4096).read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("\r\n\r\n").count(), 5, "{text}");
    // More than one block holds, and nothing at all.
    let mut world = gemini.world();
    world.answer.plain_bytes = 200_000;
    gemini.set_world(world).unwrap();
    let headers = [("x-goog-api-key", secret.as_str()), ("accept-encoding", "br")];
    let long = send(&gemini, "POST", NATIVE, &headers, HELLO).await;
    let mut text = String::new();
    brotli_decompressor::Decompressor::new(&long.body[..], 4096).read_to_string(&mut text).unwrap();
    assert!(serde_json::from_str::<Value>(&text).is_ok_and(|answer| answer["candidates"].is_array()));
}

#[tokio::test]
async fn a_plain_answer_can_stop_behind_its_headers() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    let key = [("x-goog-api-key", secret.as_str())];
    gemini.add_rule(Rule::new(Action::StallMidStream { after_chunks: 0, ms: None }));
    let mut stalled = open(&gemini, "POST", NATIVE, &key, HELLO).await.unwrap();
    let length: u64 = stalled.headers()["content-length"].to_str().unwrap().parse().unwrap();
    assert!(stalled.status() == 200 && length > 100, "{length}");
    let frame = tokio::time::timeout(std::time::Duration::from_millis(50), stalled.body_mut().frame()).await;
    assert!(frame.is_err(), "{frame:?}");
    drop(stalled);
    assert!(gemini.saw(SOON, |r| r.client_gone && !r.done && r.status == 200).await);
}

#[tokio::test]
async fn an_interaction_fails_in_its_own_words_also_in_its_stream() {
    let gemini = gemini(World::pool(1, 1)).await;
    gemini.add_rule(Rule::new(Action::ErrorEvent {
        after_chunks: 1,
        family: Family::Overloaded,
        wrapped: false,
    }));
    let asked = r#"{"model":"gemini-2.5-flash","input":"hi","stream":true}"#;
    let stream = post(&gemini, &gemini.world().secrets()[0], "/v1beta/interactions", asked).await.text();
    let last = stream.trim_end().rsplit("data: ").next().unwrap();
    let last: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{stream}"));
    assert_eq!((&last["event_type"], &last["error"]["code"]), (&json!("error"), &json!("unavailable")));
}

#[tokio::test]
async fn a_pause_delays_an_answer_and_changes_nothing_else() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    let pause = 40;
    let slow = [
        Action::StallBeforeHeaders { ms: Some(pause) },
        Action::StallMidStream { after_chunks: 2, ms: Some(pause) },
        Action::SlowLorisBody { ms: pause },
    ];
    for action in slow {
        gemini.clear_rules();
        gemini.add_rule(Rule::new(action.clone()));
        let begun = std::time::Instant::now();
        let answer = post(&gemini, secret, EVENTS, HELLO).await;
        assert!(begun.elapsed().as_millis() >= u128::from(pause), "{action:?}");
        assert_eq!(answer.text().matches("\r\n\r\n").count(), 5, "{action:?}");
    }
}

#[tokio::test]
async fn a_connection_can_be_refused_or_reset() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    let key = [("x-goog-api-key", secret.as_str())];
    gemini.add_rule(Rule::new(Action::Reset).path("gemini-2.5-flash").times(1));
    gemini.add_rule(Rule::new(Action::Refuse).path("gemini-2.5-flash").times(1));
    let refused = open(&gemini, "POST", NATIVE, &key, HELLO).await;
    assert!(refused.is_err(), "{refused:?}");
    let reset = open(&gemini, "POST", NATIVE, &key, HELLO).await.unwrap_err();
    assert!(!reset.is_incomplete_message(), "a goodbye instead of a reset: {reset:?}");
    assert_eq!(post(&gemini, secret, NATIVE, HELLO).await.status, 200);
    let outcomes: Vec<_> = gemini.log().into_iter().map(|r| (r.outcome, r.body_len, r.client_gone)).collect();
    let expected =
        [("rule:refuse", 0, false), ("rule:reset", HELLO.len(), false), ("ok", HELLO.len(), false)];
    assert_eq!(outcomes, expected.map(|(outcome, len, gone)| (outcome.to_owned(), len, gone)));
    gemini.add_rule(Rule::new(Action::Refuse).times(1));
    assert!(open(&gemini, "POST", NATIVE, &key, HELLO).await.is_err());
    assert_eq!((gemini.log().len(), gemini.stats().refused_connections), (3, 1));
}

#[tokio::test]
async fn the_log_knows_a_client_that_left_from_one_that_stayed() {
    let gemini =
        gemini(World { latency: Latency::Fixed { ttft_ms: 0, gap_ms: 1 }, ..World::pool(1, 1) }).await;
    let secret = &gemini.world().secrets()[0];
    let key = [("x-goog-api-key", secret.as_str())];
    let stays = send(&gemini, "POST", STREAM, &key, HELLO).await;
    assert!(stays.whole && gemini.saw(SOON, |r| r.seq == 1 && r.done && !r.client_gone).await);

    gemini.add_rule(Rule::new(Action::StallMidStream { after_chunks: 2, ms: None }).times(1));
    gemini.add_rule(Rule::new(Action::StallBeforeHeaders { ms: None }).times(1));
    let mut leaves = open(&gemini, "POST", STREAM, &key, HELLO).await.unwrap();
    assert!(leaves.body_mut().frame().await.unwrap().is_ok());
    drop(leaves);
    assert!(gemini.saw(SOON, |r| r.seq == 2 && r.client_gone && !r.done && r.status == 200).await);
    let early = tokio::spawn({
        let address = gemini.address();
        let request = format!(
            "POST {STREAM} HTTP/1.1\r\nhost: x\r\nx-goog-api-key: {secret}\r\ncontent-length: {}\r\n\r\n{HELLO}",
            HELLO.len()
        );
        async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
            stream
        }
    });
    let stream = early.await.unwrap();
    assert!(gemini.saw(SOON, |r| r.seq == 3 && r.outcome == "rule:stall_before_headers").await);
    drop(stream);
    assert!(gemini.saw(SOON, |r| r.seq == 3 && r.client_gone && r.status == 0).await);
    assert_eq!(gemini.stats().client_gone, 2);
    assert!(gemini.until(SOON, |gemini| gemini.stats().open_connections == 0).await);
}

#[tokio::test]
async fn one_http2_connection_carries_several_requests() {
    let gemini = gemini(World::pool(1, 1)).await;
    let stream = tokio::net::TcpStream::connect(gemini.address()).await.unwrap();
    let (executor, io) = (TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    gemini.add_rule(Rule::new(Action::Reset).times(1));
    for fails in [true, false] {
        let request = http::Request::post(format!("{}{NATIVE}", gemini.url()))
            .header("x-goog-api-key", &gemini.world().secrets()[0])
            .body(http_body_util::Full::<bytes::Bytes>::from(HELLO))
            .unwrap();
        let answer = sender.send_request(request).await;
        assert_eq!(answer.is_err(), fails, "{answer:?}");
    }
    let log = gemini.log();
    assert_eq!((log.len(), log[0].conn), (2, log[1].conn));
}

#[tokio::test]
async fn the_control_surface_does_over_http_what_the_library_does() {
    let gemini = gemini(World::default()).await;
    let control = async |method: &str, path: &str, body: &str| {
        let answer = send(&gemini, method, &format!("/__sim/{path}"), &[], body).await;
        (answer.status, answer.json())
    };
    let world = r#"{"keys":[{"id":"k","secret":"s3cret","project":"p"}],"answer":{"thinking":true}}"#;
    assert_eq!(control("PUT", "world", world).await.0, 200);
    assert_eq!(control("PUT", "world", r#"{"kees":[]}"#).await.0, 400);
    let rule = r#"{"match":{"key":"k","nth":{"only":2}},"action":{"family":"html_502"}}"#;
    assert_eq!(control("POST", "rules", rule).await.0, 200);
    let stall = r#"[{"times":0,"action":{"stall_before_headers":{}}},{"times":0,"action":"refuse"}]"#;
    assert_eq!(control("POST", "rules", stall).await.0, 200);
    assert_eq!(control("POST", "clock", r#"{"now":"2027-03-14T08:00:00Z"}"#).await.0, 200);
    let usage = post(&gemini, "s3cret", NATIVE, HELLO).await.json()["usageMetadata"].clone();
    assert_eq!(usage["thoughtsTokenCount"], 25);
    assert_eq!(post(&gemini, "s3cret", NATIVE, HELLO).await.status, 502);
    let (_, log) = control("GET", "log", "").await;
    let requests = log.as_array().unwrap();
    assert_eq!(requests.len(), 2);
    assert_eq!((&requests[1]["key_id"], &requests[1]["outcome"]), (&json!("k"), &json!("rule:html_502")));
    assert!(requests[0]["at_ms"].as_i64().unwrap() - 1_805_011_200_000 < 60_000);
    let (_, stats) = control("GET", "stats", "").await;
    assert_eq!((&stats["requests"], &stats["buckets"][0]["accepted"]), (&json!(2), &json!(1)));
    control("DELETE", "log", "").await;
    control("DELETE", "rules", "").await;
    assert!(gemini.log().is_empty());
    let last = read(open(&gemini, "GET", "/__sim/health", &[], "").await.unwrap()).await;
    assert_eq!(last.status, 200);
}

#[tokio::test]
async fn an_answer_can_hold_nothing_but_the_reason_for_its_end() {
    let blank = |reason: &str| Action::Blank { finish_reason: reason.to_owned() };
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    for (reason, compat_reason) in [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "SAFETY")] {
        gemini.clear_rules();
        gemini.add_rule(Rule::new(blank(reason)));
        let native = post(&gemini, secret, NATIVE, HELLO).await.json()["candidates"][0].clone();
        let content = if reason == "STOP" { json!({"role": "model"}) } else { Value::Null };
        assert_eq!((&native["content"], &native["finishReason"]), (&content, &json!(reason)));
        let compat = post(&gemini, secret, CHAT, &chat("gemini-2.5-flash", false)).await.json();
        let choice = json!({"finish_reason": compat_reason, "index": 0, "message": {"role": "assistant"}});
        assert_eq!(compat["choices"][0], choice);
        let events = post(&gemini, secret, EVENTS, HELLO).await.text();
        assert!(events.matches("data: ").count() == 1 && events.contains(reason), "{events}");
        let stream = post(&gemini, secret, CHAT, &chat("gemini-2.5-flash", true)).await.text();
        let delta = format!("{{\"delta\":{{\"role\":\"assistant\"}},\"finish_reason\":\"{compat_reason}\"");
        assert!(stream.matches("data: ").count() == 2 && stream.contains(&delta), "{stream}");
    }
}

#[tokio::test]
async fn a_connection_can_say_goodbye_and_still_answer() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    let key = [("x-goog-api-key", secret.as_str())];
    gemini.add_rule(Rule::new(Action::GoAway));
    let answer = send(&gemini, "POST", NATIVE, &key, HELLO).await;
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));

    let stream = tokio::net::TcpStream::connect(gemini.address()).await.unwrap();
    let (executor, io) = (TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = http::Request::post(format!("{}{NATIVE}", gemini.url())).header("x-goog-api-key", secret);
    let request = request.body(http_body_util::Full::<bytes::Bytes>::from(HELLO)).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.collect().await.unwrap().to_bytes().starts_with(b"{"));
    assert!(ended.await.unwrap().is_ok(), "the client has heard it and left");
}
