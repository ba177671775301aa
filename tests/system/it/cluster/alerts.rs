//! Whoever is to be told is told once, however many replicas there are, and whoever of them is lost.

mod alone;
mod rules;
mod spent;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Cluster, ClusterOptions, Part, Sink, eventually};
use serde_json::{Value, json};

use super::{MODEL, SOON};

const RULE: &str = "key_disabled";

async fn cluster(sink: &Sink, group_wait: u64) -> Cluster {
    let config = json!({
        "alerts": {
            "group_wait_secs": group_wait,
            "group_interval_secs": 1,
            "rules": {"store_unreachable": {"for_secs": 2, "keep_firing_for_secs": 1}},
            "receivers": [{"name": "sink", "type": "webhook", "url": sink.url()}],
        },
    });
    Cluster::start(World::pool(6, 1), ClusterOptions::new(config)).await
}

fn leader(part: Part) -> usize {
    let Part::Coordinator(at) = part else { unreachable!("only coordinators lead") };
    at
}

/// What the leader says of alerts.
async fn alerts(cluster: &Cluster) -> Option<Value> {
    let at = leader(cluster.leader().await);
    Some(cluster.coordinator(at).get("/api/v1/alerts").await.ok()?.json())
}

async fn operate(cluster: &Cluster, path: &str) {
    eventually(path, SOON, || async {
        let at = leader(cluster.leader().await);
        let told = cluster.coordinator(at).post(&format!("/api/v1/{path}"), &json!({})).await.ok()?;
        (told.status == 200).then_some(())
    })
    .await;
}

/// Uses all keys until these are out for good.
async fn breaks(cluster: &Cluster, keys: &[&str]) {
    cluster.sim().rules(keys.iter().map(|key| Rule::family(Family::ApiKeyInvalid).key(key)).collect());
    eventually("keys are out", SOON, || async {
        for gateway in 0..3 {
            cluster.gateway(gateway).chat(MODEL, false).await.ok()?;
        }
        let at = leader(cluster.leader().await);
        let all = cluster.coordinator(at).get("/api/v1/keys").await.ok()?.json();
        let all = all["keys"].as_array()?.clone();
        let is_out = |key: &&str| all.iter().any(|k| k["id"] == **key && k["state"] == "disabled");
        keys.iter().all(is_out).then_some(())
    })
    .await;
}

async fn heals(cluster: &Cluster, keys: &[&str]) {
    cluster.sim().rules(Vec::new());
    for key in keys {
        operate(cluster, &format!("keys/{key}/enable")).await;
    }
}

/// The state in which the leader shows the alert about a key.
async fn until(cluster: &Cluster, key: &str, state: &str) {
    eventually(&format!("the alert about {key} is {state}"), SOON, || async {
        let all = alerts(cluster).await?;
        let about = all["alerts"]
            .as_array()?
            .iter()
            .any(|alert| alert["labels"]["key"] == key && alert["state"] == state);
        about.then_some(())
    })
    .await;
}

/// Nothing is wrong with keys any more, and everybody has been told.
async fn settled(cluster: &Cluster) {
    eventually("all is told", Duration::from_mins(1), || async {
        let all = alerts(cluster).await?;
        let of_rule = |list: &Value| list.as_array().into_iter().flatten().any(|one| one["rule"] == RULE);
        (!of_rule(&all["alerts"]) && !of_rule(&all["outbox"])).then_some(())
    })
    .await;
}

/// Of each key and status, the ids of the messages that told it; and how many messages came twice.
fn told(sink: &Sink) -> (BTreeMap<(String, String), BTreeSet<String>>, usize) {
    let mut told: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let (mut ids, mut doubles) = (BTreeSet::new(), 0);
    for message in sink.messages().into_iter().filter(|message| message.body["data"]["rule"] == RULE) {
        // One that was refused is sent again by right.
        doubles += usize::from(message.status != 503 && !ids.insert(message.id.clone()));
        for alert in message.body["data"]["alerts"].as_array().expect("alerts") {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            let what = (text(&alert["labels"]["key"]), text(&alert["status"]));
            told.entry(what).or_default().insert(message.id.clone());
        }
    }
    (told, doubles)
}

