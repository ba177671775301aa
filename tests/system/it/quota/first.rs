//! The first request for a quota has to wait for a lease of it. It is served all the same.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim, read};
use reqwest::Method;
use serde_json::json;

use super::{MODEL, limited};

const MODELS: [&str; 4] = [MODEL, "gemini-2.5-pro", "gemini-2.5-flash-lite", "gemini-3.5-flash"];

/// It waits for two: one on its client's limit, and one on the key's quota.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_client_with_a_limit_of_its_own() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = limited(&sim, &json!({"rpm": 1}));
    // A busy machine is no refusal.
    config["quota"]["lease_wait_ms"] = json!(2_000);
    let token = |model: &str| format!("client-token-of-{model}");
    let clients = MODELS.map(|model| json!({"name": model.replace('.', "-"), "token": token(model)}));
    config["server"]["clients"] = json!(clients);
    config["rate_limit"] = json!({"requests_per_minute": 10});
    let gateway = Gateway::start(config).await;
    for model in MODELS {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Say something."}]});
        let request = gateway.client().request(Method::POST, "/v1/chat/completions");
        let request = request.bearer_auth(token(model)).header("content-type", "application/json");
        let answer = read(request.body(body.to_string())).await.expect("an answer");
        assert_eq!(answer.status, 200, "{model}: {}", answer.text);
    }
}
