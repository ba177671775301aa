//! The bodies of requests: as they are, and within their limits.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim, eventually};
use reqwest::Method;
use serde_json::json;

use super::{MODEL, SOON, Wire, calls, chat, send};

const HEAD: &str =
    "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_arrives_byte_for_byte() {
    let mut world = World::pool(1, 1);
    world.log_bodies = true;
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    let long = "x".repeat(700_000);
    let odd = r#"{"z_unknown":{"b":1,"a":[1.0,1e2,-0.0]},"seed":9223372036854775807,"n":18446744073709551615,
        "model" : "gemini-2.5-flash" , "tail":"\u00e9\/é\ud83d\ude00", "messages":[{"role":"user","content":"a"}],
        "big":123456789012345678901234567890.123456789, "twice":1,"twice":2 }  "#;
    let bodies = [
        odd.to_owned(),
        format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}],"model":"{MODEL}"}}"#),
        format!("\u{feff}{odd}"),
        "not json at all".to_owned(),
    ];
    for path in ["/v1/chat/completions".to_owned(), format!("/v1beta/models/{MODEL}:generateContent")] {
        for body in &bodies {
            sim.forget();
            let request = gateway.client().request(Method::POST, &path).bearer_auth("placeholder");
            let request = request.header("content-type", "application/json").body(body.clone());
            let answer = keyfleet_tests::read(request).await.expect("an answer");
            let log = calls(&sim);
            assert_eq!(log.len(), 1, "{path}: {} {}", answer.status, answer.text);
            let arrived = log[0].body.as_deref().unwrap_or_default();
            assert!(arrived == body, "{path}: {body:.200} became {arrived:.200}");
            assert_eq!(
                (log[0].body_len, log[0].header("content-type")),
                (body.len(), Some("application/json"))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_without_a_length_arrives_as_well() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let text = chat().to_string();
    let (first, second) = text.split_at(20);
    let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    let mut wire = Wire::open(&gateway).await;
    wire.write(&format!("{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunks}")).await;
    let answer = wire.until("\u{0}").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(calls(&sim)[0].body_len, text.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_is_refused_before_it_has_come() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["max_body_bytes"] = json!(2_048);
    let gateway = Gateway::start(config).await;
    let piece = format!("400\r\n{}\r\n", "x".repeat(1_024));
    let mut chunked = Wire::open(&gateway).await;
    chunked.write(&format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{piece}{piece}{piece}")).await;
    let answer = chunked.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "the rest has not been sent: {answer}");
    let mut announced = Wire::open(&gateway).await;
    announced.write(&format!("{HEAD}Content-Length: 2049\r\n\r\n")).await;
    let answer = announced.until("}}").await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("2048 bytes"), "{answer}");
    assert!(calls(&sim).is_empty());
    // One byte less is no mistake of the gateway's to tell.
    let mut body = chat();
    body["user"] = json!("");
    body["user"] = json!("x".repeat(2_048 - body.to_string().len()));
    let answer = send(&gateway, Method::POST, "/v1/chat/completions", &[], &body).await;
    assert_ne!(answer.status, 413, "{}", answer.text);
    assert_eq!(calls(&sim)[0].body_len, 2_048);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_bodies_together_have_a_limit() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["max_body_bytes"] = json!(4_000);
    config["server"]["max_buffered_bytes"] = json!(4_096);
    let gateway = Gateway::start(config).await;
    let held = async |wanted: f64| {
        eventually("bytes are held", SOON, || async {
            (gateway.metric("keyfleet_buffered_body_bytes").await == Some(wanted)).then_some(())
        })
        .await;
    };
    let mut slow = Wire::open(&gateway).await;
    slow.write(&format!("{HEAD}Content-Length: 3900\r\n\r\n{}", "x".repeat(3_000))).await;
    held(3_000.0).await;
    let mut body = chat();
    body["messages"][0]["content"] = json!("x".repeat(1_200));
    let refused = send(&gateway, Method::POST, "/v1/chat/completions", &[], &body).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{}", refused.text);
    let small = send(&gateway, Method::POST, "/v1/chat/completions", &[], &chat()).await;
    assert_eq!(small.status, 200, "{}", small.text);
    drop(slow);
    held(0.0).await;
    let answer = send(&gateway, Method::POST, "/v1/chat/completions", &[], &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["max_body_bytes"] = json!(2_048);
    let gateway = Gateway::start(config).await;
    let body = chat().to_string();
    let mut wire = Wire::open(&gateway).await;
    wire.write(&format!("{HEAD}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    let interim = wire.until("\r\n\r\n").await;
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(calls(&sim).is_empty());
    wire.write(&body).await;
    let answer = wire.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(calls(&sim)[0].header("expect"), None);
    let mut wire = Wire::open(&gateway).await;
    wire.write(&format!("{HEAD}Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n")).await;
    let answer = wire.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "it is told to send what is refused: {answer}");
}
