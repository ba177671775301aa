//! What the coordination of so many gateways costs, per request and at rest.

use std::fmt::Write as _;
use std::time::Duration;

use keyfleet_simulator::World;
use serde_json::{Value, json};

use crate::client::Client;
use crate::cluster::crowd::Crowd;
use crate::cluster::judge;
use crate::cluster::{Cluster, ClusterOptions, Part};

const MODEL: &str = "gemini-2.5-flash";
const PROJECTS: usize = 12;
const RPM: u64 = 1_200;
const CLIENTS: u32 = 50;
/// Until every gateway has leases for what it is asked.
const WARM_UP: Duration = Duration::from_secs(15);

/// What is done, once for each number of gateways.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Numbers of gateways.
    pub replicas: Vec<usize>,
    /// Requests per second, of all gateways.
    pub rate: u32,
    /// For how long each is measured.
    pub length: Duration,
}

/// What one number of gateways costs.
#[derive(Debug)]
struct Row {
    replicas: usize,
    requests: f64,
    /// Under load, and at rest.
    load: Meter,
    rest: Meter,
    /// Requests that waited for a lease, of all.
    waited: f64,
    redis: Stored,
}

/// What was counted meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Meter {
    seconds: f64,
    coordinator_cpu: f64,
    gateway_cpu: f64,
    redis_cpu: f64,
    nats_cpu: f64,
    nats_in: f64,
    nats_out: f64,
    redis_commands: f64,
    commits: f64,
}

/// What lies in Redis.
#[derive(Debug, Clone, Copy, Default)]
struct Stored {
    buckets: f64,
    lots: f64,
    bytes_per_bucket: f64,
    bytes_per_lot: f64,
    all: f64,
}

impl Cost {
    /// Runs it, and says what was found.
    pub async fn run(self) -> String {
        let mut rows = Vec::new();
        for replicas in &self.replicas {
            rows.push(self.measure(*replicas).await);
        }
        table(&rows, self.rate)
    }