fn assert_told_once(sink: &Sink, keys: &[&str]) -> usize {
    let (told, doubles) = told(sink);
    for key in keys {
        for status in ["firing", "resolved"] {
            let ids = told.get(&((*key).to_owned(), status.to_owned())).map_or(0, BTreeSet::len);
            assert_eq!(ids, 1, "{key} {status}: {told:?}");
        }
    }
    assert_eq!(told.len(), 2 * keys.len(), "{told:?}");
    doubles
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tell_once_that_it_begins_and_once_that_it_is_over() {
    let sink = Sink::start().await;
    let cluster = cluster(&sink, 3).await;
    breaks(&cluster, &["k1", "k2"]).await;
    eventually("it is told", SOON, || async { (!sink.messages().is_empty()).then_some(()) }).await;
    heals(&cluster, &["k1", "k2"]).await;
    settled(&cluster).await;
    let messages: Vec<_> =
        sink.messages().into_iter().filter(|message| message.body["data"]["rule"] == RULE).collect();
    let seen: Vec<_> = messages
        .iter()
        .map(|message| {
            let data = &message.body["data"];
            (data["status"].as_str().expect("a status"), data["alerts"].as_array().expect("alerts").len())
        })
        .collect();
    assert_eq!(seen, [("firing", 2), ("resolved", 2)], "{messages:?}");
    assert_eq!(assert_told_once(&sink, &["k1", "k2"]), 0);
    let past = alerts(&cluster).await.expect("alerts")["history"].clone();
    let of_rule = past.as_array().expect("a history").iter().filter(|past| past["rule"] == RULE);
    assert_eq!(of_rule.count(), 2, "{past}");
}

/// The leader is killed where its work could be lost or done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lose_nothing_wherever_the_leader_is_killed() {
    let sink = Sink::start().await;
    let mut cluster = cluster(&sink, 2).await;
    let keys = ["k1", "k2", "k3", "k4"];
    for (step, key) in keys.into_iter().enumerate() {
        for (begins, state) in [(true, "firing"), (false, "resolved")] {
            let before = sink.messages().len();
            sink.answer([200, 0, 503, 200][step]);
            if begins {
                breaks(&cluster, &[key]).await;
            } else {
                heals(&cluster, &[key]).await;
            }
            let leader = cluster.leader().await;
            let news = || async {
                let all = sink.messages();
                let about = |message: &keyfleet_tests::Message| message.body["data"]["rule"] == RULE;
                all[before..].iter().any(about).then_some(())
            };
            match step {
                // It is known, and no message is made.
                0 => until(&cluster, key, state).await,
                // A message is under way; or was refused, or has just been delivered.
                _ => eventually("a message arrives", SOON, news).await,
            }
            cluster.kill(leader);
            sink.answer(200);
            cluster.restart(leader).await;
            eventually(&format!("{key} {state} is told"), Duration::from_mins(1), || async {
                let delivered = sink.messages().into_iter().filter(|message| message.status == 200);
                let alerts = delivered.flat_map(|message| {
                    message.body["data"]["alerts"].as_array().cloned().unwrap_or_default()
                });
                let mut about = alerts.filter(|alert| alert["labels"]["key"] == key);
                about.any(|alert| alert["status"] == state).then_some(())
            })
            .await;
        }
        settled(&cluster).await;
    }
    let doubles = assert_told_once(&sink, &keys);
    eprintln!("8 kills of the leader: {doubles} messages came twice, under the same id");
}

