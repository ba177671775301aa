//! The headers that pass, in both directions, and our own.

use keyfleet_simulator::{Action, Family, Rule, World};
use keyfleet_tests::{Gateway, Sim};
use reqwest::Method;
use serde_json::Value;

use super::{calls, chat, send};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_the_client_stays_here() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let stripped = [
        ("cookie", "session=1"),
        ("x-stainless-lang", "python"),
        ("x-stainless-retry-count", "1"),
        ("forwarded", "for=192.0.2.1"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-host", "gateway.example"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "192.0.2.1"),
        ("via", "1.1 proxy"),
        ("x-goog-user-project", "somebody-elses"),
        ("proxy-authorization", "Basic eDp5"),
        ("te", "trailers"),
        ("connection", "keep-alive, x-secret-hop"),
        ("x-secret-hop", "1"),
        ("x-keyfleet-session", "s"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("accept-encoding", "gzip, br"),
    ];
    let kept = [
        ("user-agent", "a-client/1.0"),
        ("accept", "application/json"),
        ("x-goog-api-client", "google-genai-sdk/2.0"),
        ("x-server-timeout", "600"),
        ("openai-organization", "org"),
        ("content-type", "application/json"),
    ];
    let headers: Vec<_> = stripped.iter().chain(&kept[..5]).copied().collect();
    let answer = send(&gateway, Method::POST, "/openai/v1/chat/completions", &headers, &chat()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let request = calls(&sim).remove(0);
    for (name, value) in stripped {
        let found = request.header(name).filter(|found| *found == value || name != "accept-encoding");
        assert_eq!(found, None, "{name} went upstream");
    }
    for (name, value) in kept {
        assert_eq!(request.header(name), Some(value), "{name} did not arrive");
    }
    let host = sim.url();
    assert_eq!(request.header("host"), host.strip_prefix("http://"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_concerns_the_upstreams_connection_stays_there() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let direct = keyfleet_tests::Client::new(sim.url());
    let plain = direct.get("/v1beta/models").await.expect("an answer");
    assert!(!plain.header("alt-svc").is_empty(), "the upstream sends it");
    sim.rules(vec![Rule::new(Action::Status {
        status: 200,
        body: r#"{"object":"list","data":[]}"#.into(),
        headers: [
            ("set-cookie", "a=b"),
            ("keep-alive", "timeout=5"),
            ("x-custom", "kept"),
            ("etag", "\"1\""),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        content_type: None,
    })]);
    let answer = send(&gateway, Method::GET, "/v1/models", &[], &Value::Null).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    for name in ["alt-svc", "set-cookie", "keep-alive"] {
        assert_eq!(answer.header(name), "", "{name}");
    }
    assert_eq!((answer.header("x-custom"), answer.header("etag")), ("kept", "\"1\""));
    assert!(answer.header("content-type").starts_with("application/json"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_says_which_request_and_which_key_it_was() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let path = "/v1/chat/completions";
    let answer = send(&gateway, Method::POST, path, &[("x-request-id", "mine-1")], &chat()).await;
    assert_eq!((answer.header("x-request-id"), answer.header("x-keyfleet-attempts")), ("mine-1", "1"));
    assert_eq!(Some(answer.header("x-keyfleet-key")), calls(&sim)[0].key_id.as_deref());

    sim.rules(vec![Rule::family(Family::PerMinute429).path("/chat/").times(1)]);
    let answer = send(&gateway, Method::POST, path, &[], &chat()).await;
    assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (200, "2"));
    assert_eq!(Some(answer.header("x-keyfleet-key")), calls(&sim)[2].key_id.as_deref());
    let first = answer.header("x-request-id").to_owned();
    assert!(!first.is_empty());
    let answer = send(&gateway, Method::POST, path, &[], &chat()).await;
    assert_ne!(answer.header("x-request-id"), first);

    sim.rules(vec![Rule::family(Family::BadRequest)]);
    let answer = send(&gateway, Method::POST, path, &[("x-request-id", "mine-2")], &chat()).await;
    assert_eq!((answer.status, answer.header("x-request-id")), (400, "mine-2"));
    assert_eq!(answer.header("x-keyfleet-attempts"), "1");
    let answer = send(&gateway, Method::GET, "/nothing", &[("x-request-id", "mine-3")], &Value::Null).await;
    assert_eq!((answer.status, answer.header("x-request-id")), (404, "mine-3"));
    let logs = gateway.says("mine-3");
    logs.await;
    assert!(["mine-1", "mine-2"].iter().all(|id| gateway.logs().contains(id)), "a request without its line");
}
