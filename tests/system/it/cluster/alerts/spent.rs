//! A pool that nobody can be served from. Nobody asks any more for what nobody gets, so that the next leader hears of no
//! attempt: what it knows of the pool has to come from the store.

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Cluster, ClusterOptions, Sink, eventually};
use serde_json::{Value, json};

use super::super::{MODEL, SOON, used};
use super::rules::{LONG, config, stories, told};
use super::{alerts, heals, leader};

const RULE: &str = "pool_exhausted";

async fn start(sink: &Sink, more: &Value) -> Cluster {
    Cluster::start(World::pool(3, 1), ClusterOptions::new(config(more, &[("sink", sink)]))).await
}

/// Asks until every gateway refuses with this status.
async fn asks_until(cluster: &Cluster, status: u16) {
    eventually("nobody is served", SOON, || async {
        let mut refused = 0;
        for gateway in 0..3 {
            let answer = cluster.gateway(gateway).chat(MODEL, false).await.ok()?;
            refused += usize::from(answer.status == status);
        }
        (refused == 3).then_some(())
    })
    .await;
}

/// What was told of the pool.
fn of_pool(sink: &Sink) -> Vec<String> {
    stories(sink)[&(RULE.to_owned(), json!({"model": MODEL}).to_string())].clone()
}

/// It is told, and the next leader says nothing else of it, long after it has looked at everything.
async fn outlives_the_leader(cluster: &mut Cluster, sink: &Sink) {
    told(sink, RULE, "firing").await;
    eventually("it is written down that all is told", SOON, || async {
        alerts(cluster).await?["outbox"].as_array()?.is_empty().then_some(())
    })
    .await;
    let led = cluster.leader().await;
    cluster.kill(led);
    told(sink, "leader_changed", "firing").await;
    assert_ne!(leader(cluster.leader().await), leader(led));
    told(sink, "leader_changed", "resolved").await;
    assert_eq!(of_pool(sink), ["firing"]);
    cluster.restart(led).await;
}

async fn is_over(sink: &Sink) {
    eventually("it is over", LONG, || async { (of_pool(sink) == ["firing", "resolved"]).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quota_that_is_spent_is_told_of_whoever_leads() {
    let sink = Sink::start().await;
    let mut cluster = start(&sink, &json!({"limits": [{"models": "*", "rpd": 2}]})).await;
    asks_until(&cluster, 429).await;
    outlives_the_leader(&mut cluster, &sink).await;
    assert_eq!(used(&cluster), 6, "and nothing more is sent upstream");
    cluster.reconfigure(|config| config["limits"][0]["rpd"] = json!(100));
    is_over(&sink).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_dead_are_told_of_whoever_leads() {
    let sink = Sink::start().await;
    let mut cluster = start(&sink, &json!({})).await;
    let keys = ["k1", "k2", "k3"];
    cluster.sim().rules(keys.iter().map(|key| Rule::family(Family::ApiKeyInvalid).key(key)).collect());
    asks_until(&cluster, 502).await;
    outlives_the_leader(&mut cluster, &sink).await;
    heals(&cluster, &keys).await;
    is_over(&sink).await;
}
