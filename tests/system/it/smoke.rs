//! `gateway smoke`: it passes where clients are served, and names what is wrong where they are not.

use std::path::Path;
use std::time::{Duration, Instant};

use keyfleet_simulator::{Action, Family, KeyState, Rule, World};
use keyfleet_tests::{Client, Ended, Gateway, Program, Sim, Supervised, eventually, free_port, program};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOKEN: &str = "token-of-the-smoke-test";
/// Far more than anything here takes on an idle machine.
const SOON: Duration = Duration::from_secs(15);

fn with_client(sim: &Sim) -> Value {
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "smoke", "token": TOKEN}]);
    config
}

/// Looks at `url` with this token.
async fn smoke(url: &str, token: &str, options: &[&str]) -> Ended {
    let arguments = [&["smoke", url, "--timeout", "15"], options].concat();
    let ended = Program::new().env("KEYFLEET_SMOKE_TOKEN", token).run(&arguments).await;
    assert!(!ended.said.contains(TOKEN), "{}", ended.said);
    ended
}

/// The checks that failed, by name.
fn failed(ended: &Ended) -> Vec<String> {
    let lines = ended.said.lines().filter_map(|line| line.strip_prefix("failed  "));
    lines.map(|line| line.get(..14).unwrap_or(line).trim().to_owned()).collect()
}

