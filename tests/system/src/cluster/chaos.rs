//! A cluster under load while its parts are killed, or paused, by a seeded schedule.

mod outcome;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use serde_json::json;

use super::crowd::{Crowd, Sample};
use super::judge::{self, Left};
use super::{Cluster, ClusterOptions, Part};

pub use outcome::{Outcome, Peak, Takeovers, table};

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
    /// What is hit; with nothing here nobody is, and what faults cost is the difference.
    pub victims: Vec<Kind>,
    /// Paused and let go on instead of killed.
    pub pause: bool,
    /// From one kill to the next.
    pub every: Duration,
    /// For how long a part stays away.
    pub away: Duration,
    /// Clients, each with one request at a time.
    pub clients: u32,
    /// Requests per second of all clients.
    pub rate: f64,
    /// Projects, with one key each.
    pub projects: usize,
    /// What every project may be asked.
    pub limits: Limits,
}

/// The quotas of a project.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests in a minute.
    pub rpm: u64,
    /// Input tokens in a minute.
    pub tpm: Option<u64>,
    /// Requests in a day.
    pub rpd: Option<u64>,
}

/// The kinds of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "they are what their names say")]
pub enum Kind {
    Gateway,
    Coordinator,
    Nats,
    Redis,
}

impl Kind {
    /// Everything that can be hit.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Coordinator, Self::Nats, Self::Redis];

    fn of(part: Part) -> Self {
        match part {
            Part::Nats => Self::Nats,
            Part::Redis => Self::Redis,
            Part::Coordinator(_) => Self::Coordinator,
            Part::Gateway(_) => Self::Gateway,
        }
    }

    /// How often it is hit in relation to others: servers less often.
    fn weight(self) -> usize {
        match self {
            Self::Gateway | Self::Coordinator => 4,
            Self::Nats | Self::Redis => 1,
        }
    }
}

impl Chaos {
    /// 100 clients, who want more than twice what twelve projects at 10 requests per minute allow, and a gateway or a
    /// coordinator killed every 5 s.
    pub fn new(length: Duration, seed: u64) -> Self {
        Self {
            length,
            seed,
            replicas: 5,
            victims: vec![Kind::Gateway, Kind::Coordinator],
            pause: false,
            every: Duration::from_secs(5),
            away: Duration::from_secs(1),
            clients: 100,
            rate: 10.0,
            projects: 12,
            limits: Limits { rpm: 10, tpm: None, rpd: None },
        }
    }

    /// Runs it.
    pub async fn run(self) -> Outcome {
        let Limits { rpm, tpm, rpd } = self.limits;
        let limits = json!({"limits": [{"models": "*", "rpm": rpm, "tpm": tpm, "rpd": rpd}]});
        let world = World { log_capacity: 5_000_000, ..World::pool(self.projects, 1) };
        let mut cluster = Cluster::start(world, ClusterOptions::new(limits).gateways(self.replicas)).await;
        let pause = Duration::from_secs_f64(f64::from(self.clients) / self.rate);
        let crowd = Crowd::start(cluster.front(), self.clients.into(), pause, MODEL, self.seed);
        let mut random = fastrand::Rng::with_seed(self.seed);
        let (mut hits, mut takeovers) = (BTreeMap::<Kind, u64>::new(), Vec::new());
        let end = Instant::now() + self.length;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(self.every.saturating_sub(self.away))).await;
            if Instant::now() >= end {
                break;
            }
            let Some(victim) = self.victim(&cluster, &mut random).await else { continue };
            *hits.entry(Kind::of(victim)).or_default() += 1;
            takeovers.extend(self.hit(&mut cluster, victim).await);
        }
        let (tally, samples) = crowd.end().await;
        let counted = cluster.counted().await;
        let log = cluster.sim().log();
        let left = Left::of(&log, cluster.sim().started(), self.projects, rpm);
        let on_quota = |sample: &&Sample| sample.status != 200 && left.at(sample.ended) > 0;
        let on_quota: Vec<_> = samples.iter().filter(on_quota).collect();
        let refused = on_quota.iter().filter(|sample| sample.status == 429).count();
        Outcome {
            peaks: outcome::peaks(&log, &self),
            takeovers: Takeovers::of(takeovers),
            refused_on_quota: refused,
            failed_on_quota: on_quota.len() - refused,
            seen: judge::seen(&log),
            chaos: self,
            tally,
            hits,
            counted,
        }
    }

    /// Of coordinators, every other time whoever leads.
    async fn victim(&self, cluster: &Cluster, random: &mut fastrand::Rng) -> Option<Part> {
        let sum: usize = self.victims.iter().map(|kind| kind.weight()).sum();
        if sum == 0 {
            return None;
        }
        let (mut draw, gateway, coordinator) =
            (random.usize(..sum), random.usize(..self.replicas), random.usize(..4));
        let chosen = self.victims.iter().find(|kind| {
            let found = draw < kind.weight();
            draw = draw.saturating_sub(kind.weight());
            found
        });
        Some(match chosen? {
            Kind::Gateway => Part::Gateway(gateway),
            Kind::Coordinator if coordinator < 2 => Part::Coordinator(coordinator),
            Kind::Coordinator => cluster.leads_now().await.unwrap_or(Part::Coordinator(coordinator % 2)),
            Kind::Nats => Part::Nats,
            Kind::Redis => Part::Redis,
        })
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
