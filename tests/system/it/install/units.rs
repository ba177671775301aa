//! The units: systemd understands them, they allow little, and what they start serves clients.

use std::fs;
use std::process::Command;
use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::{Program, Sim, Supervised, free_port};

use super::{CONFIG, KEYS, Root, SCRIPTS, TOKEN, released};

const UNITS: [&str; 2] = ["keyfleet-gateway.service", "keyfleet-coordinator.service"];
/// Of systemd's exposure level, from 0 (none) to 10. What remains is the network, and /proc for figures and the boot's id.
const MOST_EXPOSED: f64 = 1.2;
const SOON: Duration = Duration::from_secs(20);

/// The values of a setting, in order.
fn settings<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

fn analyze(root: &Root, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .arg(format!("--root={}", root.0.path().display()))
        .args(arguments)
        .output()
        .expect("systemd-analyze: run scripts/test, which installs it");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn systemd_understands_them_and_they_allow_little() {
    let root = Root::with(released());
    // What ExecReload= runs.
    root.write("bin/kill", "#!/bin/sh\n");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.path("bin/kill"), executable).expect("it can be run");
    for unit in UNITS {
        let (good, said) = analyze(&root, &["verify", "--recursive-errors=no", unit]);
        assert!(good && said.is_empty(), "{unit}: {said}");
        let (_, said) = analyze(&root, &["security", "--offline=true", unit]);
        let level = said
            .lines()
            .find_map(|line| line.split_once("exposure level for")?.1.split_once(": "))
            .expect("it");
        let level: f64 = level.1.split(' ').next().and_then(|level| level.parse().ok()).expect("a number");
        assert!(level <= MOST_EXPOSED, "{unit} is exposed at {level}: {said}");
    }
}

#[test]
fn they_wait_as_long_as_the_drain_may_take() {
    let defaults = fs::read_to_string(format!("{SCRIPTS}/../README.md")).expect("the README");
    let row = defaults
        .lines()
        .find_map(|line| line.strip_prefix("| `server.drain_timeout_secs` | `"))
        .expect("a row");
    let drain: u64 = row.split('`').next().and_then(|text| text.parse().ok()).expect("a number");
    let unit = fs::read_to_string(format!("{SCRIPTS}/systemd/{}", UNITS[0])).expect("the unit");
    assert_eq!(settings(&unit, "TimeoutStopSec"), [(drain + 30).to_string()]);
}

/// Starts what a unit says, as systemd would but for the sandbox.
fn start(root: &Root, name: &str) -> Supervised {
    let unit = root.read(&format!("etc/systemd/system/{name}"));
    let place = |path: &str| root.path(path.trim_start_matches('/'));
    let given = root.path("run/credentials").join(name);
    fs::create_dir_all(&given).expect("a folder");
    for credential in settings(&unit, "LoadCredential") {
        let (id, path) = credential.split_once(':').expect("ID:PATH");
        fs::copy(place(path), given.join(id)).expect("every credential is there");
    }
    let state = root.path("var/lib");
    for folder in settings(&unit, "StateDirectory") {
        fs::create_dir_all(state.join(folder)).expect("a folder");
    }
    let mut words = settings(&unit, "ExecStart")[0].split(' ');
    let file = place(words.next().expect("a program"));
    // Nothing of our own environment, and nothing that a unit does not have.
    let mut command = Command::new(file);
    command.env_clear().current_dir("/").env("CREDENTIALS_DIRECTORY", &given);
    for word in words {
        match word.strip_prefix("/etc/") {
            Some(path) => command.arg(root.path("etc").join(path)),
            None => command.arg(word),
        };
    }
    for variable in settings(&unit, "Environment") {
        let (name, value) = variable.split_once('=').expect("NAME=VALUE");
        command.env(name, value.replace("%S", &state.display().to_string()));
    }
    let watchdog: u64 = settings(&unit, "WatchdogSec")[0].parse().expect("seconds");
    Supervised::start(command, Duration::from_secs(watchdog))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_installed_serves_clients() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let root = tokio::task::spawn_blocking(|| Root::with(released())).await.expect("it is installed");
    // As the README says: keys into their file. The rest is where a test must not go: the provider, and a fixed port.
    root.write(KEYS, &sim.secrets().join("\n"));
    let port = free_port();
    let target = format!("  - name: main\n    target_url: {}/v1beta/openai/\n", sim.url());
    let config = root.read(CONFIG).replace("  - name: main\n", &target);
    root.write(CONFIG, &config.replace("port: 4806", &format!("port: {port}")));

    let mut service = start(&root, UNITS[0]);
    service.tells("READY=1", SOON).await;
    service.tells("WATCHDOG=1", SOON).await;
    let token = root.path(TOKEN).display().to_string();
    let smoke = Program::new().env("KEYFLEET_SMOKE_TOKEN_FILE", &token);
    let ended = smoke.run(&["smoke", &format!("http://127.0.0.1:{port}"), "--timeout", "15"]).await;
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.said, service.log());
    let secrets = [root.read(TOKEN), sim.secrets().remove(0)];
    assert!(!secrets.iter().any(|secret| service.log().contains(secret)), "a secret in its log");

    service.signal(rustix::process::Signal::TERM);
    service.tells("STOPPING=1", SOON).await;
    assert!(service.exit().await.success(), "{}", service.log());
    assert!(
        root.path("var/lib/keyfleet-gateway/keyfleet-state.json").exists(),
        "no state: {}",
        service.log()
    );
}

/// A coordinator's unit reads the same file; it says what it lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_takes_the_same_configuration() {
    let root = tokio::task::spawn_blocking(|| Root::with(released())).await.expect("it is installed");
    root.write(KEYS, "a-key-of-the-test\n");
    let mut alone = start(&root, UNITS[1]);
    assert_eq!(alone.exit().await.code(), Some(78), "{}", alone.log());
    assert!(alone.log().contains("needs nats_url and redis_url"), "{}", alone.log());

    for name in ["redis", "nats"] {
        root.write(
            &format!("etc/keyfleet/credentials/{name}-url"),
            &format!("{name}://127.0.0.1:{}\n", free_port()),
        );
    }
    let port = format!("coordinator: {{port: {}}}\n", free_port());
    root.write(
        CONFIG,
        &(root.read(CONFIG).replace("\n# redis_url", "\nredis_url").replace("\n# nats_url", "\nnats_url")
            + &port),
    );
    let mut service = start(&root, UNITS[1]);
    // Its servers are not there, but it lives.
    service.tells("WATCHDOG=1", SOON).await;
    service.signal(rustix::process::Signal::TERM);
    assert!(service.exit().await.success(), "{}", service.log());
}