/// Waits until the leader's history has so many outages of Redis.
async fn remembered(cluster: &Cluster, outages: usize) {
    eventually("it is in the history", SOON, || async {
        let past = alerts(cluster).await?["history"].clone();
        let of_redis = past.as_array()?.iter().filter(|past| past["rule"] == "store_unreachable");
        (of_redis.count() == outages).then_some(())
    })
    .await;
}

/// Without a store nobody leads; whoever led last tells that, and nobody else. Who silenced it is told nothing. What is
/// over is in the history of the next leader: here the same process, which has a head start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tell_once_that_redis_is_away() {
    let sink = Sink::start().await;
    let mut cluster = cluster(&sink, 0).await;
    let of_redis = |status: &str| {
        let all = sink.messages().into_iter().map(|message| message.body["data"].clone());
        all.filter(|data| data["rule"] == "store_unreachable" && data["status"] == status).count()
    };
    for outage in 1..=2 {
        cluster.leader().await;
        cluster.kill(Part::Redis);
        eventually("it is told", SOON, || async { (of_redis("firing") >= outage).then_some(()) }).await;
        cluster.restart(Part::Redis).await;
        eventually("its end is told", SOON, || async { (of_redis("resolved") >= outage).then_some(()) })
            .await;
        assert_eq!((of_redis("firing"), of_redis("resolved")), (outage, outage));
        remembered(&cluster, outage).await;
    }
    operate(&cluster, "alerts/silence?of=rule%3Dstore_unreachable&reason=maintenance&minutes=5").await;
    cluster.kill(Part::Redis);
    let fires = |line: &str| line.contains("an alert fires") && line.contains("store_unreachable");
    eventually("it fires, in the log alone", SOON, || async {
        let logs = [0, 1].map(|at| cluster.log(Part::Coordinator(at)));
        let fired: usize = logs.iter().map(|log| log.lines().filter(|line| fires(line)).count()).sum();
        (fired == 3).then_some(())
    })
    .await;
    cluster.restart(Part::Redis).await;
    remembered(&cluster, 3).await;
    assert_eq!((of_redis("firing"), of_redis("resolved")), (2, 2), "it is silenced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_silenced_and_tested_through_any_coordinator() {
    let sink = Sink::start().await;
    let cluster = cluster(&sink, 0).await;
    let standby = 1 - leader(cluster.leader().await);
    let client = cluster.coordinator(standby);
    let path = "/api/v1/alerts/silence?of=rule%3Dkey_disabled,key%3Dk1&reason=a%20test&author=me&minutes=5";
    let silenced = client.post(path, &json!({})).await.expect("an answer");
    assert_eq!(silenced.status, 200, "{}", silenced.text);
    breaks(&cluster, &["k1", "k2"]).await;
    eventually("the other one is told", SOON, || async {
        told(&sink).0.contains_key(&("k2".to_owned(), "firing".to_owned())).then_some(())
    })
    .await;
    until(&cluster, "k1", "firing").await;
    assert!(!told(&sink).0.keys().any(|(key, _)| key == "k1"));
    let shown = client.get("/api/v1/alerts").await.expect("an answer").json();
    let muted =
        shown["alerts"].as_array().expect("alerts").iter().find(|alert| alert["labels"]["key"] == "k1");
    assert_eq!(muted.expect("the alert")["muted"], "silenced", "{shown}");
    let number = shown["silences"][0]["number"].as_u64().expect("a number");
    let ended = client.post(&format!("/api/v1/alerts/unsilence?number={number}"), &json!({})).await;
    assert_eq!(ended.expect("an answer").status, 200);
    eventually("it is told", SOON, || async {
        told(&sink).0.contains_key(&("k1".to_owned(), "firing".to_owned())).then_some(())
    })
    .await;
    let tested = client.post("/api/v1/alerts/test?receiver=sink", &json!({})).await.expect("an answer");
    assert_eq!(tested.status, 200, "{}", tested.text);
    assert!(sink.messages().iter().any(|message| message.body["data"]["rule"] == "test"));
}
