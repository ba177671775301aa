//! A new configuration while the gateway works.

use std::collections::HashSet;
use std::fs;

use keyfleet_simulator::{AnswerSpec, World};
use keyfleet_tests::{Gateway, GatewayOptions, Sim, eventually, steady_load};
use serde_json::{Value, json};

use super::{MODEL, SLOW, SOON, Stream, chat, keys_used, with_keys};

const IN_FORCE: &str = "the configuration was read again and is in force";

/// Puts `k2` in the place of `k1` by this change while requests come in, and sees that none of them failed.
async fn exchanged(mounted: bool, change: impl AsyncFnOnce(&mut Gateway, &Value)) {
    let sim = Sim::start(World::pool(2, 1)).await;
    let options = GatewayOptions { mounted, ..GatewayOptions::new(with_keys(&sim, &["k1"])) };
    let mut gateway = Gateway::start_with(options).await;
    let client = gateway.client();
    let mut streams = false;
    let load = tokio::spawn(async move {
        let length = std::time::Duration::from_secs(3);
        steady_load(100, length, || {
            streams = !streams;
            client.chat(MODEL, streams)
        })
        .await
    });
    eventually("the load has begun", SOON, || {
        let begun = keys_used(&sim) == HashSet::from(["k1".to_owned()]);
        async move { begun.then_some(()) }
    })
    .await;
    change(&mut gateway, &with_keys(&sim, &["k2"])).await;
    gateway.says(IN_FORCE).await;
    eventually("the new key is in use", SOON, || {
        let used = keys_used(&sim).contains("k2");
        async move { used.then_some(()) }
    })
    .await;
    sim.forget();
    for answer in load.await.expect("the load ends") {
        assert!(answer.status == 200 && answer.whole, "{} {}", answer.status, answer.text);
    }
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    assert_eq!(keys_used(&sim), HashSet::from(["k2".to_owned()]), "a removed key was used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_exchanges_the_keys_and_no_request_fails() {
    exchanged(false, async |gateway, config| {
        gateway.write_config(config);
        gateway.signal("HUP");
        gateway.says("SIGHUP").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_exchanges_the_keys_and_no_request_fails() {
    exchanged(false, async |gateway, config| gateway.write_config(config)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_config_map_exchanges_the_keys_and_no_request_fails() {
    exchanged(true, async |gateway, config| gateway.write_config(config)).await;
}

/// Keys in a file of their own are a part of the configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_of_keys_is_noticed() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let secrets = sim.secrets();
    let folder = tempfile::tempdir().expect("a folder for the keys");
    let file = folder.path().join("keys.txt");
    fs::write(&file, &secrets[0]).expect("the keys are written");
    let mut config = sim.config();
    let group = config["groups"][0].as_object_mut().expect("a group");
    group.remove("api_keys");
    group.insert("api_keys_file".into(), json!(file));
    let gateway = Gateway::start(config).await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    assert_eq!(keys_used(&sim), HashSet::from(["k1".to_owned()]));
    fs::write(&file, format!("# changed\n{}\n", secrets[1])).expect("the keys are written");
    gateway.says(IN_FORCE).await;
    eventually("the new key is in use", SOON, || async {
        assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
        keys_used(&sim).contains("k2").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_changes_nothing_and_is_said_loudly() {
    const RELOADED: &str = "keyfleet_config_last_reload_successful";
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut gateway = Gateway::start(sim.config()).await;
    assert_eq!(gateway.metric(RELOADED).await, Some(1.0));
    let reads = async |gateway: &Gateway, wanted: f64| {
        eventually("the metric tells of the file", SOON, || async {
            (gateway.metric(RELOADED).await == Some(wanted)).then_some(())
        })
        .await;
    };
    let mut bad = sim.config();
    bad["server"]["prot"] = json!(1);
    bad["internal_retries"] = json!("many");
    for text in [bad.to_string(), "groups: [".into(), "server: {}".into()] {
        gateway.write_file(&text);
        reads(&gateway, 0.0).await;
        let answer = gateway.client().chat(MODEL, false).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
        gateway.write_config(&sim.config());
        reads(&gateway, 1.0).await;
    }
    let logs = gateway.logs();
    let lines: Vec<_> = logs.lines().filter(|line| line.contains("NOT in force")).collect();
    assert_eq!(lines.len(), 3, "{logs}");
    assert!(lines.iter().all(|line| line.contains("ERROR")), "{lines:?}");
    assert!(lines[0].contains("prot") && lines[0].contains("internal_retries"), "{}", lines[0]);
    assert!(lines[2].contains("no keys"), "{}", lines[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_with_what_it_began_with() {
    let mut world = World::pool(2, 1);
    world.answer = AnswerSpec { chunks: 30, ..AnswerSpec::default() };
    world.latency = SLOW;
    let sim = Sim::start(world).await;
    let mut gateway = Gateway::start(with_keys(&sim, &["k1"])).await;
    let stream = Stream::open(&gateway, "/v1/chat/completions", &chat(true)).await;
    gateway.write_config(&with_keys(&sim, &["k2"]));
    gateway.signal("HUP");
    gateway.says(IN_FORCE).await;
    let next = Stream::open(&gateway, "/v1/chat/completions", &chat(true)).await;
    assert_eq!(next.response.headers()["x-keyfleet-key"], "k2");
    let began = sim.log().into_iter().find(|request| request.method == "POST").expect("the stream");
    assert_eq!((began.key_id.as_deref(), began.done), (Some("k1"), false), "the stream ended early");
    let text = stream.rest().await;
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_said() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut gateway = Gateway::start(sim.config()).await;
    let mut config = sim.config();
    config["server"]["cors_allowed_origins"] = json!(["https://app.example"]);
    config["server"]["state_file"] = json!("another.json");
    gateway.write_config(&config);
    gateway.signal("HUP");
    gateway.says(IN_FORCE).await;
    let logs = gateway.logs();
    for option in ["server.state_file", "server.cors_allowed_origins"] {
        let warned = logs.lines().any(|line| line.contains(option) && line.contains("next start"));
        assert!(warned, "{option}: {logs}");
    }
}