fn line<'a>(ended: &'a Ended, check: &str) -> &'a str {
    let has = |line: &&str| line.get(8..).is_some_and(|rest| rest.starts_with(check));
    ended.said.lines().find(has).expect("each check has a line")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_deployment_passes() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(with_client(&sim)).await;
    let ended = smoke(&gateway.url(), TOKEN, &[]).await;
    assert_eq!((ended.code, failed(&ended)), (Some(0), vec![]), "{}", ended.said);
    let checks = [
        "health",
        "readiness",
        "models",
        "chat",
        "native",
        "stream",
        "wrong token",
        "unknown model",
        "body limit",
        "keys",
        "still ready",
    ];
    for check in checks {
        assert!(line(&ended, check).starts_with("ok "), "{}", ended.said);
    }
    assert!(ended.said.ends_with("11 checks passed, 0 failed\n"), "{}", ended.said);
    assert!(line(&ended, "chat").contains("by key "), "{}", ended.said);
    let asked = |part: &str| sim.log().iter().any(|request| request.path_and_query.contains(part));
    assert!(asked(":generateContent") && asked("/chat/completions") && asked("/models"));

    // What the token is read from, and the URL that OpenAI clients have.
    let program =
        Program::new().file("token", &format!("{TOKEN}\n")).env("KEYFLEET_SMOKE_TOKEN_FILE", "token");
    let ended = program.run(&["smoke", &format!("{}/v1", gateway.url()), "--model", "gemini-2.5-pro"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(sim.log().iter().any(|request| request.model.as_deref() == Some("gemini-2.5-pro")));
    let ended = program.env("KEYFLEET_SMOKE_TOKEN", TOKEN).run(&["smoke", &gateway.url()]).await;
    assert_eq!(ended.code, Some(2), "two tokens: {}", ended.said);
}

/// `scripts/smoke` is the same, with the gateway that it finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_finds_a_gateway() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let folder = TempDir::new().expect("a folder");
    let ours = program("gateway", folder.path());
    let ours = Path::new(ours.get_program()).parent().expect("the folder of our programs");
    let path = format!("{}:{}", ours.display(), std::env::var("PATH").expect("a PATH"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/smoke");
    let mut command = tokio::process::Command::new(script);
    command
        .arg(gateway.url())
        .env("PATH", path)
        .env_remove("KEYFLEET_SMOKE_TOKEN")
        .current_dir(folder.path());
    let output = command.output().await.expect("the script runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.ends_with("10 checks passed, 0 failed\n"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_open_to_all_passes_without_a_token_alone() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    let ops = free_port();
    config["server"]["ops_port"] = json!(ops);
    let gateway = Gateway::start(config).await;
    let ops = format!("http://127.0.0.1:{ops}");
    let ended = smoke(&gateway.url(), "", &["--ops-url", &ops]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.said.ends_with("10 checks passed, 0 failed\n"), "{}", ended.said);

    let ended = smoke(&gateway.url(), TOKEN, &["--ops-url", &ops]).await;
    assert_eq!((ended.code, failed(&ended)), (Some(1), vec!["wrong token".to_owned()]), "{}", ended.said);
    let ended = smoke(&gateway.url(), "", &[]).await;
    assert_eq!(failed(&ended), ["readiness", "keys", "still ready"], "{}", ended.said);
    assert!(line(&ended, "readiness").contains("--ops-url"), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_named() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(with_client(&sim)).await;
    for token in ["", "not-this-one"] {
        let ended = smoke(&gateway.url(), token, &[]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.said);
        for check in ["models", "chat", "native", "stream"] {
            assert!(line(&ended, check).contains("KEYFLEET_SMOKE_TOKEN"), "{}", ended.said);
        }
        assert!(line(&ended, "readiness").starts_with("ok"), "{}", ended.said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_do_not_work_are_named() {
    let sim = Sim::start(World::pool(2, 1)).await;
    sim.change(|world| world.keys.iter_mut().for_each(|key| key.state = KeyState::Invalid));
    let gateway = Gateway::start(sim.config()).await;
    let ended = smoke(&gateway.url(), "", &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    assert!(line(&ended, "chat").starts_with("failed"), "{}", ended.said);
    let keys = line(&ended, "keys");
    assert!(
        keys.starts_with("failed") && keys.contains("2 disabled") && keys.contains("invalid"),
        "{}",
        ended.said
    );
    assert!(!sim.secrets().iter().any(|secret| ended.said.contains(secret)), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_gone_is_named() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["groups"][0]["target_url"] = json!(format!("http://127.0.0.1:{}/v1beta/openai/", free_port()));
    let gateway = Gateway::start(config).await;
    let ended = smoke(&gateway.url(), "", &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    for check in ["models", "chat", "native", "stream"] {
        let line = line(&ended, check);
        assert!(line.starts_with("failed") && line.contains("groups[].target_url"), "{}", ended.said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_is_named() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    sim.rules(vec![Rule::new(Action::ErrorEvent {
        after_chunks: 1,
        family: Family::Overloaded,
        wrapped: false,
    })]);
    let ended = smoke(&gateway.url(), "", &[]).await;
    assert_eq!((ended.code, failed(&ended)), (Some(1), vec!["stream".to_owned()]), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_ready_says_why() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["nats_url"] = json!(format!("nats://127.0.0.1:{}", free_port()));
    config["redis_url"] = json!(format!("redis://127.0.0.1:{}", free_port()));
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("config.yaml"), config.to_string()).expect("the configuration");
    let port = free_port().to_string();
    let mut command = program("gateway", folder.path());
    command.args(["-p", &port]);
    let gateway = Supervised::start(command, SOON);
    let url = format!("http://127.0.0.1:{port}");
    let client = Client::new(url.clone());
    eventually("it lives", SOON, || async { client.get("/health").await.ok().map(drop) }).await;
    let ended = smoke(&url, "", &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    assert!(line(&ended, "health").starts_with("ok"), "{}", ended.said);
    for check in ["readiness", "still ready"] {
        assert!(line(&ended, check).contains("do not answer"), "{}\n{}", ended.said, gateway.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_there_or_never_answers_is_not_waited_for() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let ended = smoke(&nobody, "", &[]).await;
    assert_eq!((ended.code, failed(&ended)), (Some(1), vec!["health".to_owned()]), "{}", ended.said);
    assert!(ended.said.ends_with("0 checks passed, 1 failed, 9 not made\n"), "{}", ended.said);

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("its address"));
    let began = Instant::now();
    let ended = Program::new().run(&["smoke", &url, "--timeout", "1"]).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!((ended.code, failed(&ended)), (Some(1), vec!["health".to_owned()]), "{}", ended.said);
    assert!(ended.said.contains("--timeout"), "{}", ended.said);

    let ended = Program::new().run(&["smoke", "127.0.0.1:4806"]).await;
    assert_eq!(ended.code, Some(2), "no URL: {}", ended.said);
}
