//! How long after a 429 at one gateway any other still starts a request on that quota.
//!
//! The simulator's log says it: from the arrival of the request that it refuses to the arrival of the last request for
//! the same project and model. Both ends are on its clock. A request that was already written counts as well when it
//! arrives later, so the figure is rather too large.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use keyfleet_simulator::{Family, Model, Received, Rule, World};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::Lines;
use crate::client::Client;
use crate::cluster::usage::Machine;
use crate::cluster::{Cluster, ClusterOptions};
use crate::times::Times;

/// One of them is blocked after the other; the last one goes on, so that nobody runs dry.
const PROJECTS: usize = 2;
/// Before the first block of a model, so that every gateway knows the model.
const WARM_UP: Duration = Duration::from_millis(300);
/// After a refusal: whoever has not heard of it by then shows in the log.
const AFTERWARDS: Duration = Duration::from_millis(200);
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// How often the harness sends itself a byte.
const ECHO_EVERY: Duration = Duration::from_millis(5);
/// What is promised.
const PROMISE: Duration = Duration::from_millis(10);
/// Gateways tell each other by this subject.
const HINTS: &str = "rl.v1.hint.0";

/// What is done.
#[derive(Debug, Clone)]
pub struct Spread {
    /// Gateways.
    pub replicas: usize,
    /// How many refusals.
    pub blocks: usize,
    /// Requests per second, of all gateways.
    pub rate: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    spread: Spread,
    /// From a refusal to the last request.
    last: Times,
    /// From a refusal until the harness, which listens like a gateway, hears of it.
    heard: Times,
    /// How many requests came after a refusal, of all.
    late: usize,
    /// There and back within the harness.
    echo: Times,
    busy: f64,
}

impl Spread {
    /// Runs it.
    pub async fn run(self) -> Outcome {
        let names: Vec<_> = (0..self.blocks.div_ceil(PROJECTS - 1)).map(|n| format!("model-{n}")).collect();
        let models = names.iter().map(|id| Model { id: id.clone(), ..Model::default() }).collect();
        let world = World { models, ..World::pool(PROJECTS, 1) };
        let options = ClusterOptions::new(json!({})).gateways(self.replicas);
        let cluster = Cluster::start(world, options).await;
        let ear = Ear::listen(&cluster).await;
        let echo = Echo::start().await;
        let clients: Vec<_> = (0..self.replicas).map(|at| cluster.gateway(at)).collect();
        let (model, asked) = watch::channel(names[0].clone());
        let load = tokio::spawn(load(clients, self.rate, asked)).abort_handle();
        let began = Machine::now();
        let mut found = Vec::new();
        for name in &names {
            model.send_replace(name.clone());
            tokio::time::sleep(WARM_UP).await;
            for project in 1..PROJECTS {
                if found.len() < self.blocks {
                    found.push(refuse(&cluster, &format!("p{project}"), name).await);
                }
            }
            cluster.sim().forget();
        }
        let busy = Machine::busy_since(began);
        load.abort();
        let heard = ear.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let started = cluster.sim().started();
        let delays = found.iter().filter_map(|block| {
            let refused = started + Duration::from_micros(block.refused);
            Some(heard.get(&block.bucket)?.saturating_duration_since(refused))
        });
        Outcome {
            last: Times::of(found.iter().map(|block| block.last)),
            heard: Times::of(delays),
            late: found.iter().map(|block| block.late).sum(),
            echo: echo.times(),
            busy,
            spread: self,
        }
    }
}

/// One refusal.
struct Block {
    bucket: (String, String),
    /// On the simulator's clock, in microseconds.
    refused: u64,
    last: Duration,
    late: usize,
}

