//! Health and metrics.

use keyfleet_simulator::{Family, KeyState, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually, free_port};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, SOON, send};

const OPERATORS: [&str; 3] = ["/health/ready", "/health/detailed", "/metrics"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_needs_neither_a_token_nor_the_upstream() {
    let mut world = World::pool(3, 1);
    world.keys[2].state = KeyState::Expired;
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "a", "token": "a-token"}]);
    config["server"]["admin_token"] = json!("an-admin-token");
    let gateway = Gateway::start(config).await;
    let detailed = eventually("the prober has looked at every key", SOON, || async {
        let health = gateway.client().get("/health/detailed").await.expect("an answer").json();
        let seen = sim.log().iter().filter(|request| request.done).count();
        (seen == 3 && health["keys_by_state"]["disabled"] == 1 && !health["last_validated"].is_null())
            .then_some(health)
    })
    .await;
    assert_eq!((&detailed["status"], &detailed["projects"]), (&json!("ready"), &json!(3)));
    assert_eq!(detailed["keys_by_state"], json!({"perfect": 2, "disabled": 1}));
    let dead = detailed["keys"].as_array().and_then(|keys| keys.iter().find(|key| key["id"] == "k3"));
    let block = &dead.expect("the dead key")["blocks"][0];
    assert_eq!((&block["scope"], &block["reason"]), (&json!("key"), &json!("invalid_key")));
    assert!(["k1", "k2"].iter().any(|key| detailed["last_validated"]["key"] == *key), "{detailed}");
    assert!(detailed["state_age_ms"].is_u64() && detailed["uptime_seconds"].is_u64(), "{detailed}");
    sim.forget();
    for path in OPERATORS.iter().chain(&["/health"]) {
        let answer = send(&gateway, Method::GET, path, &[], &Value::Null).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
    assert!(sim.log().is_empty(), "looking at the health called the upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_errors_are_told_with_key_model_and_reason() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    sim.rules(vec![Rule::family(Family::PerMinute429).model(MODEL).times(1)]);
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    let refused = sim.log().into_iter().find(|request| request.status == 429).expect("a refusal");
    let detailed = gateway.client().get("/health/detailed").await.expect("an answer").json();
    let last = &detailed["last_errors"][0];
    assert_eq!(last["key"].as_str(), refused.key_id.as_deref());
    assert_eq!((&last["model"], &last["reason"]), (&json!(MODEL), &json!("per_minute")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_happens() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for _ in 0..3 {
        assert_eq!(gateway.client().chat(MODEL, true).await.expect("an answer").status, 200);
    }
    assert_eq!(gateway.client().get("/v1/nothing").await.expect("an answer").status, 404);
    let served = r#"keyfleet_requests_total{surface="openai",status="200"}"#;
    eventually("three requests are counted", SOON, || async {
        (gateway.metric(served).await == Some(3.0)).then_some(())
    })
    .await;
    assert_eq!(gateway.metric(r#"keyfleet_keys{state="perfect"}"#).await, Some(2.0));
    assert_eq!(gateway.metric("keyfleet_inflight_requests").await, Some(0.0));
    assert_eq!(gateway.metric("keyfleet_buffered_body_bytes").await, Some(0.0));
    assert!(
        gateway
            .metric(r#"keyfleet_tokens_total{direction="output"}"#)
            .await
            .is_some_and(|tokens| tokens > 0.0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_for_operators_takes_all_but_health() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["ops_port"] = json!(free_port());
    config["server"]["admin_token"] = json!("an-admin-token");
    let gateway = Gateway::start(config).await;
    let (clients, operators) = (gateway.client(), gateway.operator());
    for path in OPERATORS {
        assert_eq!(operators.get(path).await.expect("an answer").status, 200, "{path}");
        assert_eq!(clients.get(path).await.expect("an answer").status, 404, "{path}");
    }
    for client in [&clients, &operators] {
        let health = client.get("/health").await.expect("an answer");
        assert_eq!((health.status, health.text.as_str()), (200, "ok\n"));
    }
    let probe = async |client: &keyfleet_tests::Client| {
        let request = client.request(Method::POST, "/admin/keys/k1/probe").bearer_auth("an-admin-token");
        keyfleet_tests::read(request).await.expect("an answer").status
    };
    assert_eq!((probe(&clients).await, probe(&operators).await), (404, 202));
    assert_eq!(clients.chat(MODEL, false).await.expect("an answer").status, 200);
    assert_eq!(
        operators.chat(MODEL, false).await.expect("an answer").status,
        404,
        "operators' port serves clients"
    );
}
