//! Methods beside GET and POST, and what browsers ask for.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim};
use reqwest::Method;
use serde_json::{Value, json};

use super::{calls, chat, send};

const ORIGIN: &str = "https://app.example";
const PREFLIGHT: [(&str, &str); 3] = [
    ("origin", ORIGIN),
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type,x-stainless-os,x-goog-api-key"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_of_a_listed_origin_may_call() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["cors_allowed_origins"] = json!([ORIGIN]);
    config["server"]["clients"] = json!([{"name": "a", "token": "browser-token"}]);
    let gateway = Gateway::start(config).await;
    let path = "/v1/chat/completions";
    let preflight = send(&gateway, Method::OPTIONS, path, &PREFLIGHT, &Value::Null).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, ORIGIN));
    assert!(preflight.header("access-control-allow-methods").contains("POST"));
    let allowed = preflight.header("access-control-allow-headers").to_ascii_lowercase();
    for (_, names) in &PREFLIGHT[2..] {
        assert!(names.split(',').all(|name| allowed.contains(name)), "{allowed}");
    }
    assert!(calls(&sim).is_empty(), "a preflight went upstream");
    let token = ("authorization", "Bearer browser-token");
    let answer = send(&gateway, Method::POST, path, &[("origin", ORIGIN), token], &chat()).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ORIGIN));
    assert!(answer.header("access-control-expose-headers").contains("retry-after"));
    let refused = send(&gateway, Method::POST, path, &[("origin", ORIGIN)], &chat()).await;
    assert_eq!(
        (refused.status, refused.header("access-control-allow-origin")),
        (401, ORIGIN),
        "its script sees why"
    );

    let mut strange = PREFLIGHT;
    strange[0].1 = "https://evil.example";
    let answer = send(&gateway, Method::OPTIONS, path, &strange, &Value::Null).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_not_invited_by_default() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let path = "/v1/chat/completions";
    let preflight = send(&gateway, Method::OPTIONS, path, &PREFLIGHT, &Value::Null).await;
    assert_eq!(preflight.header("access-control-allow-origin"), "");
    let answer = send(&gateway, Method::POST, path, &[("origin", ORIGIN)], &chat()).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_is_answered_here() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let answer = send(&gateway, Method::OPTIONS, "/v1/chat/completions", &[], &Value::Null).await;
    assert_eq!(answer.status, 204, "{}", answer.text);
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
        assert!(answer.header("allow").contains(method), "{method}: {}", answer.header("allow"));
    }
    assert!(calls(&sim).is_empty(), "it cost an upstream call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_get_without_the_body() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for path in ["/health", "/health/ready", "/metrics"] {
        let answer = send(&gateway, Method::HEAD, path, &[], &Value::Null).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, ""), "{path}");
    }
    let answer = send(&gateway, Method::HEAD, "/v1/models", &[], &Value::Null).await;
    let (request, text) = (calls(&sim).remove(0), answer.text.as_str());
    assert_eq!((request.method.as_str(), request.status), ("HEAD", answer.status));
    assert_eq!((text, answer.whole, answer.header("x-keyfleet-attempts")), ("", true, "1"));
    // A refusal has no body either.
    let answer = send(&gateway, Method::HEAD, "/nothing", &[], &Value::Null).await;
    assert_eq!((answer.status, answer.text.as_str()), (404, ""));
}
