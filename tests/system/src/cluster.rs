//! A whole deployment: NATS, Redis, coordinators and gateways, each a process that can be killed, paused, cut off and
//! started again; and what judges it, which shares no code with it.

pub(crate) mod balancer;
pub mod chaos;
pub(crate) mod copy;
mod counted;
pub(crate) mod crowd;
pub mod judge;
pub(crate) mod link;
mod operations;
pub(crate) mod process;
pub(crate) mod redis;
mod stream;
pub(crate) mod usage;

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyfleet_simulator::World;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Client;
use crate::eventually::eventually;
use crate::gateway::{free_port, secrets};
use crate::sim::Sim;

use crowd::Front;
use link::Link;
use process::{Process, Program, server};
use redis::Redis;

const UP_WITHIN: Duration = Duration::from_secs(30);

/// One process of a cluster. Coordinators and gateways are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The NATS server.
    Nats,
    /// The Redis server.
    Redis,
    /// A coordinator.
    Coordinator(usize),
    /// A gateway.
    Gateway(usize),
}

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many gateways.
    pub gateways: usize,
    /// How many coordinators.
    pub coordinators: usize,
    /// What the configuration says beyond the keys, NATS and Redis.
    pub config: Value,
    /// Every gateway and coordinator reaches NATS and Redis through links of its own.
    pub links: bool,
}

impl ClusterOptions {
    /// Three gateways and two coordinators, with this in their configuration.
    pub fn new(config: Value) -> Self {
        Self { gateways: 3, coordinators: 2, config, links: false }
    }

    /// With so many gateways.
    #[must_use]
    pub fn gateways(self, gateways: usize) -> Self {
        Self { gateways, ..self }
    }

    /// With links that can be cut.
    #[must_use]
    pub fn linked(self) -> Self {
        Self { links: true, ..self }
    }
}

/// A running cluster. Dropping it kills every process and searches what they left for secrets.
#[derive(Debug)]
pub struct Cluster {
    sim: Sim,
    options: ClusterOptions,
    secrets: Vec<String>,
    nats: Process,
    /// Where NATS tells its figures.
    monitor: u16,
    redis: Process,
    coordinators: Vec<Member>,
    gateways: Vec<Member>,
    front: Front,
    folder: TempDir,
}

#[derive(Debug)]
struct Member {
    process: Process,
    /// To NATS and Redis.
    links: Option<[Link; 2]>,
}

impl Cluster {
    /// Starts every part and waits until gateways are ready and somebody leads.
    pub async fn start(world: World, options: ClusterOptions) -> Self {
        let sim = Sim::start(world).await;
        let folder = TempDir::new().expect("a folder for the cluster");
        let monitor = free_port();
        let nats = start_nats(folder.path(), monitor);
        let redis = start_redis(folder.path());
        let mut secrets = secrets(&sim.config());
        secrets.extend(self::secrets(&options.config));
        let (gateways, coordinators) = (options.gateways, options.coordinators);
        let mut cluster = Self {
            sim,
            options,
            secrets,
            nats,
            monitor,
            redis,
            coordinators: Vec::new(),
            gateways: Vec::new(),
            front: Front::default(),
            folder,
        };
        cluster.up(Part::Nats).await;
        cluster.up(Part::Redis).await;
        for at in 0..coordinators {
            let member = cluster.member("coordinator", at).await;
            cluster.coordinators.push(member);
        }
        for at in 0..gateways {
            let member = cluster.member("gateway", at).await;
            cluster.gateways.push(member);
        }
        for at in 0..coordinators {
            cluster.up(Part::Coordinator(at)).await;
        }
        for at in 0..gateways {
            cluster.until_ready(at).await;
        }
        cluster.balance();
        if coordinators > 0 {
            cluster.leader().await;
        }
        cluster
    }

    /// The simulated upstream, which sees everything.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// The gateways that clients are sent to.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// A client of one gateway.
    pub fn gateway(&self, at: usize) -> Client {
        Client::new(self.gateways[at].process.url())
    }

