//! The program on the command line.

use std::net::TcpListener;

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, GatewayOptions, Program, Sim, eventually, free_port};
use serde_json::{Value, json};

use super::{MODEL, SOON, keys_used};

/// `EX_CONFIG` of sysexits.
const CONFIG: Option<i32> = Some(78);
const VERSION: &str = env!("CARGO_PKG_VERSION");
const GOOD: &str = "groups:\n- name: pool\n  api_keys: [AIzaSy-secret-of-the-test]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_a_clear_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let program = Program::new().file("config.yaml", GOOD);
    let ended = program.run(&["serve", "-p", &port.to_string()]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    let error = format!("server.port: cannot listen on 127.0.0.1:{port}: Address already in use");
    assert!(ended.said.contains(&error), "{}", ended.said);
    assert!(!ended.said.contains("is listening"), "{}", ended.said);

    let program = program.env("KEYFLEET__SERVER__OPS_PORT", &port.to_string());
    let ended = program.run(&["serve", "-p", &free_port().to_string()]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    assert!(ended.said.contains(&error.replace("server.port", "server.ops_port")), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_is_told_at_once() {
    const BAD: &str = "server:\n  prot: 80\n  top_p: 3\ngroups:\n- name: pool\n  target_url: gemini\n  \
                       api_keys: [a-key, a-key]\nrate_limt: {}\n";
    let program = Program::new().file("config.yaml", BAD);
    for command in ["serve", "check-config", "print-config"] {
        let ended = program.run(&[command]).await;
        assert_eq!(ended.code, CONFIG, "{command}: {}", ended.said);
        for place in ["config.yaml:2", "config.yaml:3", "config.yaml:6", "config.yaml:7", "config.yaml:8"] {
            assert!(ended.said.contains(place), "{command} does not name {place}: {}", ended.said);
        }
        for hint in ["did you mean `port`", "did you mean `rate_limit`"] {
            assert!(ended.said.contains(hint), "{command} does not suggest {hint}: {}", ended.said);
        }
        assert!(!ended.said.contains("a-key"), "{command} shows a key: {}", ended.said);
    }
    let ended = Program::new().run(&["serve"]).await;
    assert_eq!(ended.code, CONFIG, "{}", ended.said);
    assert!(ended.said.contains("GEMINI_API_KEYS"), "{}", ended.said);
    let ended = Program::new().run(&["serve", "--prot", "1"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_configuration_is_checked_and_shown_without_a_connection() {
    const ADMIN_TOKEN: &str = "admin-token-of-the-test";
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["admin_token"] = json!(ADMIN_TOKEN);
    config["redis_url"] = json!("redis://user:redis-password@localhost");
    let program = Program::new()
        .file("config.yaml", &config.to_string())
        .env("KEYFLEET__SERVER__TOP_P", "0.5")
        .env("HTTPS_PROXY", "http://127.0.0.1:9");
    let checked = program.run(&["check-config"]).await;
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    assert!(checked.said.contains("the configuration is good"), "{}", checked.said);
    assert!(!checked.said.contains("warning"), "everything in it has an effect: {}", checked.said);
    let printed = program.run(&["print-config", "-p", "4999"]).await;
    assert_eq!(printed.code, Some(0), "{}", printed.said);
    let line = |text: &str| printed.said.lines().find(|line| line.contains(text)).unwrap_or_default();
    assert!(line("port:").contains("4999") && line("port:").contains("command line"), "{}", printed.said);
    assert!(
        line("top_p").contains("0.5") && line("top_p").contains("KEYFLEET__SERVER__TOP_P"),
        "{}",
        printed.said
    );
    assert!(line("target_url").contains("config.yaml:"), "{}", printed.said);
    assert!(line("internal_retries").contains("default"), "{}", printed.said);
    for secret in [sim.secrets().remove(0).as_str(), ADMIN_TOKEN, "redis-password"] {
        assert!(!printed.said.contains(secret) && !checked.said.contains(secret), "{secret}");
    }
    assert!(sim.log().is_empty(), "a look at the configuration called the upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_stand_before_and_behind_the_command() {
    let program = Program::new().file("my.yaml", GOOD);
    let all = ["-c", "my.yaml", "-H", "127.0.0.2", "-p", "4999"];
    let before = [all.as_slice(), &["print-config"]].concat();
    let behind = [&["print-config"], all.as_slice()].concat();
    let around = ["-c", "my.yaml", "print-config", "-H", "127.0.0.2", "--port", "4999"];
    for arguments in [before.as_slice(), &behind, &around] {
        let ended = program.run(arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.said);
        for part in ["4999", "127.0.0.2", "my.yaml:2"] {
            assert!(ended.said.contains(part), "{arguments:?}: {part} is missing: {}", ended.said);
        }
    }
    let missing = program.run(&["check-config", "-c", "other.yaml"]).await;
    assert_eq!(missing.code, CONFIG, "{}", missing.said);
    assert!(missing.said.contains("other.yaml") && missing.said.contains("CONFIG_PATH"), "{}", missing.said);
    let named = Program::new().file("named.yaml", GOOD).env("CONFIG_PATH", "named.yaml").env("PORT", "4998");
    let ended = named.run(&["print-config"]).await;
    assert!(ended.said.contains("named.yaml:") && ended.said.contains("4998"), "{}", ended.said);
}

/// The commit that the programs were told when they were built.
fn revision() -> &'static str {
    option_env!("KEYFLEET_REVISION").filter(|revision| !revision.is_empty()).unwrap_or("unknown")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_commands_answer() {
    let program = Program::new();
    let version = program.run(&["version"]).await;
    assert_eq!(
        (version.code, version.said.trim()),
        (Some(0), format!("gateway {VERSION} ({})", revision()).as_str())
    );
    let version = program.run(&["version", "--json"]).await;
    let expected = json!({"name": "gateway", "version": VERSION, "revision": revision()});
    assert_eq!(serde_json::from_str::<Value>(&version.said).expect("JSON"), expected);
    for shell in ["bash", "zsh", "fish"] {
        let script = program.run(&["completions", shell]).await;
        assert_eq!(script.code, Some(0), "{shell}");
        assert!(script.said.contains("check-config"), "{shell}: {}", script.said);
    }
    let port = free_port().to_string();
    let dead = program.run(&["healthcheck", "-p", &port]).await;
    assert_eq!(dead.code, Some(1), "{}", dead.said);
    assert!(dead.said.contains(&port), "{}", dead.said);

    let sim = Sim::start(World::pool(1, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let port = gateway.url().rsplit(':').next().map(str::to_owned).expect("a port");
    let alive = program.run(&["-p", &port, "healthcheck"]).await;
    assert_eq!(alive.code, Some(0), "{}", alive.said);
}

/// Nothing but the environment: the keys of `GEMINI_API_KEYS` are used beside those of the groups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_alone_is_enough() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let secrets = sim.secrets();
    let program = Program::new().env("GEMINI_API_KEYS", &secrets.join(","));
    let printed = program.run(&["print-config"]).await;
    assert_eq!(printed.code, Some(0), "{}", printed.said);
    assert_eq!(
        printed.said.matches("GEMINI_API_KEYS").count(),
        4,
        "a group and three keys: {}",
        printed.said
    );
    assert!(!secrets.iter().any(|secret| printed.said.contains(secret)), "{}", printed.said);

    // The variables go to the provider's address; here it is the simulator's, by a group of the same name.
    let mut config = sim.config();
    config["groups"][0]["name"] = json!("env");
    config["groups"][0]["api_keys"] = json!([secrets[0]]);
    let keys = ("GEMINI_API_KEYS".to_owned(), format!(" {} ,{}\n", secrets[1], secrets[2]));
    let options = GatewayOptions { env: vec![keys], ..GatewayOptions::new(config) };
    let gateway = Gateway::start_with(options).await;
    eventually("all three keys are in use", SOON, || async {
        assert_eq!(gateway.client().chat(MODEL, false).await.expect("an answer").status, 200);
        (keys_used(&sim).len() == 3).then_some(())
    })
    .await;
}