/// Refuses one request of this project and model, and looks who comes after it.
async fn refuse(cluster: &Cluster, project: &str, model: &str) -> Block {
    let sim = cluster.sim();
    let of_bucket = |request: &Received| {
        request.project.as_deref() == Some(project) && request.model.as_deref() == Some(model)
    };
    sim.rules(vec![Rule::family(Family::PerMinute429).project(project).model(model).times(1)]);
    let seen = sim.saw(REFUSED_WITHIN, |request| request.status == 429 && of_bucket(request)).await;
    assert!(seen, "nobody asks {project} for {model}");
    tokio::time::sleep(AFTERWARDS).await;
    let log = sim.log();
    let arrivals: Vec<_> = log.iter().filter(|request| of_bucket(request)).collect();
    let refused = arrivals.iter().find(|request| request.status == 429).map_or(0, |found| found.mono_us);
    let late: Vec<_> = arrivals.iter().map(|request| request.mono_us).filter(|at| *at > refused).collect();
    let last = late.iter().max().map_or(0, |last| last - refused);
    let bucket = (project.to_owned(), model.to_owned());
    Block { bucket, refused, last: Duration::from_micros(last), late: late.len() }
}

/// A load at random moments, of which some follow each other closely, one gateway after the other.
async fn load(clients: Vec<Client>, rate: u32, model: watch::Receiver<String>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut random = fastrand::Rng::with_seed(1);
    let mut running = JoinSet::new();
    let (began, mut due) = (Instant::now(), Duration::ZERO);
    for client in clients.iter().cycle() {
        while began.elapsed() < due {
            ticks.tick().await;
        }
        due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / f64::from(rate.max(1)));
        let model = model.borrow().clone();
        running.spawn(client.chat(&model, false));
        while running.try_join_next().is_some() {}
    }
}

/// Hears what gateways tell each other.
struct Ear {
    heard: Arc<Mutex<BTreeMap<(String, String), Instant>>>,
    task: AbortHandle,
}

impl Ear {
    async fn listen(cluster: &Cluster) -> Self {
        let client = async_nats::connect(cluster.nats_url()).await.expect("NATS answers");
        let mut hints = client.subscribe(HINTS).await.expect("a subscription");
        client.flush().await.expect("NATS answers");
        let heard = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let notes = heard.clone();
        let task = tokio::spawn(async move {
            // The client lives as long as what it subscribed to.
            let _client = client;
            while let Some(hint) = hints.next().await {
                let now = Instant::now();
                let hint: Value = serde_json::from_slice(&hint.payload).unwrap_or_default();
                let bucket = &hint["body"]["subject"]["bucket"];
                let text = |at: usize| bucket[at].as_str().unwrap_or_default().to_owned();
                let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                notes.entry((text(0), text(1))).or_insert(now);
            }
        });
        Self { heard, task: task.abort_handle() }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A byte that goes to and fro in the runtime in which the simulator reads: what the harness itself adds.
struct Echo {
    times: Arc<Mutex<Vec<Duration>>>,
    tasks: JoinSet<std::io::Result<()>>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let times = Arc::<Mutex<Vec<Duration>>>::default();
        let notes = times.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            loop {
                let byte = stream.read_u8().await?;
                stream.write_u8(byte).await?;
            }
        });
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            loop {
                tokio::time::sleep(ECHO_EVERY).await;
                let sent = Instant::now();
                stream.write_u8(0).await?;
                stream.read_u8().await?;
                notes.lock().unwrap_or_else(PoisonError::into_inner).push(sent.elapsed());
            }
        });
        Self { times, tasks }
    }

    fn times(mut self) -> Times {
        self.tasks.abort_all();
        Times::of(std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Outcome {
    /// Whether what is promised was kept, on a machine that had time.
    pub fn holds(&self) -> bool {
        self.last.p99 <= PROMISE && self.busy <= 0.5
    }

    /// What was found.
    pub fn table(&self) -> String {
        let Spread { replicas, blocks, rate } = self.spread;
        let title =
            format!("{blocks} refusals, {replicas} gateways, {rate} requests per second: p50 / p99 / max");
        let mut lines = Lines::titled(&title);
        lines.line("429 until the last request on that quota at any gateway (p99 at most 10 ms)", self.last);
        lines.line("  requests that came after a 429", self.late);
        lines.line("  429 until another connection to NATS hears of it", self.heard);
        lines.line("the harness's own lag: a byte there and back", self.echo);
        lines.line("machine busy (at most 50 %)", format!("{:.0} %", self.busy * 100.0));
        lines.0
    }
}
