//! Whatever tells of a metric tells of one that there is: README, dashboard and rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Answer, Client, Cluster, ClusterOptions, Figures, Part, eventually, read};
use serde_json::{Value, json};

use super::{MODEL, figures, promtool, scrape};
use crate::surface::SOON;

pub(super) const TOKEN: &str = "a-client-token";

pub(super) fn file(name: &str) -> String {
    fs::read_to_string(path(name)).expect(name)
}

pub(super) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// Everything in a text that looks like one of our metrics.
pub(super) fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("keyfleet_") || word.starts_with("process_")).collect()
}

/// With everything of which something is counted.
pub(super) fn full() -> Value {
    json!({
        "server": {"clients": [{"name": "a", "token": TOKEN}]},
        "rate_limit": {"requests_per_minute": 1_000},
        "limits": [{"models": "*", "rpm": 1_000, "tpm": 1_000_000}],
        "alerts": {"receivers": [{"name": "nobody", "type": "webhook", "url": "http://127.0.0.1:9"}]},
    })
}

/// Asks as the client that has a limit.
pub(super) async fn ask(gateway: &Client, stream: bool) -> Answer {
    let body = json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]});
    let request = gateway.request(reqwest::Method::POST, "/v1/chat/completions").bearer_auth(TOKEN);
    read(request.body(body.to_string())).await.expect("an answer")
}

/// What the README says of metrics.
pub(super) fn section(readme: &str) -> &str {
    let (_, section) = readme.split_once("\n## Metrics\n").expect("the metrics");
    section.split("\n## ").next().unwrap_or_default()
}

/// A cluster in which everything that is counted has happened: a gateway, the leader, and a standby.
pub(super) async fn busy() -> (Cluster, [Figures; 3]) {
    let cluster = Cluster::start(World::pool(3, 1), ClusterOptions::new(full()).gateways(1)).await;
    let Part::Coordinator(leader) = cluster.leader().await else { unreachable!("only coordinators lead") };
    let (gateway, coordinator) = (cluster.gateway(0), cluster.coordinator(leader));
    let blocked = coordinator.post("/api/v1/keys/k1/block?minutes=5", &json!({})).await.expect("an answer");
    assert_eq!(blocked.status, 200, "{}", blocked.text);
    let once = |family| Rule::family(family).path("chat/completions").times(1);
    cluster.sim().rules(vec![once(Family::Overloaded), once(Family::PerDay429)]);
    for stream in [true, false] {
        let answer = ask(&gateway, stream).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let told = eventually("all is counted", SOON, || async {
        let [told, led] = [figures(&gateway).await, figures(&coordinator).await];
        let standby = figures(&cluster.coordinator(1 - leader)).await;
        let blocked =
            ["keyfleet", "keyfleet_coordinator"].iter().zip([&told, &led]).all(|(prefix, figures)| {
                figures.sum(&format!("{prefix}_key_blocked_until_timestamp_seconds")).is_some()
            });
        let spent = led.sum("keyfleet_coordinator_model_blocked_until_timestamp_seconds").is_some();
        let reported = led.sum("keyfleet_coordinator_key_attempts_total")? >= 3.0;
        let ended = told.sum("keyfleet_requests_total")? >= 2.0;
        let lag = led.sum("keyfleet_coordinator_event_age_seconds").is_some();
        (blocked && spent && reported && ended && lag).then_some([told, led, standby])
    })
    .await;
    (cluster, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented_and_every_documented_one_exists() {
    let (cluster, [gateway, leader, standby]) = busy().await;
    let told: BTreeSet<&str> =
        [&gateway, &leader].iter().flat_map(|of| of.described().keys()).map(String::as_str).collect();
    let readme = file("README.md");
    let section = section(&readme);
    let documented = names(section);
    let missing: Vec<_> = told.difference(&documented).collect();
    assert!(missing.is_empty(), "the README has no {missing:?}");
    let gone: Vec<_> = documented.difference(&told).collect();
    assert!(gone.is_empty(), "nobody tells {gone:?}");
    let alone: BTreeSet<_> = standby.described().keys().collect();
    assert!(alone.iter().all(|name| leader.described().contains_key(*name)), "{alone:?}");
    // What rules look at the increase of is there before it is counted, and before a standby leads.
    for name in [
        "keyfleet_coordinator_alert_deliveries_total{receiver=\"nobody\",result=\"given_up\"}",
        "keyfleet_coordinator_external_refusals_total",
        "keyfleet_coordinator_reports_lost_total",
    ] {
        assert_eq!([&leader, &standby].map(|of| of.sum(name)), [Some(0.0); 2], "{name}");
    }
    for name in ["keyfleet_dropped_reports_total", "keyfleet_dropped_spans_total"] {
        assert_eq!(gateway.sum(name), Some(0.0), "{name}");
    }

    // And the labels of those that have any.
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').collect();
        let labels: BTreeSet<_> =
            cells[1].split(", ").map(str::trim).filter(|label| !label.is_empty()).collect();
        for name in names(cells[0]) {
            let of = if name.starts_with("keyfleet_coordinator_") { &leader } else { &gateway };
            let sample = if of.names().contains(name) { name.to_owned() } else { format!("{name}_count") };
            assert_eq!(of.labels(&sample), labels, "{name}");
        }
    }
    for at in 0..2 {
        let text = scrape(&cluster.coordinator(at), "text/plain").await.text;
        assert_eq!(promtool(&["check", "metrics"], &text), "");
        assert!(cluster.sim().secrets().iter().all(|secret| !text.contains(secret)) && !text.contains(TOKEN));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboard_and_rules_speak_of_what_there_is() {
    let (_cluster, [gateway, leader, _]) = busy().await;
    let told: BTreeSet<&str> = gateway.names().union(&leader.names()).copied().collect();
    // In the renderings there is an autoscaler of each kind.
    for name in [
        "charts/keyfleet/dashboards/keyfleet.json",
        "charts/keyfleet/rules/keyfleet.yaml",
        "charts/keyfleet/examples/production/rendered.yaml",
        "charts/keyfleet/examples/gitops/rendered.yaml",
    ] {
        let text = file(name);
        let named = names(&text);
        assert!(named.len() > 15, "{name}: {named:?}");
        let unknown: Vec<_> = named.difference(&told).collect();
        assert!(unknown.is_empty(), "{name}: nobody tells {unknown:?}");
    }
    let dashboard: Value =
        serde_json::from_str(&file("charts/keyfleet/dashboards/keyfleet.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let drawn = panels.iter().filter(|panel| panel["type"] != "row");
    assert!(drawn.clone().count() >= 15);
    assert!(
        drawn
            .filter_map(|panel| panel["targets"].as_array())
            .flatten()
            .all(|target| target["expr"].is_string())
    );
}

#[test]
fn every_rule_fires_when_it_should_and_only_then() {
    let rules = path("charts/keyfleet/rules/keyfleet.yaml");
    let tests = path("charts/keyfleet/rules/tests/keyfleet.yaml");
    promtool(&["check", "rules", &rules.display().to_string()], "");
    promtool(&["test", "rules", &tests.display().to_string()], "");
    let alerts = |text: &str, mark: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| Some(line.split_once(mark)?.1.trim().to_owned())).collect()
    };
    let defined = alerts(&file("charts/keyfleet/rules/keyfleet.yaml"), "- alert: ");
    let tested = alerts(&file("charts/keyfleet/rules/tests/keyfleet.yaml"), "alertname: ");
    assert!(!defined.is_empty());
    assert_eq!(defined, tested, "each rule has a test");
}
