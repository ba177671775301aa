//! One gateway process, from its configuration file to its last log line.

mod control;
mod program;

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::eventually::eventually;

pub use program::{Ended, Program};

/// Below the range from which the kernel takes the ports of outgoing connections, so that thousands of those never take
/// a port between our asking for it and the gateway's binding it.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How to start a gateway.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The configuration file; JSON is YAML. Host and port come from the command line.
    pub config: Value,
    /// `RUST_LOG` of the process.
    pub log: String,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// The file lies as Kubernetes mounts a `ConfigMap`: behind two symlinks, in a folder with nothing else.
    pub mounted: bool,
    /// Nobody reads its standard output: a pipe that fills up.
    pub unread: bool,
}

impl GatewayOptions {
    /// The configuration given, with logs at `info`.
    pub fn new(config: Value) -> Self {
        Self { config, log: "info".into(), env: Vec::new(), mounted: false, unread: false }
    }
}

/// A running gateway. Dropping it kills the process, searches what it left for secrets, and removes its folder.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    options: GatewayOptions,
    secrets: Vec<String>,
    folder: TempDir,
    port: u16,
}

impl Gateway {
    /// Starts a gateway with this configuration and waits until it is ready.
    pub async fn start(config: Value) -> Self {
        Self::start_with(GatewayOptions::new(config)).await
    }

    /// Starts a gateway and waits until it is ready.
    pub async fn start_with(options: GatewayOptions) -> Self {
        let folder = TempDir::new().expect("a folder for the gateway");
        control::write(folder.path(), &options, &control::text(&options.config));
        let port = free_port();
        let child = spawn(&options, folder.path(), port);
        let secrets = secrets(&options.config);
        crate::spill::watch(port, &secrets);
        let mut gateway = Self { child, options, secrets, folder, port };
        gateway.until_ready().await;
        gateway
    }

    /// Where it listens, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A plain HTTP client for it.
    pub fn client(&self) -> Client {
        Client::new(self.url())
    }

    /// A plain HTTP client for its operator's side, on a port of its own if it has one.
    pub fn operator(&self) -> Client {
        let port = self.options.config["server"]["ops_port"].as_u64().unwrap_or(u64::from(self.port));
        Client::new(format!("http://127.0.0.1:{port}"))
    }

    /// What another subcommand says of the same configuration, on both outputs.
    pub fn subcommand(&self, name: &str) -> String {
        let output = command(&[name, "-c", self.options.file()], self.folder.path())
            .output()
            .expect("the gateway runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder with its configuration, state and logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Everything that it has written to its outputs so far.
    pub fn logs(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("stdout.log") + &read("stderr.log")
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process is alive");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a size");
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("the size is a number")
    }

    /// Open file descriptors, sockets included.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the process is alive").count()
    }

    /// Whatever a scenario is about, its gateway must not have written a secret to its logs or its state.
    fn assert_secrets_kept(&self) {
        let files = fs::read_dir(self.folder.path()).expect("the gateway's folder");
        for file in files.map(|file| file.expect("a file of the gateway").path()) {
            if file.ends_with("config.yaml") {
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            for secret in &self.secrets {
                let line = text.lines().find(|line| line.contains(secret.as_str()));
                assert!(line.is_none(), "a secret in {}: {}", file.display(), line.unwrap_or_default());
            }
        }
    }

    async fn until_ready(&mut self) {
        let client = self.operator();
        eventually("the gateway is ready", READY_WITHIN, || {
            if let Some(status) = self.child.try_wait().expect("the process can be asked") {
                panic!("the gateway ended with {status}:\n{}", self.logs());
            }
            let ready = client.get("/health/ready");
            async move { ready.await.is_ok_and(|answer| answer.status == 200).then_some(()) }
        })
        .await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            let logs = self.logs();
            let start = logs.char_indices().rev().nth(8_000).map_or(0, |(at, _)| at);
            eprintln!("--- the end of the gateway's log\n{}", logs.get(start..).unwrap_or_default());
        } else {
            self.assert_secrets_kept();
        }
    }
}

/// Every secret that a configuration names.
pub(crate) fn secrets(config: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let keys = list(&config["groups"]).into_iter().flat_map(|group| list(&group["api_keys"]));
    let keys = keys.filter_map(|key| text(&key).or_else(|| text(&key["key"])));
    let tokens = list(&config["server"]["clients"]).into_iter().filter_map(|client| text(&client["token"]));
    keys.chain(tokens)
        .chain(text(&config["server"]["admin_token"]))
        .filter(|secret| !secret.is_empty())
        .collect()
}

fn spawn(options: &GatewayOptions, folder: &Path, port: u16) -> Child {
    let open = |name| OpenOptions::new().create(true).append(true).open(folder.join(name));
    let output = |name| Stdio::from(open(name).expect("a log file"));
    command(&["serve", "-c", options.file(), "-H", "127.0.0.1", "-p", &port.to_string()], folder)
        .env("RUST_LOG", &options.log)
        .envs(options.env.iter().map(|(name, value)| (name, value)))
        .stdout(if options.unread { Stdio::piped() } else { output("stdout.log") })
        .stderr(output("stderr.log"))
        .spawn()
        .expect("the gateway starts")
}

fn command(arguments: &[&str], folder: &Path) -> Command {
    let mut command = program("gateway", folder);
    command.args(arguments);
    command
}

/// One of our binaries in this folder, with nothing of our own environment that it would take for configuration.
pub fn program(name: &str, folder: &Path) -> Command {
    program_at(&binary(name), folder)
}

/// The same with another build of it.
pub(crate) fn program_at(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        let ours = ["KEYFLEET", "GEMINI", "GOOGLE", "OTEL"].iter().any(|prefix| text.starts_with(prefix));
        if ours || text.ends_with("_PROXY") || ["CONFIG_PATH", "PORT", "REDIS_URL"].contains(&text.as_str()) {
            command.env_remove(&name);
        }
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// A program of this workspace: `cargo` puts the test binary into `deps`, beside which the other binaries lie.
pub fn binary(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("the path of this test");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push(name);
    assert!(path.exists(), "{} is missing: run scripts/test, which builds it", path.display());
    path
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that start together have neighbouring numbers, and need more than one port each.
    let offset = std::process::id().wrapping_mul(211) % u32::from(PORTS);
    let offset = u16::try_from(offset).unwrap_or_default();
    for _ in 0..PORTS {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + (offset + step % PORTS) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
