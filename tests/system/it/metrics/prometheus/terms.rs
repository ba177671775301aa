//! Leaders come and go, and what was said to them, or by them, is lost or late.

use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::{Cluster, ClusterOptions, Collector, Part, Sink, eventually};
use serde_json::json;

use super::super::MODEL;
use super::{Prometheus, RAISED_WITHIN, SEEN_WITHIN};

/// What this scenario raises, in this order.
pub(super) const RULES: [&str; 6] = [
    "KeyfleetSpansDropped",
    "KeyfleetAlertsUndelivered",
    "KeyfleetLeaderChanges",
    "KeyfleetReportsLate",
    "KeyfleetReportsLost",
    "KeyfleetQuarantine",
];

/// So many reports take a leader with a slow store some seconds.
const BACKLOG: u64 = 6_000;
/// So much later each word to or from the store arrives.
const SLOWER: Duration = Duration::from_millis(60);

async fn chat(cluster: &Cluster) {
    let answer = cluster.gateway(0).chat(MODEL, false).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// Asks until a rule fires.
async fn raised_by_asking(cluster: &Cluster, prometheus: &Prometheus, rule: &str) {
    eventually(rule, RAISED_WITHIN, || async {
        chat(cluster).await;
        prometheus.alerts("firing").await.contains(rule).then_some(())
    })
    .await;
}

/// The leader dies, another follows, and Prometheus has seen it.
async fn succeed(cluster: &mut Cluster, prometheus: &Prometheus) {
    let led = cluster.leader().await;
    let [epoch, ..] = cluster.redis().position().await.expect("a position");
    cluster.kill(led);
    let next = format!("max(keyfleet_coordinator_epoch) > {epoch} and sum(keyfleet_coordinator_leader) == 1");
    eventually("another leads", SEEN_WITHIN, || async { prometheus.knows(&next).await.then_some(()) }).await;
    cluster.restart(led).await;
}

/// A report of a gateway of a large deployment.
fn report(seq: u64) -> String {
    let record =
        json!({"kind": "succeeded", "key": "k1", "model": MODEL, "n": 1, "ttfb_ms": 5, "probe": false});
    json!({"v": 1, "body": {"replica": "another", "seq": seq, "records": [record]}}).to_string()
}

/// While nobody leads, the stream is emptied, and fills again; the next leader has a slow store.
async fn reports_wait(cluster: &mut Cluster, prometheus: &Prometheus) {
    let coordinators = [0, 1].map(Part::Coordinator);
    // Whoever was never heard of proves no loss.
    eventually("all reports are applied", SEEN_WITHIN, || async {
        let info = cluster.stream("INFO").await.ok()?;
        (info["state"]["last_seq"].as_u64()? == cluster.redis().cursor().await.ok()?).then_some(())
    })
    .await;
    for part in coordinators {
        cluster.kill(part);
        cluster.links(part)[1].slow(SLOWER);
    }
    let read = cluster.redis().cursor().await.expect("a cursor");
    chat(cluster).await;
    eventually("the stream has a report that nobody reads", SEEN_WITHIN, || async {
        (cluster.stream("INFO").await.ok()?["state"]["last_seq"].as_u64()? > read).then_some(())
    })
    .await;
    cluster.stream("PURGE").await.expect("it is emptied");
    cluster.say_all("rl.v1.ev.0", (1..=BACKLOG).map(report)).await.expect("they are taken");
    let stale = "max(keyfleet_state_age_seconds) > 12";
    eventually(stale, SEEN_WITHIN, || async { prometheus.knows(stale).await.then_some(()) }).await;
    // Nobody is there to say that he does not lead.
    prometheus.raises(&["KeyfleetNoLeader"]).await;
    prometheus.assert_calm(&RULES[3..]).await;
    for part in coordinators {
        cluster.restart(part).await;
    }
    prometheus.raises(&RULES[3..4]).await;
    for part in coordinators {
        cluster.links(part)[1].heal();
    }
    raised_by_asking(cluster, prometheus, RULES[4]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaders_lose_is_told_of() {
    let (collector, sink) = (Collector::start().await, Sink::start().await);
    let config = json!({
        "telemetry": {"endpoint": collector.url()},
        "alerts": {
            "group_wait_secs": 0, "group_interval_secs": 1, "rules": {"leader_changed": {"for_secs": 1}},
            "receivers": [{"name": "sink", "type": "webhook", "url": sink.url()}],
        },
    });
    let options = ClusterOptions::new(config).gateways(1).linked();
    let mut cluster = Cluster::start(World::pool(3, 1), options).await;
    let prometheus = Prometheus::start(&cluster, 1, 2).await;
    chat(&cluster).await;
    collector.saw(1, |_| true).await;
    prometheus.assert_calm(&RULES).await;

    collector.stop().await;
    raised_by_asking(&cluster, &prometheus, RULES[0]).await;

    prometheus.assert_calm(&RULES[1..]).await;
    sink.answer(404);
    succeed(&mut cluster, &prometheus).await;
    prometheus.raises(&RULES[1..2]).await;
    succeed(&mut cluster, &prometheus).await;
    prometheus.assert_calm(&RULES[2..]).await;
    succeed(&mut cluster, &prometheus).await;
    prometheus.raises(&RULES[2..3]).await;

    reports_wait(&mut cluster, &prometheus).await;

    prometheus.assert_calm(&RULES[5..]).await;
    cluster.redis().ask(&["FLUSHALL"]).await.expect("it forgets");
    prometheus.raises(&RULES[5..]).await;
}
