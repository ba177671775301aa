//! What is known of the keys outlives the process.

use std::fs;

use keyfleet_simulator::{Action, Family, KeyState, Rule, World};
use keyfleet_tests::{Gateway, Program, Sim, eventually, free_port};
use serde_json::{Value, json};

use super::{MODEL, SOON, keys_used};

const STATE: &str = "keyfleet-state.json";
const ADMIN_TOKEN: &str = "admin-token-5d0a77c1";

/// How `/health/detailed` sees a key.
async fn health_of(gateway: &Gateway, key: &str) -> Option<Value> {
    let health = gateway.client().get("/health/detailed").await.ok()?.json();
    health["keys"].as_array()?.iter().find(|found| found["id"] == key).cloned()
}

async fn state_of(gateway: &Gateway, key: &str) -> Option<String> {
    health_of(gateway, key).await?["state"].as_str().map(str::to_owned)
}

async fn score_of(gateway: &Gateway, key: &str) -> Option<f64> {
    health_of(gateway, key).await?["score"].as_f64()
}

/// A dead key and a project without quota for the day are known when the process is ended by this signal. Upstream both
/// are well again when the next process starts, and its prober learns nothing, so that only its memory keeps it from
/// using them.
async fn remembered(signal: &str) {
    let mut world = World::pool(3, 1);
    world.keys[0].state = KeyState::Invalid;
    let sim = Sim::start(world).await;
    sim.rules(vec![Rule::family(Family::PerDay429).project("p2").path("/chat/")]);
    let mut config = sim.config();
    config["server"]["state_file"] = json!(STATE);
    let mut gateway = Gateway::start(config).await;
    eventually("both are found out", SOON, || async {
        let answer = gateway.client().chat(MODEL, false).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
        let day = sim.log().iter().any(|request| request.status == 429);
        (day && state_of(&gateway, "k1").await.as_deref() == Some("disabled")).then_some(())
    })
    .await;
    // Scores are the coordinator's, and it stores what it decides before it says so: both are on disk.
    eventually("the coordinator has heard of the day", SOON, || async {
        (score_of(&gateway, "k2").await? < 1.0).then_some(())
    })
    .await;
    gateway.signal(signal);
    gateway.exit().await;
    sim.rules(vec![Rule::new(Action::StallBeforeHeaders { ms: None }).path("/models")]);
    sim.change(|world| world.keys[0].state = KeyState::Ok);
    gateway.restart().await;
    assert!(!gateway.logs().contains("made anew"), "its reports are its own: {}", gateway.logs());
    assert_eq!(state_of(&gateway, "k1").await.as_deref(), Some("disabled"));
    for _ in 0..12 {
        let answer = gateway.client().chat(MODEL, false).await.expect("an answer");
        assert_eq!((answer.status, answer.header("x-keyfleet-key")), (200, "k3"));
    }
    let other = gateway.client().chat("gemini-2.5-pro", false).await.expect("an answer");
    assert_eq!(other.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_nothing() {
    remembered("TERM").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_forgets_nothing() {
    remembered("KILL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_set_aside() {
    const DAMAGED: &str = "{\"version\":1,\"state\":{\"re";
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["state_file"] = json!(STATE);
    let mut gateway = Gateway::start(config).await;
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
    let file = gateway.folder().join(STATE);
    fs::write(&file, DAMAGED).expect("the file is written");
    gateway.restart().await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    gateway.says("it is set aside").await;
    let aside = file.with_extension("json.damaged");
    assert_eq!(fs::read_to_string(aside).expect("the damaged file is kept"), DAMAGED);
}

/// Two processes would each spend the same quota.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_process_has_open_is_an_error_with_its_remedy() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["state_file"] = json!(STATE);
    let gateway = Gateway::start(config.clone()).await;
    config["server"]["state_file"] = json!(gateway.folder().join(STATE));
    let second = Program::new().file("config.yaml", &config.to_string());
    let ended = second.run(&["serve", "-p", &free_port().to_string()]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    for part in ["server.state_file", "a file of its own", "nats_url"] {
        assert!(ended.said.contains(part), "{}", ended.said);
    }
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
}

/// A file that cannot be written is no reason not to serve, and is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_written_is_said() {
    let mut world = World::pool(2, 1);
    world.keys[0].state = KeyState::Invalid;
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    config["server"]["state_file"] = json!("no/such/folder/state.json");
    let gateway = Gateway::start(config.clone()).await;
    assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
    gateway.says("the state file cannot be written").await;
    let logs = gateway.logs();
    assert!(logs.contains("no/such/folder/state.json") && logs.contains("writable for this user"), "{logs}");

    // But nobody vouches for what an earlier process used of a quota: it is back in a minute and a lease's life.
    config["limits"] = json!([{"rpm": 10}]);
    let gateway = Gateway::start(config).await;
    let refused = gateway.client().chat(MODEL, false).await.expect("an answer");
    let after: u64 = refused.header("retry-after").parse().expect("a refusal says when to come back");
    assert!(refused.status == 429 && (60..=75).contains(&after), "{} {after}", refused.status);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repaired_key_comes_back_by_hand() {
    let mut world = World::pool(2, 1);
    world.keys[0].state = KeyState::Invalid;
    let sim = Sim::start(world).await;
    let mut config = sim.config();
    config["server"]["admin_token"] = json!(ADMIN_TOKEN);
    config["server"]["clients"] = json!([{"name": "tests", "token": "placeholder"}]);
    let gateway = Gateway::start(config).await;
    let is = async |state: &str| {
        eventually(&format!("the key is {state}"), SOON, || async {
            (state_of(&gateway, "k1").await.as_deref() == Some(state)).then_some(())
        })
        .await;
    };
    let probe = async |key: &str, token: &str| {
        let path = format!("/admin/keys/{key}/probe");
        let request = gateway.client().request(reqwest::Method::POST, &path).bearer_auth(token);
        keyfleet_tests::read(request).await.expect("an answer").status
    };
    is("disabled").await;
    sim.change(|world| world.keys[0].state = KeyState::Ok);
    sim.forget();
    // A client's token is not the operator's.
    for token in ["placeholder", "", "admin-token-5d0a77c2"] {
        assert_eq!(probe("k1", token).await, 401, "{token}");
    }
    assert_eq!(probe("k9", ADMIN_TOKEN).await, 404);
    assert!(
        !sim.log().iter().any(|request| request.key_id.as_deref() == Some("k1")),
        "looked at without a right"
    );
    assert_eq!(probe("k1", ADMIN_TOKEN).await, 202);
    is("perfect").await;
    sim.forget();
    eventually("the key is in use", SOON, || async {
        assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
        keys_used(&sim).contains("k1").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_admin_token_nobody_is_the_operator() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for token in ["", "placeholder"] {
        let request = gateway.client().request(reqwest::Method::POST, "/admin/keys/k1/probe");
        let answer = keyfleet_tests::read(request.bearer_auth(token)).await.expect("an answer");
        assert_eq!(answer.status, 403, "{}", answer.text);
    }
}
