//! Every base URL in use finds the right place upstream.

use keyfleet_simulator::{Surface, World};
use keyfleet_tests::{Gateway, Sim};
use reqwest::Method;
use serde_json::Value;

use super::{MODEL, calls, chat, contents, send};

const BEARER: (&str, &str) = ("authorization", "Bearer placeholder");
const GOOGLE: (&str, &str) = ("x-goog-api-key", "placeholder");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_base_url_reaches_its_surface() {
    use Surface::{Compat, Native};
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let check = async |path: &str, headers: &[(&str, &str)], surface: Surface, upstream: &str| {
        let body = match path {
            _ if path.contains("enerateContent") => contents(),
            _ if path.ends_with("completions") => chat(),
            _ => Value::Null,
        };
        let method = if body.is_null() { Method::GET } else { Method::POST };
        sim.forget();
        let answer = send(&gateway, method, path, headers, &body).await;
        let log = calls(&sim);
        assert_eq!(log.len(), 1, "{path}: {} {}", answer.status, answer.text);
        assert_eq!(
            (log[0].path_and_query.as_str(), log[0].surface),
            (upstream, surface),
            "{path} {headers:?}"
        );
        assert_eq!(answer.status, log[0].status, "{path}: {}", answer.text);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    };
    let completions = "/v1beta/openai/chat/completions";
    for base in [
        "/v1beta/openai",
        "/v1/openai",
        "/v1alpha/openai",
        "/openai/v1",
        "/openai",
        "/v1",
        "",
        "/v1/v1",
        "//v1/",
        "/v1beta/openai/v1",
        "/v1beta/openai/",
    ] {
        check(&format!("{base}/chat/completions"), &[BEARER], Compat, completions).await;
    }
    for path in ["/v1beta/openai/models", "/openai/v1/models", "/v1/models", "/models"] {
        check(path, &[BEARER], Compat, "/v1beta/openai/models").await;
    }
    let generate = format!("models/{MODEL}:generateContent");
    for (base, upstream) in [
        ("/v1beta", "/v1beta"),
        ("/v1alpha", "/v1alpha"),
        ("/v1", "/v1"),
        ("/v1beta/v1", "/v1"),
        ("/v1beta/v1beta", "/v1beta"),
        ("//v1beta/", "/v1beta"),
    ] {
        check(&format!("{base}/{generate}"), &[GOOGLE], Native, &format!("{upstream}/{generate}")).await;
    }
    // A path that only the native surface has is native, whatever the credential.
    check(&format!("/v1/{generate}"), &[BEARER], Native, &format!("/v1/{generate}")).await;
    let encoded = generate.replace(':', "%3A");
    check(&format!("/v1beta/{encoded}"), &[GOOGLE], Native, &format!("/v1beta/{generate}")).await;
    let stream = format!("models/{MODEL}:streamGenerateContent");
    let (asked, upstream) =
        (format!("/v1beta/{stream}?alt=sse&key=placeholder"), format!("/v1beta/{stream}?alt=sse"));
    check(&asked, &[], Native, &upstream).await;
    check("/v1/cachedContents", &[BEARER], Native, "/v1/cachedContents").await;
    check("/v1beta/files?key=placeholder&pageSize=3", &[], Native, "/v1beta/files?pageSize=3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_credential_decides_in_which_dialect_models_are_listed() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let listed = async |path: &str, headers: &[(&str, &str)]| {
        let list = send(&gateway, Method::GET, path, headers, &Value::Null).await.json();
        if list["object"] == "list" && list["data"].is_array() {
            Surface::Compat
        } else {
            assert!(list["models"].is_array(), "{list}");
            Surface::Native
        }
    };
    assert_eq!(listed("/v1/models", &[BEARER]).await, Surface::Compat);
    assert_eq!(listed("/v1/models", &[]).await, Surface::Compat);
    assert_eq!(listed("/v1/models", &[GOOGLE]).await, Surface::Native);
    assert_eq!(listed("/v1/models", &[("x-goog-api-client", "google-genai-sdk/2.0")]).await, Surface::Native);
    assert_eq!(listed("/v1/models?key=placeholder", &[]).await, Surface::Native);
    assert_eq!(listed("/v1/models?key=placeholder", &[BEARER]).await, Surface::Compat);
    assert_eq!(listed("/v1/models", &[GOOGLE, BEARER]).await, Surface::Compat);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobodys_path_is_answered_here_with_a_hint() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for path in ["/", "/v2/models", "/favicon.ico", "/admin"] {
        let answer = send(&gateway, Method::GET, path, &[], &Value::Null).await;
        assert_eq!(answer.status, 404, "{path}");
        let message = answer.json()["error"]["message"].as_str().map(str::to_owned).unwrap_or_default();
        assert!(message.contains("/v1"), "{path}: {}", answer.text);
    }
    assert!(calls(&sim).is_empty());
}
