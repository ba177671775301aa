//! One process that keeps its state in Redis.

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Cluster, ClusterOptions, Gateway, Program, free_port};
use serde_json::{Value, json};

use super::MODEL;

async fn blocks(gateway: &Gateway) -> Vec<Value> {
    let health = gateway.client().get("/health/detailed").await.expect("an answer").json();
    health["keys"][0]["blocks"].as_array().cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_its_state_and_no_second_one_joins() {
    // Only for its Redis.
    let options = ClusterOptions { coordinators: 0, ..ClusterOptions::new(json!({})).gateways(0) };
    let cluster = Cluster::start(World::pool(1, 1), options).await;
    let mut config = cluster.sim().config();
    config["redis_url"] = json!(cluster.redis().url());
    let mut gateway = Gateway::start(config.clone()).await;
    cluster.sim().rules(vec![Rule::family(Family::PerDay429).path("/chat/")]);
    let refused = gateway.client().chat(MODEL, false).await.expect("an answer");
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(blocks(&gateway).await.len(), 1);

    let text = serde_json::to_string(&config).expect("a configuration");
    let second = Program::new().file("config.yaml", &text);
    let ended = second.run(&["serve", "-H", "127.0.0.1", "-p", &free_port().to_string()]).await;
    assert!(ended.code.is_some_and(|code| code != 0), "{:?}: {}", ended.code, ended.said);
    assert!(ended.said.contains("set nats_url"), "{}", ended.said);
    assert_eq!(blocks(&gateway).await.len(), 1, "the first was disturbed");

    // At once after a clean end, and as soon as the lead has lapsed after another.
    for signal in ["TERM", "KILL"] {
        gateway.signal(signal);
        gateway.restart().await;
        assert_eq!(blocks(&gateway).await.len(), 1, "forgotten after SIG{signal}");
    }
    let before =
        cluster.sim().log().iter().filter(|request| request.path_and_query.contains("/chat/")).count();
    let refused = gateway.client().chat(MODEL, false).await.expect("an answer");
    let after =
        cluster.sim().log().iter().filter(|request| request.path_and_query.contains("/chat/")).count();
    assert_eq!((refused.status, after), (429, before), "asked all the same");
}
