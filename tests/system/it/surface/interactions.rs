//! Interactions: what they spend, and whose they are.

use keyfleet_simulator::{Action, Rule, World};
use keyfleet_tests::{Answer, Gateway, Sim, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, SOON, calls, send};

const PATH: &str = "/v1beta/interactions";

async fn ask(gateway: &Gateway, method: Method, path: &str, body: &Value) -> Answer {
    send(gateway, method, path, &[("x-goog-api-key", "placeholder")], body).await
}

/// The JSON of an answer, or of the last event of a stream that has any.
fn told(answer: &Answer) -> Value {
    let mut data: Vec<_> = answer.text.lines().filter_map(|line| line.strip_prefix("data: {")).collect();
    let last = data.pop().map(|json| format!("{{{json}"));
    serde_json::from_str(last.as_deref().unwrap_or(&answer.text)).expect("JSON")
}

/// What the metrics count, as whole numbers.
async fn tokens(gateway: &Gateway) -> [String; 2] {
    let mut shown = [const { String::new() }; 2];
    for (shown, direction) in shown.iter_mut().zip(["input", "output"]) {
        let name = format!("keyfleet_tokens_total{{direction=\"{direction}\"}}");
        *shown = format!("{:.0}", gateway.metric(&name).await.unwrap_or_default());
    }
    shown
}

/// A look at what was made long ago spends nothing, though it tells again what was spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn their_tokens_are_counted_once() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let mut spent = [0, 0];
    for stream in [false, true] {
        let body = json!({"model": MODEL, "input": "Say something.", "stream": stream});
        let made = told(&ask(&gateway, Method::POST, PATH, &body).await);
        let made = if stream { &made["interaction"] } else { &made };
        let told = ["total_input_tokens", "total_output_tokens"].map(|name| made["usage"][name].as_u64());
        spent = [spent[0] + told[0].expect("tokens"), spent[1] + told[1].expect("tokens")];
        let counted = spent.map(|tokens| tokens.to_string());
        eventually("they are counted", SOON, || async { (tokens(&gateway).await == counted).then_some(()) })
            .await;
        let path = format!("{PATH}/{}", made["id"].as_str().expect("an id"));
        let found = ask(&gateway, Method::GET, &path, &Value::Null).await;
        assert!(found.status == 200 && found.text.contains("total_input_tokens"), "{}", found.text);
        // Nor does an answer to what is done with it, which may be the interaction again.
        let cancelled = Action::Status {
            status: 200,
            body: found.text.clone(),
            headers: Vec::new(),
            content_type: Some("application/json".into()),
        };
        sim.rules(vec![Rule::new(cancelled).path("/cancel")]);
        let again = ask(&gateway, Method::POST, &format!("{path}/cancel"), &json!({})).await;
        assert_eq!(again.text, found.text);
        let line = format!("{} interactions were looked at", if stream { "two" } else { "one" });
        let served = r#"keyfleet_requests_total{surface="gemini",status="200"}"#;
        let requests = if stream { 6.0 } else { 3.0 };
        eventually(&line, SOON, || async { (gateway.metric(served).await == Some(requests)).then_some(()) })
            .await;
        assert_eq!(tokens(&gateway).await, counted);
    }
}

/// What is not stored is nobody's: there is nothing to go back to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_stored_is_not_remembered() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let lookups = "keyfleet_owner_lookups_total";
    for stream in [false, true] {
        for (store, asked) in [(json!(true), 0.0), (Value::Null, 0.0), (json!(false), 1.0)] {
            let mut body = json!({"model": MODEL, "input": "Say something.", "stream": stream});
            if !store.is_null() {
                body["store"] = store.clone();
            }
            let made = told(&ask(&gateway, Method::POST, PATH, &body).await);
            let made = if stream { &made["interaction"] } else { &made };
            let before = gateway.metric(lookups).await.expect("a figure");
            let id = made["id"].as_str().expect("an id");
            for _ in 0..3 {
                ask(&gateway, Method::GET, &format!("{PATH}/{id}"), &Value::Null).await;
            }
            let after = gateway.metric(lookups).await.expect("a figure");
            // Whose it is has to be asked, if nothing was remembered; that nobody knows is remembered.
            assert!((after - before - asked).abs() < 0.5, "store: {store}, stream: {stream}");
        }
    }
    assert!(calls(&sim).len() >= 12);
}