    async fn measure(&self, replicas: usize) -> Row {
        let config = json!({"limits": [{"models": "*", "rpm": RPM}]});
        let world = World { log_capacity: 5_000_000, ..World::pool(PROJECTS, 1) };
        let cluster = Cluster::start(world, ClusterOptions::new(config).gateways(replicas)).await;
        let resting = Meter::read(&cluster, replicas).await;
        tokio::time::sleep(self.length).await;
        let rest = Meter::read(&cluster, replicas).await.since(resting);

        let pause = Duration::from_secs(1) * CLIENTS / self.rate.max(1);
        let crowd = Crowd::start(cluster.front(), CLIENTS.into(), pause, MODEL, 1);
        tokio::time::sleep(WARM_UP).await;
        let (seen, waited) = (seen(&cluster), waits(&cluster, replicas).await);
        let loaded = Meter::read(&cluster, replicas).await;
        tokio::time::sleep(self.length).await;
        let load = Meter::read(&cluster, replicas).await.since(loaded);
        let requests = self::seen(&cluster) - seen;
        let waited = waits(&cluster, replicas).await - waited;
        let redis = Stored::read(&cluster).await;
        let tally = crowd.stop().await;
        assert!(tally.failures().is_empty(), "{tally:?}");
        Row { replicas, requests, load, rest, waited: waited / requests.max(1.0), redis }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn seen(cluster: &Cluster) -> f64 {
    judge::generations(&cluster.sim().log()).count() as f64
}

async fn waits(cluster: &Cluster, replicas: usize) -> f64 {
    let mut sum = 0.0;
    for at in 0..replicas {
        sum += metric(&cluster.gateway(at), "keyfleet_lease_waits_total").await;
    }
    sum
}

/// One figure of those that a process shows; 0 when it is not there.
async fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").await.map(|answer| answer.text).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_default()
}

impl Meter {
    async fn read(cluster: &Cluster, replicas: usize) -> Self {
        let cpu = |part| cluster.usage(part).cpu.as_secs_f64();
        let nats = cluster.nats_figures().await;
        let figure = |name: &str| nats[name].as_f64().unwrap_or_default();
        let redis = cluster.redis().ask(&["INFO", "stats"]).await.unwrap_or_default().concat();
        let redis = redis.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        let [_, _, commits] = cluster.redis().position().await.unwrap_or_default();
        Self {
            seconds: cluster.sim().started().elapsed().as_secs_f64(),
            coordinator_cpu: cpu(Part::Coordinator(0)) + cpu(Part::Coordinator(1)),
            gateway_cpu: (0..replicas).map(|at| cpu(Part::Gateway(at))).sum(),
            redis_cpu: cpu(Part::Redis),
            nats_cpu: cpu(Part::Nats),
            nats_in: figure("in_msgs"),
            nats_out: figure("out_msgs"),
            redis_commands: redis.and_then(|text| text.trim().parse().ok()).unwrap_or_default(),
            commits: f64::from(u32::try_from(commits).unwrap_or(u32::MAX)),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            seconds: self.seconds - before.seconds,
            coordinator_cpu: self.coordinator_cpu - before.coordinator_cpu,
            gateway_cpu: self.gateway_cpu - before.gateway_cpu,
            redis_cpu: self.redis_cpu - before.redis_cpu,
            nats_cpu: self.nats_cpu - before.nats_cpu,
            nats_in: self.nats_in - before.nats_in,
            nats_out: self.nats_out - before.nats_out,
            redis_commands: self.redis_commands - before.redis_commands,
            commits: self.commits - before.commits,
        }
    }
}

impl Stored {
    /// The text of a lot is a part of its bucket's; the rest is what the bucket takes.
    #[expect(clippy::cast_precision_loss, reason = "sizes of one run")]
    async fn read(cluster: &Cluster) -> Self {
        let redis = cluster.redis();
        let key = "keyfleet:v1:{0}:accounts";
        let accounts = redis.ask(&["HVALS", key]).await.unwrap_or_default();
        let lots: Vec<String> = accounts
            .iter()
            .filter_map(|account| serde_json::from_str::<Value>(account).ok())
            .flat_map(|account| account["lots"].as_array().cloned().unwrap_or_default())
            .map(|lot| lot.to_string())
            .collect();
        let of_lots: usize = lots.iter().map(|lot| lot.len() + 1).sum();
        let number =
            |texts: Vec<String>| texts.first().and_then(|text| text.parse().ok()).unwrap_or_default();
        let bytes: f64 =
            number(redis.ask(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).await.unwrap_or_default());
        let info = redis.ask(&["INFO", "memory"]).await.unwrap_or_default().concat();
        let all = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:"));
        let (buckets, n) = (accounts.len() as f64, lots.len() as f64);
        Self {
            buckets,
            lots: n,
            bytes_per_bucket: (bytes - of_lots as f64) / buckets.max(1.0),
            bytes_per_lot: of_lots as f64 / n.max(1.0),
            all: all.and_then(|text| text.trim().parse().ok()).unwrap_or_default(),
        }
    }
}

/// How one figure is read off a row.
type Figure = (&'static str, fn(&Row) -> f64);

const FIGURES: [Figure; 18] = [
    ("requests per second", |row| row.requests / row.load.seconds),
    ("coordinator CPU per request, µs", |row| per(row, |meter| meter.coordinator_cpu * 1e6)),
    ("  at rest, % of a core", |row| row.rest.coordinator_cpu / row.rest.seconds * 100.0),
    ("  commits per second", |row| row.load.commits / row.load.seconds),
    ("Redis CPU per request, µs", |row| per(row, |meter| meter.redis_cpu * 1e6)),
    ("  at rest, % of a core", |row| row.rest.redis_cpu / row.rest.seconds * 100.0),
    ("Redis commands per second, under load", |row| row.load.redis_commands / row.load.seconds),
    ("Redis bytes per bucket, without its lots", |row| row.redis.bytes_per_bucket),
    ("Redis bytes per lot", |row| row.redis.bytes_per_lot),
    ("  lots per bucket", |row| row.redis.lots / row.redis.buckets.max(1.0)),
    ("Redis data, all, KiB", |row| row.redis.all / 1024.0),
    ("NATS messages in per 1,000 requests", |row| per(row, |meter| meter.nats_in * 1e3)),
    ("NATS messages out per 1,000 requests", |row| per(row, |meter| meter.nats_out * 1e3)),
    ("  in per second, at rest", |row| row.rest.nats_in / row.rest.seconds),
    ("  out per second, at rest", |row| row.rest.nats_out / row.rest.seconds),
    ("gateway CPU at rest, % of a core each", |row| {
        row.rest.gateway_cpu / row.rest.seconds * 100.0 / f64::from(u32::try_from(row.replicas).unwrap_or(1))
    }),
    ("NATS CPU per request, µs", |row| per(row, |meter| meter.nats_cpu * 1e6)),
    ("requests that waited for a lease, %", |row| row.waited * 100.0),
];

fn per(row: &Row, of: impl Fn(&Meter) -> f64) -> f64 {
    of(&row.load) / row.requests.max(1.0)
}

fn table(rows: &[Row], rate: u32) -> String {
    let heads: Vec<_> = rows.iter().map(|row| format!("{} gateways", row.replicas)).collect();
    let mut text = format!(
        "| {PROJECTS} projects of {RPM} requests per minute, {rate} requests per second | {} |\n|---|{}\n",
        heads.join(" | "),
        "---:|".repeat(rows.len())
    );
    for (name, figure) in FIGURES {
        let cells: Vec<_> = rows.iter().map(|row| format!("{:.1}", figure(row))).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text
}
