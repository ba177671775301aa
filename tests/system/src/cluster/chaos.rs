//! A cluster under load while its parts are killed, or paused, by a seeded schedule; and the table at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use serde_json::json;

use super::crowd::{Crowd, Tally};
use super::judge::{self, Bucket, Counts, MINUTE};
use super::{Cluster, ClusterOptions, Part};

const MODEL: &str = "gemini-2.5-flash";
/// How often the store is asked whether somebody else leads.
const LOOK: Duration = Duration::from_millis(10);
/// A takeover that takes longer is none.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(30);

/// What is done to a cluster.
#[derive(Debug, Clone)]
pub struct Chaos {
    /// For how long.
    pub length: Duration,
    /// Of the schedule and the clients.
    pub seed: u64,
    /// Gateways.
    pub replicas: usize,
    /// Paused and let go on instead of killed.
    pub pause: bool,
    /// NATS and Redis are killed too.
    pub servers: bool,
    /// Nothing is killed: what faults cost is the difference.
    pub calm: bool,
    /// From one kill to the next.
    pub every: Duration,
    /// For how long a part stays away.
    pub away: Duration,
    /// Clients, each with one request at a time.
    pub clients: u64,
    /// Requests per second of all clients.
    pub rate: f64,
    /// Projects, with one key each.
    pub projects: usize,
    /// What every project may be asked in a minute.
    pub rpm: u64,
}

impl Chaos {
    /// 100 clients, who want more than twice what twelve projects at 10 requests per minute allow, and a kill every 5 s.
    pub fn new(length: Duration, seed: u64) -> Self {
        Self {
            length,
            seed,
            replicas: 5,
            pause: false,
            servers: false,
            calm: false,
            every: Duration::from_secs(5),
            away: Duration::from_secs(1),
            clients: 100,
            rate: 10.0,
            projects: 12,
            rpm: 10,
        }
    }

    /// Runs it.
    pub async fn run(self) -> Outcome {
        let limits = json!({"limits": [{"models": "*", "rpm": self.rpm}]});
        let world = World { log_capacity: 1_000_000, ..World::pool(self.projects, 1) };
        let mut cluster = Cluster::start(world, ClusterOptions::new(limits).gateways(self.replicas)).await;
        let share = Duration::from_secs_f64(1.0 / self.rate);
        let pause = share * u32::try_from(self.clients).unwrap_or(u32::MAX);
        let crowd = Crowd::start(cluster.front(), self.clients, pause, MODEL, self.seed);
        let mut random = fastrand::Rng::with_seed(self.seed);
        let (mut hits, mut takeovers) = (BTreeMap::<&'static str, u64>::new(), Vec::new());
        let end = Instant::now() + self.length;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(self.every.saturating_sub(self.away))).await;
            if Instant::now() >= end {
                break;
            }
            if self.calm {
                continue;
            }
            let victim = self.victim(&cluster, &mut random).await;
            *hits.entry(name(victim)).or_default() += 1;
            takeovers.extend(self.hit(&mut cluster, victim).await);
        }
        let tally = crowd.stop().await;
        let totals = cluster.settled().await;
        let outcome = Outcome {
            buckets: judge::buckets(&cluster.sim().log()),
            seen: judge::seen(&cluster.sim().log()),
            chaos: self,
            tally,
            hits,
            takeovers,
            totals,
        };
        drop(cluster);
        outcome
    }

    /// As many coordinators as gateways, half of them whoever leads; NATS and Redis less often.
    async fn victim(&self, cluster: &Cluster, random: &mut fastrand::Rng) -> Part {
        let servers = if self.servers { 4 } else { 0 };
        let (kind, gateway, coordinator) =
            (random.usize(..16 + servers), random.usize(..self.replicas), random.usize(..2));
        match kind {
            0..8 => Part::Gateway(gateway),
            8..12 => cluster.leads_now().await.unwrap_or(Part::Coordinator(coordinator)),
            12..16 => Part::Coordinator(coordinator),
            16..18 => Part::Nats,
            _ => Part::Redis,
        }
    }

    /// Takes a part away for a while. How long nobody led, if it was the leader.
    async fn hit(&self, cluster: &mut Cluster, victim: Part) -> Option<Duration> {
        let led = cluster.leads_now().await == Some(victim);
        let began = Instant::now();
        let before = cluster.redis().position().await.unwrap_or_default();
        if self.pause {
            cluster.pause(victim);
        } else {
            cluster.kill(victim);
        }
        let mut takeover = None;
        while began.elapsed() < self.away || (led && takeover.is_none() && began.elapsed() < TAKEOVER_WITHIN)
        {
            tokio::time::sleep(LOOK).await;
            if led && takeover.is_none() {
                let now = cluster.redis().position().await.unwrap_or_default();
                takeover = (now[0] > before[0] && now[2] > before[2]).then(|| began.elapsed());
            }
        }
        if self.pause {
            cluster.resume(victim);
        } else {
            cluster.revive(victim);
        }
        takeover
    }
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Nats => "NATS",
        Part::Redis => "Redis",
        Part::Coordinator(_) => "coordinators",
        Part::Gateway(_) => "gateways",
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub chaos: Chaos,
    /// What became of the requests of clients.
    pub tally: Tally,
    /// What was hit how often.
    pub hits: BTreeMap<&'static str, u64>,
    /// How long nobody led, each time.
    pub takeovers: Vec<Duration>,
    /// What the simulator saw of each bucket.
    pub buckets: Vec<Bucket>,
    /// What the simulator saw, by key.
    pub seen: Counts,
    /// What is stored, which is what was reported.
    pub totals: Counts,
}

