//! Every panel has data; and then one part after the other is gone.

use keyfleet_simulator::{Family, Nth, Rule};
use keyfleet_tests::{Client, Part, eventually, read};
use serde_json::{Value, json};

use super::super::MODEL;
use super::super::told::{TOKEN, busy, file};
use super::{Prometheus, SEEN_WITHIN};

/// What this scenario raises.
pub(super) const RULES: [&str; 6] = [
    "KeyfleetConfigRejected",
    "KeyfleetStoreUnreachable",
    "KeyfleetNoLeader",
    "KeyfleetStateStale",
    "KeyfleetNatsUnreachable",
    "KeyfleetProcessDown",
];

async fn chat(client: &Client, stream: bool) {
    let body = json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]});
    let trace = format!("00-{:032x}-00f067aa0ba902b7-01", fastrand::u128(1..));
    let request = client.request(reqwest::Method::POST, "/v1/chat/completions").bearer_auth(TOKEN);
    let answer = read(request.header("traceparent", trace).body(body.to_string())).await;
    answer.expect("an answer");
}

/// Every expression of the dashboard, as Grafana would ask for it.
fn expressions() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&file("charts/keyfleet/dashboards/keyfleet.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let filled = targets.filter_map(|target| target["expr"].as_str()).map(|expression| {
        let all = expression.replace("$instance", ".*").replace("$model", ".*");
        all.replace("$__rate_interval", "20s")
    });
    filled.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_has_data_and_a_part_that_is_gone_is_told_of() {
    let (mut cluster, _) = busy().await;
    cluster.sim().rules(vec![Rule::family(Family::TooLong).path("chat/completions").nth(Nth::Every(9))]);
    let gateway = cluster.gateway(0);
    let prometheus = Prometheus::start(&cluster, 1, 2).await;
    for expression in expressions() {
        eventually(&expression, SEEN_WITHIN, || async {
            chat(&gateway, true).await;
            chat(&gateway, false).await;
            prometheus.knows(&expression).await.then_some(())
        })
        .await;
    }
    let about = "/api/v1/query_exemplars?start=0&end=9999999999";
    let found = prometheus.ask(about, "keyfleet_request_duration_seconds_bucket").await;
    assert!(found[0]["exemplars"][0]["labels"]["trace_id"].is_string(), "{found}");

    prometheus.assert_calm(&RULES).await;
    cluster.reconfigure(|config| config["server"]["no_such_option"] = json!(1));
    prometheus.raises(&RULES[..1]).await;
    prometheus.assert_calm(&RULES[1..]).await;
    cluster.kill(Part::Redis);
    prometheus.raises(&RULES[1..4]).await;
    prometheus.assert_calm(&RULES[4..]).await;
    cluster.kill(Part::Nats);
    prometheus.raises(&RULES[4..5]).await;
    prometheus.assert_calm(&RULES[5..]).await;
    cluster.kill(Part::Gateway(0));
    prometheus.raises(&RULES[5..]).await;
}
