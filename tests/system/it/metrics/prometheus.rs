//! A real Prometheus scrapes a cluster: every panel of the dashboard has data, and rules fire on their faults.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyfleet_simulator::{Family, Nth, Rule};
use keyfleet_tests::{Client, Cluster, Part, eventually, free_port, read};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::MODEL;
use super::told::{TOKEN, busy, file, path};

/// Prometheus looks every second, and rates need a few looks.
const SEEN_WITHIN: Duration = Duration::from_mins(1);

struct Prometheus {
    child: Child,
    client: Client,
    _folder: TempDir,
}

impl Prometheus {
    async fn start(gateways: &[String], coordinators: &[String]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [fs::canonicalize(path("charts/keyfleet/rules/keyfleet.yaml")).expect("the rules")],
            "scrape_configs": [
                {"job_name": "keyfleet-gateway", "static_configs": [{"targets": gateways}]},
                {"job_name": "keyfleet-coordinator", "static_configs": [{"targets": coordinators}]},
            ],
        });
        fs::write(folder.path().join("prometheus.yml"), config.to_string()).expect("its configuration");
        let program = std::env::var("KEYFLEET_TEST_PROMETHEUS");
        let program = program.expect("KEYFLEET_TEST_PROMETHEUS: run scripts/test");
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, free_port());
        let child = Command::new(program)
            .current_dir(folder.path())
            .args([
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--enable-feature=exemplar-storage",
            ])
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).expect("a log"))
            .spawn()
            .expect("Prometheus starts");
        let prometheus = Self { child, client: Client::new(format!("http://{address}")), _folder: folder };
        eventually("Prometheus is ready", SEEN_WITHIN, || async {
            let ready = prometheus.client.get("/-/ready").await;
            ready.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
        prometheus
    }

    async fn ask(&self, path: &str, query: &str) -> Value {
        let mut url = reqwest::Url::parse(&self.client.url(path)).expect("a URL");
        url.query_pairs_mut().append_pair("query", query);
        let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
        let answer = self.client.get(&path).await.expect("an answer");
        assert_eq!(answer.status, 200, "{query}: {}", answer.text);
        answer.json()["data"].clone()
    }

    /// Whether a query has any result.
    async fn knows(&self, query: &str) -> bool {
        self.ask("/api/v1/query", query).await["result"].as_array().is_some_and(|found| !found.is_empty())
    }

    /// The alerts that are pending or firing.
    async fn alerts(&self) -> Vec<String> {
        let alerts = self.ask("/api/v1/alerts", "").await["alerts"].clone();
        let alerts = alerts.as_array().into_iter().flatten();
        alerts.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

async fn chat(client: &Client, stream: bool) {
    let body = json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]});
    let trace = format!("00-{:032x}-00f067aa0ba902b7-01", fastrand::u128(1..));
    let request = client.request(reqwest::Method::POST, "/v1/chat/completions").bearer_auth(TOKEN);
    let answer = read(request.header("traceparent", trace).body(body.to_string())).await;
    answer.expect("an answer");
}

fn target(client: &Client) -> String {
    client.url("").trim_start_matches("http://").to_owned()
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
async fn a_real_prometheus_draws_every_panel_and_raises_alerts() {
    let (mut cluster, _) = busy().await;
    cluster.sim().rules(vec![Rule::family(Family::TooLong).path("chat/completions").nth(Nth::Every(9))]);
    let gateway = cluster.gateway(0);
    let coordinators = [0, 1].map(|at| target(&cluster.coordinator(at)));
    let prometheus = Prometheus::start(&[target(&gateway)], &coordinators).await;
    for expression in expressions() {
        eventually(&expression, SEEN_WITHIN, || async {
            chat(&gateway, true).await;
            chat(&gateway, false).await;
            prometheus.knows(&expression).await.then_some(())
        })
        .await;
    }
    assert!(prometheus.knows("sum(up) == 3").await, "a target is not scraped");
    let about = "/api/v1/query_exemplars?start=0&end=9999999999";
    let found = prometheus.ask(about, "keyfleet_request_duration_seconds_bucket").await;
    assert!(found[0]["exemplars"][0]["labels"]["trace_id"].is_string(), "{found}");
    let before = prometheus.alerts().await;
    for calm in ["KeyfleetPoolExhausted", "KeyfleetConfigRejected", "KeyfleetProcessDown", "KeyfleetNoLeader"]
    {
        assert!(!before.iter().any(|alert| alert == calm), "{before:?}");
    }
    faults(&mut cluster, &prometheus).await;
}

/// Each of them raises its alert.
async fn faults(cluster: &mut Cluster, prometheus: &Prometheus) {
    let raised = async |alert: &str| {
        eventually(alert, SEEN_WITHIN, || async {
            prometheus.alerts().await.iter().any(|raised| raised == alert).then_some(())
        })
        .await;
    };
    let Part::Coordinator(leader) = cluster.leader().await else { unreachable!("only coordinators lead") };
    for key in ["k2", "k3"] {
        let coordinator = cluster.coordinator(leader);
        let path = format!("/api/v1/keys/{key}/block?minutes=5");
        assert_eq!(coordinator.post(&path, &json!({})).await.expect("an answer").status, 200);
    }
    raised("KeyfleetPoolExhausted").await;
    cluster.reconfigure(|config| config["server"]["no_such_option"] = json!(1));
    raised("KeyfleetConfigRejected").await;
    cluster.kill(Part::Redis);
    raised("KeyfleetStoreUnreachable").await;
    cluster.kill(Part::Nats);
    raised("KeyfleetNatsUnreachable").await;
    raised("KeyfleetNoLeader").await;
    raised("KeyfleetStateStale").await;
    cluster.kill(Part::Gateway(0));
    raised("KeyfleetProcessDown").await;
}
