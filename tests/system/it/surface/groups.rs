//! Which group of keys serves a request.

use std::collections::HashMap;

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Gateway, Sim};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, calls, contents, send};

/// One group for each key of the pool, with these options.
fn groups(sim: &Sim, options: &[Value]) -> Value {
    let mut config = sim.config();
    let pool = config["groups"][0].clone();
    let groups = options.iter().enumerate().map(|(at, options)| {
        let mut group = pool.clone();
        group["name"] = json!(format!("group-{at}"));
        group["api_keys"] = json!([pool["api_keys"][at]]);
        for (name, value) in options.as_object().expect("options") {
            group[name] = value.clone();
        }
        group
    });
    config["groups"] = groups.collect();
    config
}

/// How many of `requests` each key served.
async fn served(gateway: &Gateway, sim: &Sim, model: &str, requests: usize) -> HashMap<String, usize> {
    sim.forget();
    for _ in 0..requests {
        let answer = gateway.client().chat(model, false).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let mut counts = HashMap::new();
    for request in calls(sim).into_iter().filter(|request| request.status == 200) {
        *counts.entry(request.key_id.unwrap_or_default()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_priority_serves_when_the_first_cannot() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(groups(&sim, &[json!({"priority": 2}), json!({"priority": 1})])).await;
    assert_eq!(served(&gateway, &sim, MODEL, 10).await, HashMap::from([("k2".to_owned(), 10)]));
    sim.rules(vec![Rule::family(Family::PerMinute429).key("k2")]);
    assert_eq!(served(&gateway, &sim, MODEL, 10).await, HashMap::from([("k1".to_owned(), 10)]));
    let refused = calls(&sim).iter().filter(|request| request.status == 429).count();
    assert_eq!(refused, 1, "the first group was asked again inside its window");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_one_priority_share_by_weight() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(groups(&sim, &[json!({"weight": 3}), json!({"weight": 1})])).await;
    let counts = served(&gateway, &sim, MODEL, 120).await;
    let heavy = counts.get("k1").copied().unwrap_or_default();
    assert!((70..=110).contains(&heavy), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_goes_to_a_group_that_has_it() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(groups(
        &sim,
        &[
            json!({"models": ["gemini-2.5-flash*", "fast"], "model_aliases": {"fast": "gemini-2.5-flash"}}),
            json!({"models": ["gemini-2.5-pro"]}),
        ],
    ))
    .await;
    for (model, key) in [
        ("gemini-2.5-flash", "k1"),
        ("gemini-2.5-flash-lite", "k1"),
        ("fast", "k1"),
        ("gemini-2.5-pro", "k2"),
    ] {
        assert_eq!(served(&gateway, &sim, model, 4).await, HashMap::from([(key.to_owned(), 4)]), "{model}");
    }
    sim.forget();
    let compat = gateway.client().chat("gemini-4-carbon", false).await.expect("an answer");
    assert_eq!((compat.status, &compat.json()["error"]["type"]), (404, &json!("not_found_error")));
    let path = "/v1beta/models/gemini-4-carbon:generateContent";
    let native = send(&gateway, Method::POST, path, &[], &contents()).await;
    assert_eq!((native.status, &native.json()["error"]["status"]), (404, &json!("NOT_FOUND")));
    for answer in [&compat, &native] {
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains("gemini-4-carbon") && message.contains("groups[].models"), "{message}");
        assert_eq!(answer.header("retry-after"), "");
    }
    assert!(calls(&sim).is_empty());
}
