//! One process with nothing installed tells alerts, and answers its operators, as a cluster does.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Answer, Gateway, Sim, Sink, eventually, read};
use reqwest::Method;
use serde_json::{Value, json};

use super::super::{MODEL, SOON};

const TOKEN: &str = "an-admin-token";
const KEYS: usize = 5_000;
/// Far more than the alerts, their messages and the store take for 5,000 keys.
const MEMORY: f64 = 300e6;

async fn ask(gateway: &Gateway, method: Method, path: &str) -> Answer {
    let request = gateway.client().request(method, &format!("/api/v1/alerts{path}"));
    read(request.bearer_auth(TOKEN)).await.expect("an answer")
}

async fn start(world: World, sink: &Sink, rules: Value) -> (Sim, Gateway) {
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    config["server"]["admin_token"] = json!(TOKEN);
    config["alerts"] = json!({
        "group_wait_secs": 1, "group_interval_secs": 1, "rules": rules,
        "receivers": [{"name": "sink", "type": "webhook", "url": sink.url()}],
    });
    let gateway = Gateway::start(config).await;
    (sim, gateway)
}

/// The messages of a rule: what each says, and of how many alerts.
fn told(sink: &Sink, rule: &str) -> Vec<(String, u64)> {
    let of_rule = sink.messages().into_iter().map(|message| message.body["data"].clone());
    of_rule
        .filter(|data| data["rule"] == rule)
        .map(|data| {
            let listed = data["alerts"].as_array().map_or(0, Vec::len) as u64;
            let left_out = data["alerts_left_out"].as_u64().unwrap_or_default();
            (data["status"].as_str().unwrap_or_default().to_owned(), listed + left_out)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_alone_lists_silences_and_tests() {
    let sink = Sink::start().await;
    let (sim, gateway) = start(World::pool(3, 1), &sink, json!({})).await;
    let refused = gateway.client().get("/api/v1/alerts").await.expect("an answer");
    assert_eq!(refused.status, 401, "{}", refused.text);
    let silence = "/silence?of=rule%3Dkey_disabled,key%3Dk1&reason=a%20test&author=me&minutes=5";
    let silenced = ask(&gateway, Method::POST, silence).await;
    assert_eq!(silenced.status, 200, "{}", silenced.text);
    sim.rules(["k1", "k2"].map(|key| Rule::family(Family::ApiKeyInvalid).key(key)).to_vec());
    eventually("both are out, and one is told", SOON, || async {
        gateway.client().chat(MODEL, false).await.ok()?;
        let shown = ask(&gateway, Method::GET, "").await.json();
        let firing = shown["alerts"].as_array()?.iter().filter(|alert| alert["rule"] == "key_disabled");
        (firing.count() == 2 && !told(&sink, "key_disabled").is_empty()).then_some(())
    })
    .await;
    assert_eq!(told(&sink, "key_disabled"), [("firing".to_owned(), 1)]);
    let shown = ask(&gateway, Method::GET, "").await.json();
    let number = shown["silences"][0]["number"].as_u64().expect("a number");
    let ended = ask(&gateway, Method::POST, &format!("/unsilence?number={number}")).await;
    assert_eq!(ended.status, 200, "{}", ended.text);
    eventually("the other one is told", SOON, || async {
        (told(&sink, "key_disabled").len() == 2).then_some(())
    })
    .await;
    let tested = ask(&gateway, Method::POST, "/test?receiver=sink").await;
    assert_eq!(tested.status, 200, "{}", tested.text);
    assert_eq!(told(&sink, "test").len(), 1);
    // Its own configuration is watched as well.
    gateway.write_file("server: {no_such_option: 1}");
    gateway.signal("HUP");
    eventually("it is told", SOON, || async {
        (told(&sink, "config_rejected") == [("firing".to_owned(), 1)]).then_some(())
    })
    .await;
    let config = gateway.client().get("/api/v1/nothing").await.expect("an answer");
    assert_eq!(config.status, 404, "{}", config.text);
}

/// All keys of a project that is suspended are out with one answer of the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_keys_that_fail_together_are_one_message() {
    let sink = Sink::start().await;
    // What nobody can be served with explains why keys are out, and would be told instead.
    let rules = json!({"pool_exhausted": {"enabled": false}, "pool_low": {"enabled": false}});
    let (sim, gateway) = start(World::pool(1, KEYS), &sink, rules).await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    let resident = async || gateway.metric("process_resident_memory_bytes").await.unwrap_or_default();
    let before = resident().await;
    sim.rules(vec![Rule::family(Family::Suspended)]);
    let began = Instant::now();
    assert_ne!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    let all = KEYS as u64;
    eventually("all are told", Duration::from_mins(1), || async {
        (told(&sink, "key_disabled").iter().map(|(_, alerts)| alerts).sum::<u64>() >= all).then_some(())
    })
    .await;
    let (took, after) = (began.elapsed(), resident().await);
    assert_eq!(told(&sink, "key_disabled"), [("firing".to_owned(), all)]);
    let longest = sink.messages().iter().map(|message| message.body.to_string().len()).max();
    let asked = Instant::now();
    let shown = ask(&gateway, Method::GET, "").await;
    eprintln!(
        "{KEYS} keys: told after {took:?} in {longest:?} bytes; {:.0} MB before and {:.0} MB after; listed in {:?} as {} bytes",
        before / 1e6,
        after / 1e6,
        asked.elapsed(),
        shown.text.len(),
    );
    let shown = shown.json();
    let listed = shown["alerts"].as_array().into_iter().flatten();
    assert_eq!(listed.filter(|alert| alert["rule"] == "key_disabled").count(), KEYS);
    let said = gateway.logs().matches("an alert fires: key").count();
    assert!((1..=20).contains(&said), "{said} lines in the log");
    assert!(longest.is_some_and(|bytes| bytes < 100_000), "{longest:?}");
    assert!(after - before < MEMORY, "{before} bytes, and then {after}");
    sim.rules(Vec::new());
    let request = gateway.client().request(Method::POST, "/admin/keys/k1/probe").bearer_auth(TOKEN);
    assert_eq!(read(request).await.expect("an answer").status, 202);
    eventually("it is over", Duration::from_mins(1), || async {
        (told(&sink, "key_disabled").len() >= 2).then_some(())
    })
    .await;
    assert_eq!(told(&sink, "key_disabled")[1], ("resolved".to_owned(), all));
}
