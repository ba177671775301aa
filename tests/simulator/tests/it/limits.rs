//! What the caller or the API itself puts an end to: time, and size.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Action, Latency, Rule, World};

use crate::client::{CHAT, HELLO, NATIVE, STREAM, chat, gemini, post, send};

#[tokio::test]
async fn an_answer_that_comes_after_the_callers_own_limit_is_a_504() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = gemini.world().secrets().remove(0);
    let bearer = format!("Bearer {secret}");
    gemini.add_rule(Rule::new(Action::StallBeforeHeaders { ms: Some(1_100) }));
    let ask = async |path: &str, limit: &str| {
        let key = if path == CHAT { ("authorization", &bearer) } else { ("x-goog-api-key", &secret) };
        let body = if path == CHAT { chat("gemini-2.5-flash", false) } else { HELLO.to_owned() };
        let begun = Instant::now();
        let headers = [(key.0, key.1.as_str()), ("x-server-timeout", limit)];
        (send(&gemini, "POST", path, &headers, &body).await, begun.elapsed())
    };
    for path in [NATIVE, CHAT] {
        let (late, after) = ask(path, "1").await;
        assert_eq!(
            (late.status, late.message().as_str()),
            (504, "Deadline expired before operation could complete.")
        );
        assert!(after >= Duration::from_secs(1), "{after:?}");
    }
    assert_eq!(ask(NATIVE, "600").await.0.status, 200);
    assert_eq!(ask(NATIVE, "soon").await.0.status, 200);
}

#[tokio::test]
async fn a_stream_ends_with_an_error_when_its_time_is_over() {
    let latency = Latency::Fixed { ttft_ms: 0, gap_ms: 400 };
    let gemini = gemini(World { latency, ..World::pool(1, 1) }).await;
    let secret = gemini.world().secrets().remove(0);
    let headers = [("x-goog-api-key", secret.as_str()), ("x-server-timeout", "1")];
    let late = send(&gemini, "POST", &format!("{STREAM}?alt=sse"), &headers, HELLO).await;
    let text = late.text();
    let events: Vec<&str> = text.trim_end().split("\r\n\r\n").collect();
    assert_eq!((late.status, late.whole, events.len()), (200, true, 4), "{text}");
    assert!(events[3].starts_with("data: {\"error\":{\"code\":504"), "{text}");
    gemini.add_rule(Rule::new(Action::StallMidStream { after_chunks: 0, ms: None }));
    let cut = send(&gemini, "POST", NATIVE, &headers, HELLO).await;
    assert!(cut.status == 200 && !cut.whole, "{}", cut.text());
}

#[tokio::test]
async fn what_comes_inline_has_a_size() {
    let gemini = gemini(World { inline_bytes: 1_000, ..World::pool(1, 1) }).await;
    let secret = &gemini.world().secrets()[0];
    let long = HELLO.replace("hello", &"h".repeat(1_000));
    for (path, body) in
        [(NATIVE, &long), (CHAT, &chat("gemini-2.5-flash", true).replace("hello", &"h".repeat(1_000)))]
    {
        let refused = post(&gemini, secret, path, body).await;
        assert_eq!(refused.message(), "Request payload size exceeds the limit: 1000 bytes.");
    }
    assert_eq!(post(&gemini, secret, NATIVE, HELLO).await.status, 200);
    let embed = "/v1beta/models/gemini-embedding-001:embedContent";
    let body = |size: usize| format!(r#"{{"content":{{"parts":[{{"text":"{}"}}]}}}}"#, "e".repeat(size));
    assert_eq!(post(&gemini, secret, embed, &body(2_000)).await.status, 200);
    let refused = post(&gemini, secret, embed, &body(4_194_304)).await;
    assert_eq!(refused.message(), "Request payload size exceeds the limit: 4194304 bytes.");
}