impl Outcome {
    /// The largest count of any minute and bucket.
    pub fn most(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.most).max().unwrap_or_default()
    }

    /// Whether every bucket was kept to, in every minute.
    pub fn holds(&self) -> bool {
        self.most() <= self.chaos.rpm
    }

    /// The share of the quota that was used: all attempts over what the length allows, in percent.
    pub fn used_percent(&self) -> u64 {
        let used: u64 = self.buckets.iter().map(|bucket| bucket.total).sum();
        let buckets = self.chaos.projects as u64;
        let millis = u64::try_from(self.chaos.length.as_millis()).unwrap_or(u64::MAX);
        let possible = (self.chaos.rpm * buckets * millis) / u64::try_from(MINUTE.as_millis()).unwrap_or(1);
        used * 100 / possible.max(1)
    }
}

/// Thousandths as a decimal fraction.
fn ratio(part: u64, whole: u64) -> String {
    let thousandths = part * 1_000 / whole.max(1);
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chaos = &self.chaos;
        let done = if chaos.pause { "paused" } else { "killed" };
        let mut line = |what: &str, value: String| writeln!(f, "{what:<34} {value}");
        line("seed", chaos.seed.to_string())?;
        line(
            "length, replicas, clients",
            format!("{:?}, {}, {}", chaos.length, chaos.replicas, chaos.clients),
        )?;
        line("projects, requests per minute", format!("{}, {}", chaos.projects, chaos.rpm))?;
        let most = format!("{} ({} of {})", ratio(self.most(), chaos.rpm), self.most(), chaos.rpm);
        line("largest minute over quota", most)?;
        let each: Vec<_> =
            self.buckets.iter().map(|b| format!("{} {}", b.project, ratio(b.most, chaos.rpm))).collect();
        line("  by bucket", each.join(", "))?;
        line("quota used", format!("{} %", self.used_percent()))?;
        let hits: Vec<_> = self.hits.iter().map(|(part, n)| format!("{n} {part}")).collect();
        line(done, if hits.is_empty() { "nobody".to_owned() } else { hits.join(", ") })?;
        let mut takeovers = self.takeovers.clone();
        takeovers.sort_unstable();
        let at =
            |n: usize| takeovers.get(n).map_or("none".to_owned(), |time| format!("{} ms", time.as_millis()));
        let (half, last) = (at(takeovers.len() / 2), at(takeovers.len().saturating_sub(1)));
        line("takeovers: number, p50, max", format!("{}, {half}, {last}", takeovers.len()))?;
        line("answered, refused (429)", format!("{}, {}", self.tally.of("200"), self.tally.of("429")))?;
        let failures: Vec<_> = self.tally.failures().iter().map(|(end, n)| format!("{n} {end}")).collect();
        line("failed", if failures.is_empty() { "none".to_owned() } else { failures.join(", ") })?;
        line("slowest answer", format!("{} ms", self.tally.slowest.as_millis()))?;
        let sum = |counts: &Counts| counts.values().map(|count| count.answered + count.failed).sum::<u64>();
        line("reported = counted", format!("{} = {0}, by key and counter", sum(&self.totals)))?;
        line("seen by the upstream", sum(&self.seen).to_string())
    }
}
