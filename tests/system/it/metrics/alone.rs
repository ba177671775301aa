//! A gateway by itself tells of its coordinator too.

use std::collections::BTreeSet;

use keyfleet_simulator::{Family, Received, Rule, World};
use keyfleet_tests::{Figures, Gateway, Sim, eventually, judge};
use serde_json::Value;

use super::told::{TOKEN, ask, file, full, names, section};
use super::{MODEL, SOON, figures, promtool, scrape};

const REQUESTS: usize = 30;

async fn start() -> (Sim, Gateway) {
    let sim = Sim::start(World::pool(3, 1)).await;
    let mut config = sim.config();
    for (name, value) in full().as_object().expect("options") {
        let of = config[name].as_object_mut();
        match (of, value) {
            (Some(of), Value::Object(more)) => of.extend(more.clone()),
            _ => config[name] = value.clone(),
        }
    }
    let gateway = Gateway::start(config).await;
    (sim, gateway)
}

fn sent(log: &[Received], key: &str) -> String {
    judge::generations(log).filter(|request| request.key_id.as_deref() == Some(key)).count().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn used_and_limit_of_every_key_are_what_the_upstream_counted() {
    let (sim, gateway) = start().await;
    for n in 0..REQUESTS {
        let answer = ask(&gateway.client(), n % 2 == 0).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let log = sim.log();
    let keys: BTreeSet<_> = log.iter().filter_map(|request| request.key_id.clone()).collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    let of = |told: &Figures, key: &str| {
        let project = log.iter().find(|request| request.key_id.as_deref() == Some(key));
        let project = project.and_then(|request| request.project.clone()).expect("a project");
        let quota = format!("{{project=\"{project}\",model=\"{MODEL}\",dimension=\"rpm\"}}");
        let answered = format!("{{key=\"{key}\",result=\"answered\"}}");
        [("key_attempts_total", answered), ("quota_used", quota.clone()), ("quota_limit", quota)].map(
            |(name, labels)| {
                let sum = told.sum(&format!("keyfleet_coordinator_{name}{labels}"));
                sum.map_or_else(String::new, |sum| sum.to_string())
            },
        )
    };
    let client = gateway.client();
    eventually("the ledger has what the upstream has", SOON, || async {
        let told = figures(&client).await;
        let is_right = |key: &String| {
            let sent = sent(&log, key);
            of(&told, key) == [sent.clone(), sent, "1000".to_owned()]
        };
        keys.iter().all(is_right).then_some(())
    })
    .await;
    let told = figures(&client).await;
    let one = |name: &str| told.sum(&format!("keyfleet_coordinator_{name}")).map(|sum| sum.to_string());
    for (name, value) in [
        ("leader", "1"),
        ("takeovers_total", "1"),
        ("replicas", "1"),
        ("store_up", "1"),
        ("blind", "0"),
        ("keys", "3"),
        ("client_requests_used{client=\"a\"}", &REQUESTS.to_string()),
        ("client_requests_limit{client=\"a\"}", "1000"),
    ] {
        assert_eq!(one(name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_what_the_readme_says_and_fills_the_dashboard() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    sim.rules(vec![Rule::family(Family::PerDay429).path("chat/completions").times(1)]);
    for stream in [true, false] {
        let answer = ask(&client, stream).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let told = eventually("both requests are counted and reported", SOON, || async {
        let told = figures(&client).await;
        let both = ["keyfleet_requests_total", "keyfleet_coordinator_key_attempts_total"];
        let spent = told.sum("keyfleet_coordinator_model_blocked_until_timestamp_seconds").is_some();
        (spent && both.iter().all(|name| told.sum(name) >= Some(2.0))).then_some(told)
    })
    .await;
    let readme = file("README.md");
    let section = section(&readme);
    let (_, of_others) = section.split_once("\n| of a coordinator of its own |").expect("its table");
    let of_others = names(of_others.split("\n\n").next().unwrap_or_default());
    // What keeps a whole key away for a time is an operator, who asks a coordinator of its own for that.
    let is_told = |name: &&str| !of_others.contains(name) && !name.contains("_key_blocked_until_");
    let expected: BTreeSet<_> = names(section).into_iter().filter(is_told).collect();
    let described: BTreeSet<_> = told.described().keys().map(String::as_str).collect();
    assert_eq!(described, expected);

    let text = scrape(&client, "text/plain").await.text;
    assert_eq!(promtool(&["check", "metrics"], &text), "");
    assert!(sim.secrets().iter().all(|secret| !text.contains(secret)) && !text.contains(TOKEN));

    let dashboard: Value =
        serde_json::from_str(&file("charts/keyfleet/dashboards/keyfleet.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let has_data =
        |target: &Value| names(target["expr"].as_str().unwrap_or_default()).is_subset(&told.names());
    let is_empty = |panel: &&Value| !panel["targets"].as_array().into_iter().flatten().any(&has_data);
    let empty = panels.iter().filter(|panel| panel["type"] != "row").filter(is_empty);
    let empty: Vec<_> = empty.map(|panel| &panel["title"]).collect();
    assert!(empty.is_empty(), "{empty:?}");
}