    /// A client of one coordinator.
    pub fn coordinator(&self, at: usize) -> Client {
        Client::new(self.coordinators[at].process.url())
    }

    /// The store, past everybody.
    pub fn redis(&self) -> Redis {
        Redis::at(self.redis.port)
    }

    /// The links of one process to NATS and Redis.
    pub fn links(&self, part: Part) -> [&Link; 2] {
        let member = match part {
            Part::Coordinator(at) => &self.coordinators[at],
            Part::Gateway(at) => &self.gateways[at],
            Part::Nats | Part::Redis => panic!("{part:?} is where links lead"),
        };
        member.links.as_ref().expect("a cluster with links").each_ref()
    }

    /// The configuration of a process, for one that joins.
    pub fn config_file(&self, part: Part) -> PathBuf {
        self.process(part).config_file()
    }

    /// Everything that a process has written to its outputs, over all its starts.
    pub fn log(&self, part: Part) -> String {
        self.process(part).log()
    }

    /// Every coordinator's log.
    pub fn coordinator_logs(&self) -> String {
        self.coordinators.iter().map(|member| member.process.log()).collect()
    }

    /// Waits until a gateway is ready.
    pub async fn until_ready(&mut self, at: usize) {
        let client = self.gateway(at);
        let process = &mut self.gateways[at].process;
        eventually("a gateway is ready", UP_WITHIN, || {
            process.assert_alive();
            is_ready(&client)
        })
        .await;
        crate::spill::watch(process.port, &self.secrets);
    }

    /// Whether a gateway says now that it is ready.
    pub async fn is_ready(&self, at: usize) -> bool {
        is_ready(&self.gateway(at)).await.is_some()
    }

    /// Who leads. Waits until somebody does: until the newest term that is stored is one that a living process began.
    pub async fn leader(&self) -> Part {
        eventually("somebody leads", UP_WITHIN, || self.leads_now()).await
    }

    async fn leads_now(&self) -> Option<Part> {
        let [epoch, ..] = self.redis().position().await.ok()?;
        let wanted = format!("\"epoch\":{epoch},");
        let leads = |log: &str| {
            let last = log.lines().rev().find(|line| line.contains("\"message\":\"leading\""));
            last.is_some_and(|line| line.contains(&wanted))
        };
        let found = self
            .coordinators
            .iter()
            .position(|member| member.process.runs() && leads(&member.process.log()))?;
        Some(Part::Coordinator(found))
    }

    /// Waits until a process answers; a gateway need not be ready.
    pub async fn up(&mut self, part: Part) {
        let redis = self.redis();
        let process = self.process_mut(part);
        let (port, client) = (process.port, Client::new(process.url()));
        eventually(&format!("{part:?} answers"), UP_WITHIN, || {
            process.assert_alive();
            let client = &client;
            async move {
                match part {
                    Part::Nats => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
                    Part::Redis => redis.ask(&["PING"]).await.is_ok(),
                    _ => client.get("/health").await.is_ok_and(|answer| answer.status == 200),
                }
                .then_some(())
            }
        })
        .await;
    }

    fn balance(&self) {
        self.front.set((0..self.gateways.len()).map(|at| self.gateway(at)).collect());
    }

