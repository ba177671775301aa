//! What a new configuration leaves as it is.

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually};
use serde_json::{Value, json};

use super::{MODEL, SOON, calls};

const OTHER_MODEL: &str = "gemini-2.5-pro";

/// The group with one of the keys, and breakers that stay open for longer than the scenario takes.
fn with_key(sim: &Sim, id: &str) -> Value {
    let mut config = sim.config();
    config["circuit_breaker"] = json!({"recovery_timeout_secs": 600});
    let keys = config["groups"][0]["api_keys"].as_array_mut().expect("a list of keys");
    keys.retain(|key| key["id"] == id);
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_does_not_close_an_open_breaker() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let mut gateway = Gateway::start(with_key(&sim, "k1")).await;
    let client = gateway.client();
    sim.rules(vec![Rule::family(Family::Overloaded).model(MODEL)]);
    eventually("the breaker opens", SOON, || async {
        assert_eq!(client.chat(MODEL, false).await.expect("an answer").status, 503);
        gateway.logs().contains("the model's breaker opens").then_some(())
    })
    .await;
    sim.rules(Vec::new());
    for key in ["k2", "k3"] {
        gateway.write_config(&with_key(&sim, key));
        gateway.signal("HUP");
        eventually("the new key is in use", SOON, || async {
            let answer = client.chat(OTHER_MODEL, false).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text);
            (answer.header("x-keyfleet-key") == key).then_some(())
        })
        .await;
    }
    sim.forget();
    assert_eq!(client.chat(MODEL, false).await.expect("an answer").status, 503);
    assert!(calls(&sim).is_empty(), "the model was asked for although its breaker is open");
}
