//! Keys, quotas and models go bad, one fault for each model.

use std::time::Duration;

use keyfleet_simulator::{Action, Family, Rule, World};
use keyfleet_tests::{Client, Cluster, ClusterOptions, eventually};
use serde_json::json;

use super::{Prometheus, RAISED_WITHIN, SEEN_WITHIN};

/// What this scenario raises, in this order.
pub(super) const RULES: [&str; 9] = [
    "KeyfleetKeyDisabled",
    "KeyfleetUnhealthyKeys",
    "KeyfleetErrorRate",
    "KeyfleetModelOverloaded",
    "KeyfleetSlowFirstByte",
    "KeyfleetQuotaExhausted",
    "KeyfleetQuotaUsedByOthers",
    "KeyfleetPoolLow",
    "KeyfleetPoolExhausted",
];

/// Half of the keys fail for it, and another is leaked.
const FAILING: &str = "gemini-2.5-flash";
/// It is overloaded.
const DOWN: &str = "gemini-2.5-pro";
/// Its answers begin after six seconds.
const SLOW: &str = "gemini-3.5-flash";
/// The quota of every project is used up, and nobody had said how large it is.
const EXHAUSTED: &str = "gemini-4-carbon";
/// Others have used up what is configured.
const SHARED: &str = "gemini-3.8-flash";
/// By it, projects are found out to have spent what they may.
const SPENT: &str = "gemini-3.5-flash-lite";

const ALL: [&str; 6] = [FAILING, DOWN, SLOW, EXHAUSTED, SHARED, SPENT];

fn faults() -> Vec<Rule> {
    let mut rules: Vec<_> =
        (1..=5).map(|key| Rule::family(Family::Internal).key(&format!("k{key}")).model(FAILING)).collect();
    rules.extend([
        Rule::family(Family::Leaked).key("k10").model(FAILING),
        Rule::family(Family::Overloaded).model(DOWN),
        Rule::new(Action::StallBeforeHeaders { ms: Some(6_000) }).model(SLOW),
        Rule::family(Family::PerDay429).model(EXHAUSTED),
        Rule::family(Family::PerDay429).model(SHARED),
    ]);
    rules
}

/// Asks for a model for as long as it is polled.
async fn ask_for(gateway: &Client, model: &str, pause_ms: u64) {
    loop {
        // Most of it fails.
        drop(gateway.chat(model, false).await);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}

async fn traffic(gateway: &Client) {
    tokio::join!(
        ask_for(gateway, FAILING, 100),
        ask_for(gateway, DOWN, 500),
        ask_for(gateway, SLOW, 100),
        ask_for(gateway, SLOW, 100),
        ask_for(gateway, EXHAUSTED, 500),
        ask_for(gateway, SHARED, 1_000),
    );
}

/// The projects of the first keys have spent what they may, and a client finds out. The last key is out already.
async fn spends(cluster: &Cluster, prometheus: &Prometheus, keys: u32, raises: &str) {
    let spent = |key| Rule::family(Family::SpendingCap).key(&format!("k{key}")).model(SPENT);
    cluster.sim().rules(faults().into_iter().chain((1..=keys).map(spent)).collect());
    eventually(raises, RAISED_WITHIN, || async {
        cluster.gateway(0).chat(SPENT, false).await.ok()?;
        prometheus.alerts("firing").await.contains(raises).then_some(())
    })
    .await;
}

async fn incidents(cluster: &Cluster, prometheus: &Prometheus) {
    // Few: what was answered in five minutes counts against what fails.
    for sees in ["keyfleet_upstream_attempts_total", "increase(keyfleet_upstream_attempts_total[5m]) > 0"] {
        for model in ALL {
            let answer = cluster.gateway(0).chat(model, false).await.expect("an answer");
            assert_eq!(answer.status, 200, "{model}: {}", answer.text);
        }
        let sees = format!("count({sees}) == {}", ALL.len());
        eventually(&sees, SEEN_WITHIN, || async { prometheus.knows(&sees).await.then_some(()) }).await;
    }
    prometheus.assert_calm(&RULES).await;
    cluster.sim().rules(faults());
    let gateway = cluster.gateway(0);
    tokio::select! {
        () = traffic(&gateway) => {}
        () = prometheus.raises(&RULES[..7]) => {}
    }
    prometheus.assert_calm(&RULES[7..]).await;
    spends(cluster, prometheus, 8, RULES[7]).await;
    prometheus.assert_calm(&RULES[8..]).await;
    spends(cluster, prometheus, 9, RULES[8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_models_that_go_bad_are_told_of() {
    let config = json!({
        "limits": [{"models": SHARED, "rpd": 600}],
        // What half of the keys do is neither the end of them nor the model's fault.
        "max_failures_threshold": 1_000,
        "circuit_breaker": {"failure_threshold": 20, "recovery_timeout_secs": 1},
    });
    let options = ClusterOptions::new(config);
    let options = ClusterOptions { coordinators: 1, ..options.gateways(1) };
    let cluster = Cluster::start(World::pool(10, 1), options).await;
    let prometheus = Prometheus::start(&cluster, 1, 1).await;
    incidents(&cluster, &prometheus).await;
}
