//! What a service manager is told, as systemd is: when requests are answered, when the configuration is read again, when
//! the end begins, and that the process is not stuck.

use std::fs;
use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::{
    Client, Cluster, ClusterOptions, Part, Sim, Supervised, eventually, free_port, program,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const MODEL: &str = "gemini-2.5-flash";
/// Far more than anything here takes on an idle machine.
const SOON: Duration = Duration::from_secs(20);
/// Of the manager.
const PATIENCE: Duration = Duration::from_secs(1);
const ALIVE: &str = "WATCHDOG=1";

struct Service {
    process: Supervised,
    client: Client,
    folder: TempDir,
}

impl Service {
    fn start(name: &str, config: &Value) -> Self {
        let folder = TempDir::new().expect("a folder");
        fs::write(folder.path().join("config.yaml"), config.to_string()).expect("the configuration");
        let port = free_port().to_string();
        let mut command = program(name, folder.path());
        command.args(["-p", &port]).env("RUST_LOG", "info,keyfleet_service::supervisor=debug");
        let client = Client::new(format!("http://127.0.0.1:{port}"));
        Self { process: Supervised::start(command, PATIENCE), client, folder }
    }

    /// It answers, and its manager sees that it turns and what it waits for, but not that it is ready.
    async fn is_alive_only(&self) {
        eventually("it lives", SOON, || async { self.client.get("/health").await.ok().map(drop) }).await;
        let (mut beats, mut why) = (0, String::new());
        while beats < 8 || !why.contains("not answer") {
            let message = self.process.told(SOON).await.expect("it turns");
            assert!(!message.contains("READY=1"), "{message}\n{}", self.process.log());
            beats += usize::from(message == ALIVE);
            why = message.strip_prefix("STATUS=not ready: ").map(str::to_owned).unwrap_or(why);
        }
        assert_eq!(self.client.get("/health/ready").await.expect("an answer").status, 503);
    }
}

/// Without the servers that it needs.
fn stranded(sim: &Sim) -> Value {
    let mut config = sim.config();
    config["nats_url"] = json!(format!("nats://127.0.0.1:{}", free_port()));
    config["redis_url"] = json!(format!("redis://127.0.0.1:{}", free_port()));
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_says_when_it_answers_reloads_and_ends() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["server"]["drain_timeout_secs"] = json!(7);
    let mut service = Service::start("gateway", &config);
    service.process.tells("READY=1", SOON).await;
    assert_eq!(service.client.get("/health/ready").await.expect("an answer").status, 200);
    assert_eq!(service.client.chat(MODEL, false).await.expect("an answer").status, 200);

    service.process.signal(Signal::HUP);
    let reloading = service.process.tells("RELOADING=1", SOON).await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    service.process.tells("READY=1", SOON).await;
    fs::write(service.folder.path().join("config.yaml"), "server: {prot: 1}").expect("a mistake");
    service.process.signal(Signal::HUP);
    service.process.tells("RELOADING=1", SOON).await;
    let refused = service.process.tells("READY=1", SOON).await;
    assert!(refused.contains("NOT in force"), "{refused}");

    service.process.signal(Signal::TERM);
    service.process.tells("STOPPING=1", SOON).await;
    // The drain time of the configuration, and half a minute for the rest of the end.
    service.process.tells("EXTEND_TIMEOUT_USEC=37000000", SOON).await;
    assert!(service.process.exit().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_serve_yet_is_alive_and_not_ready() {
    let sim = Sim::start(World::pool(1, 1)).await;
    for name in ["gateway", "coordinator"] {
        Service::start(name, &stranded(&sim)).is_alive_only().await;
    }
}

/// A worker that stands still cannot be made from outside; but all of them are watched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stands_still_is_silent() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let service = Service::start("gateway", &sim.config());
    service.process.tells("READY=1", SOON).await;
    let workers = std::thread::available_parallelism().expect("a number of processors");
    let watched = format!("\"threads\":{workers}");
    eventually("every worker is watched", SOON, || async {
        service.process.log().contains(&watched).then_some(())
    })
    .await;
    service.process.tells(ALIVE, SOON).await;
    service.process.signal(Signal::STOP);
    // What was sent before that is still there.
    eventually("it is silent", SOON, || async {
        service.process.told(PATIENCE).await.is_none().then_some(())
    })
    .await;
    service.process.signal(Signal::CONT);
    service.process.tells(ALIVE, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_says_when_somebody_leads_and_when_it_ends() {
    let options = ClusterOptions { coordinators: 1, ..ClusterOptions::new(json!({})).gateways(1) };
    let cluster = Cluster::start(World::pool(1, 1), options).await;
    let config = fs::read_to_string(cluster.config_file(Part::Coordinator(0))).expect("its configuration");
    let mut service = Service::start("coordinator", &serde_json::from_str(&config).expect("JSON"));
    service.process.tells("READY=1", SOON).await;
    let ready = service.client.get("/health/ready").await.expect("an answer");
    assert!(ready.text.starts_with("ready: standing by"), "{}", ready.text);
    service.process.tells(ALIVE, SOON).await;
    service.process.signal(Signal::TERM);
    service.process.tells("STOPPING=1", SOON).await;
    assert!(service.process.exit().await.success());
}