    async fn member(&self, name: &'static str, at: usize) -> Member {
        let links = if self.options.links {
            Some([Link::to(self.nats.port).await, Link::to(self.redis.port).await])
        } else {
            None
        };
        let folder = self.folder.path().join(format!("{name}-{at}"));
        self.configure(&folder, links.as_ref());
        let port = free_port();
        let mut arguments = vec!["serve".to_owned(), "-c".to_owned(), "config.yaml".to_owned()];
        arguments.extend(["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned));
        Member { process: Process::start(Program::Ours(name), arguments, folder, port), links }
    }

    fn configure(&self, folder: &Path, links: Option<&[Link; 2]>) {
        let [nats, redis] = match links {
            Some(links) => links.each_ref().map(Link::port),
            None => [self.nats.port, self.redis.port],
        };
        Process::write_config(folder, &config(&self.sim, &self.options.config, nats, redis));
    }

    /// A folder with the configuration of one more process, changed by `change`, which will listen on this port.
    pub(crate) fn prepare(&self, name: &str, port: u16, change: impl FnOnce(&mut Value)) -> PathBuf {
        let mut config = config(&self.sim, &self.options.config, self.nats.port, self.redis.port);
        change(&mut config);
        let folder = self.folder.path().join(name);
        Process::write_config(&folder, &config);
        crate::spill::watch(port, &self.secrets);
        folder
    }

    fn process(&self, part: Part) -> &Process {
        match part {
            Part::Nats => &self.nats,
            Part::Redis => &self.redis,
            Part::Coordinator(at) => &self.coordinators[at].process,
            Part::Gateway(at) => &self.gateways[at].process,
        }
    }

    fn process_mut(&mut self, part: Part) -> &mut Process {
        match part {
            Part::Nats => &mut self.nats,
            Part::Redis => &mut self.redis,
            Part::Coordinator(at) => &mut self.coordinators[at].process,
            Part::Gateway(at) => &mut self.gateways[at].process,
        }
    }

    /// Whatever a scenario is about, nobody may have written a secret down, in logs or in what is stored.
    fn assert_secrets_kept(&self) {
        for file in files(self.folder.path()) {
            if file.ends_with("config.yaml") {
                continue;
            }
            let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
            let spilled = self.secrets.iter().any(|secret| text.contains(secret.as_str()));
            assert!(!spilled, "a secret in {}", file.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let members = self.gateways.iter_mut().chain(&mut self.coordinators);
        let processes = members.map(|member| &mut member.process);
        processes.chain([&mut self.nats, &mut self.redis]).for_each(Process::kill);
        if std::thread::panicking() {
            for member in self.coordinators.iter().chain(&self.gateways) {
                let log = member.process.log();
                let start = log.char_indices().rev().nth(3_000).map_or(0, |(at, _)| at);
                eprintln!("--- the end of a log\n{}", log.get(start..).unwrap_or_default());
            }
        } else {
            self.assert_secrets_kept();
        }
    }
}

async fn is_ready(client: &Client) -> Option<()> {
    let answer =
        tokio::time::timeout(Duration::from_secs(2), client.get("/health/ready")).await.ok()?.ok()?;
    (answer.status == 200).then_some(())
}

/// The configuration of every gateway and coordinator: the simulator's keys, where NATS and Redis are, and `more`.
fn config(sim: &Sim, more: &Value, nats: u16, redis: u16) -> Value {
    let mut config = sim.config();
    config["nats_url"] = json!(format!("nats://127.0.0.1:{nats}"));
    config["redis_url"] = json!(format!("redis://127.0.0.1:{redis}"));
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

fn start_nats(folder: &Path, monitor: u16) -> Process {
    let port = free_port();
    let (ports, monitor) = (["-p", &port.to_string()], ["-m", &monitor.to_string()]);
    let arguments = [&["-a", "127.0.0.1", "-js", "-sd", "store"][..], &ports, &monitor].concat();
    let arguments = arguments.into_iter().map(str::to_owned).collect();
    Process::start(server("KEYFLEET_TEST_NATS", "nats-server"), arguments, folder.join("nats"), port)
}

fn start_redis(folder: &Path) -> Process {
    let port = free_port();
    let arguments = ["--bind", "127.0.0.1", "--port", &port.to_string(), "--appendonly", "yes"];
    let arguments = arguments.map(str::to_owned).to_vec();
    Process::start(server("KEYFLEET_TEST_REDIS", "redis-server"), arguments, folder.join("redis"), port)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
