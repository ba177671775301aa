//! How the coordinator's prober looks at keys.

use std::collections::HashSet;

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim, eventually, read};
use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;

use super::SOON;

const KEYS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_share_a_connection() {
    let sim = Sim::start(World::pool(KEYS, 1)).await;
    let _gateway = Gateway::start(sim.config()).await;
    let looks = eventually("every key is looked at", SOON, || {
        let log = sim.log();
        let ended = log.iter().filter(|request| request.done).count() == KEYS;
        async move { ended.then_some(log) }
    })
    .await;
    let connections: HashSet<_> = looks.iter().map(|look| look.conn).collect();
    assert_eq!(connections.len(), 1, "{looks:#?}");
}

/// The keys that were looked at, in this order.
fn looked_at(sim: &Sim) -> Vec<String> {
    sim.log().into_iter().filter_map(|look| look.key_id).collect()
}

async fn probe(gateway: &Gateway, key: &str) {
    let request = gateway.client().request(Method::POST, &format!("/admin/keys/{key}/probe"));
    let told = read(request.bearer_auth("an-admin-token")).await.expect("an answer");
    assert_eq!(told.status, 202, "{}", told.text);
}

/// Each of them takes ten seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_behind_a_way_out_that_answers_nothing_hold_up_no_other() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = format!("http://{}", silent.local_addr().expect("an address"));
    let mut config = sim.config();
    config["server"]["admin_token"] = json!("an-admin-token");
    for key in 0..5 {
        config["groups"][0]["api_keys"][key]["proxy_url"] = json!(proxy);
    }
    let gateway = Gateway::start(config).await;
    eventually("the last key is looked at", SOON, || async { (looked_at(&sim) == ["k6"]).then_some(()) })
        .await;
    for key in ["k1", "k2", "k6"] {
        probe(&gateway, key).await;
    }
    eventually("an operator's key is looked at", SOON, || async {
        (looked_at(&sim) == ["k6", "k6"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_asks_for_is_looked_at_before_what_is_due() {
    let sim = Sim::start(World::pool(99, 1)).await;
    let mut config = sim.config();
    config["server"]["admin_token"] = json!("an-admin-token");
    let gateway = Gateway::start(config).await;
    probe(&gateway, "k99").await;
    let place = eventually("the key is looked at", SOON, || async {
        looked_at(&sim).iter().position(|key| key == "k99")
    })
    .await;
    assert!(place < 50, "99 keys are due, and {place} were looked at before an operator's");
}
