//! What the bodies of requests may take together.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim};
use serde_json::json;

use super::{MODEL, chat};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_rewritten_counts_twice() {
    const MIB: usize = 1 << 20;
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["top_p"] = json!(0.9);
    config["server"]["max_body_bytes"] = json!(2 * MIB);
    config["server"]["max_buffered_bytes"] = json!(3 * MIB);
    config["groups"][0]["model_aliases"] = json!({"other-name": MODEL});
    let gateway = Gateway::start(config).await;
    let ask = async |fields: &[(&str, &str)], bytes: usize| {
        let mut body = chat(false);
        body["messages"][0]["content"] = json!("x".repeat(bytes));
        for (name, value) in fields {
            body[*name] = serde_json::from_str(value).expect("JSON");
        }
        let request = gateway.client().request(reqwest::Method::POST, "/v1/chat/completions");
        let request = request.bearer_auth("placeholder").body(body.to_string());
        keyfleet_tests::read(request).await.expect("an answer").status
    };
    let large = 2 * MIB - 1_000;
    assert_eq!(ask(&[("top_p", "1")], large).await, 200, "it is sent as it came");
    assert_eq!(ask(&[], large).await, 503, "the copy with top_p is too much");
    assert_eq!(
        ask(&[("top_p", "1"), ("model", "\"other-name\"")], large).await,
        503,
        "so is the renamed one"
    );
    assert_eq!(ask(&[], MIB).await, 200);
    assert_eq!(gateway.metric("keyfleet_buffered_body_bytes").await, Some(0.0));
}
