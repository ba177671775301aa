//! A real Prometheus scrapes a cluster: every panel of the dashboard has data, and each rule fires on its fault, and not
//! before it.

mod outages;
mod pool;
mod terms;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keyfleet_tests::{Client, Cluster, eventually, free_port};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::told::file;

/// Prometheus looks every second, and rates need a few looks.
const SEEN_WITHIN: Duration = Duration::from_mins(1);
/// On a loaded machine; a gateway's state is stale after ten seconds, and a slow answer takes six.
const RAISED_WITHIN: Duration = Duration::from_mins(2);
/// Before a line that says how long a rule waits.
const WAIT: &str = "    for: ";

/// The rules as they are shipped, but that none waits longer than to be pending for a look.
fn impatient(rules: &str) -> String {
    let lines = rules.lines().map(|line| match line.strip_prefix(WAIT) {
        Some(_) => format!("{WAIT}1s\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

/// The names of all rules.
fn defined() -> BTreeSet<String> {
    let rules = file("charts/keyfleet/rules/keyfleet.yaml");
    let names = rules.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: "));
    names.map(|name| name.trim().to_owned()).collect()
}

struct Prometheus {
    child: Child,
    client: Client,
    _folder: TempDir,
}

impl Prometheus {
    /// Of a cluster with so many gateways and coordinators.
    async fn start(cluster: &Cluster, gateways: usize, coordinators: usize) -> Self {
        let folder = TempDir::new().expect("a folder");
        let rules = impatient(&file("charts/keyfleet/rules/keyfleet.yaml"));
        fs::write(folder.path().join("rules.yml"), rules).expect("the rules");
        let targets = |count: usize, client: fn(&Cluster, usize) -> Client| -> Vec<String> {
            let urls = (0..count).map(|at| client(cluster, at).url(""));
            urls.map(|url| url.trim_start_matches("http://").to_owned()).collect()
        };
        let gateways = targets(gateways, Cluster::gateway);
        let coordinators = targets(coordinators, Cluster::coordinator);
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
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
        let all = gateways.len() + coordinators.len();
        eventually("Prometheus sees everybody", SEEN_WITHIN, || async {
            let ready = prometheus.client.get("/-/ready").await;
            let ready = ready.is_ok_and(|answer| answer.status == 200);
            (ready && prometheus.knows(&format!("sum(up) == {all}")).await).then_some(())
        })
        .await;
        prometheus.assert_rules().await;
        prometheus
    }

    /// It has loaded every rule.
    async fn assert_rules(&self) {
        let groups = self.ask("/api/v1/rules", "").await["groups"].clone();
        let groups = groups.as_array().into_iter().flatten();
        let rules: Vec<_> = groups.filter_map(|group| group["rules"].as_array()).flatten().collect();
        assert!(rules.iter().all(|rule| rule["duration"].as_f64() <= Some(1.0)), "{rules:?}");
        let loaded: BTreeSet<_> = rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
        assert!(loaded.iter().copied().eq(defined().iter().map(String::as_str)), "{loaded:?}");
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

    /// The alerts in a state: `pending` or `firing`.
    async fn alerts(&self, state: &str) -> BTreeSet<String> {
        let alerts = self.ask("/api/v1/alerts", "").await["alerts"].clone();
        let alerts = alerts.as_array().into_iter().flatten().filter(|alert| alert["state"] == state);
        alerts.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect()
    }

    /// None of these has ever fired.
    async fn assert_calm(&self, rules: &[&str]) {
        let names = rules.join("|");
        let query = format!("last_over_time(ALERTS{{alertname=~\"{names}\",alertstate=\"firing\"}}[1h])");
        let fired = self.ask("/api/v1/query", &query).await["result"].clone();
        assert_eq!(fired, json!([]), "before the fault");
    }

    /// Waits until each of these fires.
    async fn raises(&self, rules: &[&str]) {
        for rule in rules {
            eventually(rule, RAISED_WITHIN, || async {
                self.alerts("firing").await.contains(*rule).then_some(())
            })
            .await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

#[test]
fn every_rule_has_a_fault() {
    let played = [&pool::RULES[..], &terms::RULES[..], &outages::RULES[..]].concat();
    assert_eq!(played.iter().map(|rule| (*rule).to_owned()).collect::<BTreeSet<_>>(), defined());
    let rules = file("charts/keyfleet/rules/keyfleet.yaml");
    let but_waits = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with(WAIT)).map(str::to_owned).collect()
    };
    assert_eq!(but_waits(&impatient(&rules)), but_waits(&rules), "nothing else is changed");
    assert_eq!(impatient(&rules).matches(" for: 1s\n").count(), rules.matches(WAIT).count());
}
