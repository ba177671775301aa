//! What an operator asks of one coordinator holds for every gateway.

use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::{Client, Cluster, ClusterOptions, Part, eventually};
use serde_json::json;

use super::{chat, judge, limited};

/// A second is promised; a busy machine adds to it.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

async fn state_of(client: &Client, key: &str) -> Option<String> {
    let health = client.get("/health/detailed").await.ok()?.json();
    let found = health["keys"].as_array()?.iter().find(|found| found["id"] == key)?;
    found["state"].as_str().map(str::to_owned)
}

/// Waits until every gateway sees the key in this state, or in another than that.
async fn until_all(cluster: &Cluster, key: &str, disabled: bool) {
    for gateway in 0..3 {
        let client = cluster.gateway(gateway);
        eventually(&format!("gateway {gateway}: disabled = {disabled}"), HEARD_WITHIN, || async {
            ((state_of(&client, key).await? == "disabled") == disabled).then_some(())
        })
        .await;
    }
}

fn used_with(cluster: &Cluster, key: &str) -> u64 {
    let seen = judge::seen(&cluster.sim().log());
    seen.iter().filter(|((found, _), _)| found == key).map(|(_, count)| count.answered + count.failed).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disable_a_key_for_all_through_any_coordinator_and_for_the_next_leader() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(600))).await;
    let Part::Coordinator(leader) = cluster.leader().await else { unreachable!("only coordinators lead") };
    for (at, key) in [(leader, "k1"), (1 - leader, "k2")] {
        let told = cluster.coordinator(at).post(&format!("/api/v1/keys/{key}/disable"), &json!({})).await;
        let told = told.expect("an answer");
        assert_eq!(told.status, 200, "coordinator {at}, leader {leader}: {}", told.text);
        until_all(&cluster, key, true).await;
        let before = used_with(&cluster, key);
        for request in 0..12 {
            let answer = chat(&cluster, request % 3).await;
            assert!(key == "k2" || answer.status == 200, "{}", answer.text);
        }
        assert_eq!(used_with(&cluster, key), before, "{key} was used");
    }

    cluster.kill(Part::Coordinator(leader));
    let next = cluster.leader().await;
    assert_eq!(next, Part::Coordinator(1 - leader));
    cluster.kill(Part::Gateway(0));
    cluster.restart(Part::Gateway(0)).await;
    until_all(&cluster, "k1", true).await;
    let told = cluster.coordinator(1 - leader).post("/api/v1/keys/k1/enable", &json!({})).await;
    assert_eq!(told.expect("an answer").status, 200);
    until_all(&cluster, "k1", false).await;
    eventually("the key is used again", HEARD_WITHIN, || async {
        (chat(&cluster, 0).await.status == 200).then_some(())
    })
    .await;
}
