//! Each rule on the fault that it is for: told once when that begins, and once when it is over, with what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyfleet_simulator::{Action, Family, Rule, World};
use keyfleet_tests::{Client, Cluster, ClusterOptions, Part, Sink, eventually};
use serde_json::{Value, json};

use super::super::limited;
use super::{alerts, leader, operate};

/// A new leader knows rates after a minute, and forgets them after another.
pub(super) const LONG: Duration = Duration::from_mins(3);

/// Of each rule, words of what it advises.
const ADVICE: [(&str, &str); 14] = [
    ("pool_exhausted", "`coordinator keys` shows"),
    ("pool_low", "add projects"),
    ("unhealthy_keys", "share a project"),
    ("error_rate", "`fallbacks` can spare clients"),
    ("response_time", "look at the network"),
    ("breaker_open", "set `fallbacks`"),
    ("external_use", "lower its limit in `limits`"),
    ("store_suspect", "appendonly"),
    ("config_rejected", "`coordinator check-config`"),
    ("delivery_failing", "`coordinator alerts test`"),
    ("bus_unreachable", "Bring NATS back"),
    ("replica_lost", "look at its log"),
    ("leader_changed", "did not hand over"),
    ("key_disabled", "Replace the key"),
];

/// No rule waits longer than it has to.
pub(super) fn config(more: &Value, receivers: &[(&str, &Sink)]) -> Value {
    let brief = json!({"for_secs": 1, "keep_firing_for_secs": 1});
    let mut rules: BTreeMap<_, _> =
        ADVICE.iter().map(|(rule, _)| ((*rule).to_owned(), brief.clone())).collect();
    // While none is left it explains why few are, and its end comes after that of this.
    rules.insert("pool_exhausted".to_owned(), json!({"for_secs": 1, "keep_firing_for_secs": 5}));
    let receivers: Vec<_> = receivers
        .iter()
        .map(|(name, sink)| json!({"name": name, "type": "webhook", "url": sink.url()}))
        .collect();
    let mut config = json!({
        "alerts": {"group_wait_secs": 0, "group_interval_secs": 1, "rules": rules, "receivers": receivers},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

/// Of every alert, what was told of it in order; a message lists all that fires, so that what is no news is left out.
pub(super) fn stories(sink: &Sink) -> BTreeMap<(String, String), Vec<String>> {
    let mut stories: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for message in sink.messages() {
        let data = &message.body["data"];
        let rule = data["rule"].as_str().expect("a rule");
        assert!(ids.insert(message.id.clone()), "it came twice: {data}");
        let mut is_news = false;
        for alert in data["alerts"].as_array().expect("alerts") {
            let advice = alert["advice"].as_str().expect("an advice");
            let expected = ADVICE.iter().find(|(of, _)| *of == rule).map(|(_, words)| *words);
            assert!(expected.is_some_and(|words| advice.contains(words)), "{rule}: {advice}");
            let story = stories.entry((rule.to_owned(), alert["labels"].to_string())).or_default();
            let status = alert["status"].as_str().expect("a status").to_owned();
            if story.last() != Some(&status) {
                story.push(status);
                is_news = true;
            }
        }
        assert!(is_news, "nobody needs this message: {data}");
    }
    stories
}

/// Whether every alert of a rule stands so by what was told, and there is one.
fn stands(sink: &Sink, rule: &str, status: &str) -> bool {
    let stories = stories(sink);
    let mut of_rule = stories.iter().filter(|((of, _), _)| of == rule).map(|(_, story)| story).peekable();
    of_rule.peek().is_some() && of_rule.all(|story| story.last().is_some_and(|last| last == status))
}

pub(super) async fn told(sink: &Sink, rule: &str, status: &str) {
    eventually(&format!("{rule} is told: {status}"), LONG, || async {
        stands(sink, rule, status).then_some(())
    })
    .await;
}

/// These rules were told of, each alert once in each direction, and no others.
fn assert_told(sink: &Sink, rules: &[&str]) {
    let stories = stories(sink);
    for (alert, story) in &stories {
        assert_eq!(story, &["firing", "resolved"], "{alert:?}");
    }
    let seen: BTreeSet<_> = stories.keys().map(|(rule, _)| rule.as_str()).collect();
    assert_eq!(seen, rules.iter().copied().collect());
}

/// What is asked for all the time: half of the keys fail for the first, all fail for the second, the third is slow.
const FAILING: &str = "gemini-2.5-flash";
const DOWN: &str = "gemini-2.5-pro";
const SLOW: &str = "gemini-3.5-flash";
/// What is asked for when it is needed.
const LOW: &str = "gemini-3.5-flash-lite";
const SHARED: &str = "gemini-3.8-flash";
const EXHAUSTED: &str = "gemini-4-carbon";

fn faults() -> Vec<Rule> {
    let keys = |range: std::ops::RangeInclusive<u32>| range.map(|key| format!("k{key}"));
    let mut rules: Vec<_> =
        keys(1..=5).map(|key| Rule::family(Family::Internal).key(&key).model(FAILING)).collect();
    rules.extend(keys(1..=9).map(|key| Rule::family(Family::PerDay429).key(&key).model(LOW)));
    rules.push(Rule::family(Family::PerDay429).model(SHARED));
    rules.push(Rule::family(Family::Overloaded).model(DOWN));
    rules.push(Rule::new(Action::StallBeforeHeaders { ms: Some(600) }).model(SLOW));
    rules
}

/// Asks for a model through one gateway after the other, for as long as it is polled.
async fn ask_for(model: &str, gateways: &[Client; 3], pause_ms: u64) {
    for gateway in gateways.iter().cycle() {
        // Most of it fails.
        drop(gateway.chat(model, false).await);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}

async fn traffic(gateways: [Client; 3]) {
    tokio::join!(
        ask_for(FAILING, &gateways, 100),
        ask_for(DOWN, &gateways, 300),
        ask_for(SLOW, &gateways, 300)
    );
}

async fn unblock_all(cluster: &Cluster) {
    for key in 1..=10 {
        operate(cluster, &format!("keys/k{key}/unblock")).await;
    }
}

/// What begins at once, and what needs a minute of traffic.
async fn upstream_fails(cluster: &Cluster, sink: &Sink) {
    cluster.sim().rules(faults());
    eventually("others use a quota", LONG, || async {
        cluster.gateway(0).chat(SHARED, false).await.ok()?;
        unblock_all(cluster).await;
        stands(sink, "external_use", "firing").then_some(())
    })
    .await;
    eventually("few keys are left", LONG, || async {
        cluster.gateway(0).chat(LOW, false).await.ok()?;
        stands(sink, "pool_low", "firing").then_some(())
    })
    .await;
    for rule in ["unhealthy_keys", "breaker_open", "error_rate", "response_time"] {
        told(sink, rule, "firing").await;
    }
}

async fn upstream_heals(cluster: &mut Cluster, sink: &Sink) {
    cluster.sim().rules(Vec::new());
    unblock_all(cluster).await;
    cluster.reconfigure(|config| config["limits"] = json!([{"models": SHARED, "rpd": 500}]));
    for rule in ["external_use", "pool_low", "breaker_open"] {
        told(sink, rule, "resolved").await;
    }
    cluster.sim().rules(vec![Rule::family(Family::PerDay429).model(EXHAUSTED)]);
    let refused = cluster.gateway(0).chat(EXHAUSTED, false).await.expect("an answer");
    assert_eq!(refused.status, 429, "{}", refused.text);
    told(sink, "pool_exhausted", "firing").await;
    cluster.sim().rules(Vec::new());
    unblock_all(cluster).await;
    for rule in ["pool_exhausted", "unhealthy_keys", "error_rate", "response_time"] {
        told(sink, rule, "resolved").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_upstream_are_told_when_it_fails_and_when_it_is_well_again() {
    let sink = Sink::start().await;
    let more = json!({
        "limits": [{"models": SHARED, "rpd": 600}],
        "max_failures_threshold": 1_000,
        "circuit_breaker": {"failure_threshold": 20, "recovery_timeout_secs": 1},
        "monitoring": {"alert_thresholds": {"response_time_ms": 400}},
    });
    let options = ClusterOptions::new(config(&more, &[("sink", &sink)]));
    let mut cluster = Cluster::start(World::pool(10, 1), options).await;
    let gateways = [0, 1, 2].map(|at| cluster.gateway(at));
    let incidents = async {
        upstream_fails(&cluster, &sink).await;
        upstream_heals(&mut cluster, &sink).await;
    };
    tokio::select! {
        () = traffic(gateways) => {}
        () = incidents => {}
    }
    assert_told(
        &sink,
        &[
            "breaker_open",
            "error_rate",
            "external_use",
            "pool_exhausted",
            "pool_low",
            "response_time",
            "unhealthy_keys",
        ],
    );
}

async fn ask_all(cluster: &Cluster) -> Option<()> {
    for gateway in 0..3 {
        cluster.gateway(gateway).chat(FAILING, false).await.ok()?;
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_deployment_are_told_when_a_part_fails_and_when_it_is_back() {
    let [sink, broken, choosy] = [Sink::start().await, Sink::start().await, Sink::start().await];
    let receivers = [("sink", &sink), ("broken", &broken), ("choosy", &choosy)];
    let config = config(&limited(600), &receivers);
    let mut cluster = Cluster::start(World::pool(4, 1), ClusterOptions::new(config)).await;
    ask_all(&cluster).await.expect("answers");

    // Whatever was stored is lost, alerts included. For 70 seconds nothing is granted of a minute's quota.
    choosy.answer(400);
    cluster.redis().ask(&["FLUSHALL"]).await.expect("it forgets");
    told(&sink, "store_suspect", "firing").await;

    broken.answer(503);
    cluster.reconfigure(|config| config["no_such_option"] = json!(1));
    told(&sink, "config_rejected", "firing").await;
    told(&sink, "delivery_failing", "firing").await;
    // Three messages about different things, and it was asked to take each.
    let of_choosy = json!({"receiver": "choosy"}).to_string();
    eventually("it refuses messages", LONG, || async {
        stories(&sink).contains_key(&("delivery_failing".to_owned(), of_choosy.clone())).then_some(())
    })
    .await;
    let given_up = alerts(&cluster).await.expect("alerts")["given_up"].clone();
    assert!(given_up.as_array().is_some_and(|all| all.len() >= 3), "{given_up}");
    choosy.answer(200);
    broken.answer(200);
    cluster.reconfigure(|config| drop(config.as_object_mut().expect("a map").remove("no_such_option")));
    told(&sink, "config_rejected", "resolved").await;
    told(&sink, "delivery_failing", "resolved").await;

    cluster.kill(Part::Nats);
    told(&sink, "bus_unreachable", "firing").await;
    cluster.restart(Part::Nats).await;
    told(&sink, "bus_unreachable", "resolved").await;
    told(&sink, "store_suspect", "resolved").await;

    ask_all(&cluster).await.expect("answers");
    cluster.pause(Part::Gateway(2));
    told(&sink, "replica_lost", "firing").await;
    cluster.resume(Part::Gateway(2));
    eventually("it is back", LONG, || async {
        ask_all(&cluster).await?;
        stands(&sink, "replica_lost", "resolved").then_some(())
    })
    .await;

    let led = cluster.leader().await;
    cluster.kill(led);
    told(&sink, "leader_changed", "firing").await;
    assert_ne!(leader(cluster.leader().await), leader(led));
    told(&sink, "leader_changed", "resolved").await;
    assert_told(
        &sink,
        &[
            "bus_unreachable",
            "config_rejected",
            "delivery_failing",
            "leader_changed",
            "replica_lost",
            "store_suspect",
        ],
    );
}
