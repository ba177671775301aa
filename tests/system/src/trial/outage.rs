//! NATS, Redis or both are away for minutes: what clients notice, what it costs, and whether every count is made up for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use serde_json::json;

use super::Lines;
use crate::cluster::crowd::{Crowd, Sample};
use crate::cluster::judge::{self, Counts};
use crate::cluster::{Cluster, ClusterOptions, Part};
use crate::times::Times;

const MODEL: &str = "gemini-2.5-flash";
const REPLICAS: usize = 3;
const PROJECTS: usize = 6;
/// Half of it is never leased: for times like these.
const RPM: u64 = 6_000;
/// Less than the busiest gateway's share of that half allows.
const RATE: u32 = 100;
const CLIENTS: u32 = 50;
/// Undisturbed, before and after.
const CALM: Duration = Duration::from_mins(1);
/// Memory is looked at so often.
const LOOK: Duration = Duration::from_secs(5);
/// From the end of the outage until everything is counted.
const RECONCILED_WITHIN: Duration = Duration::from_mins(3);

/// What is done.
#[derive(Debug, Clone)]
pub struct Outage {
    /// What is away.
    pub parts: Vec<Part>,
    /// For how long.
    pub length: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    outage: Outage,
    /// Before, during, after.
    phases: [Phase; 3],
    most: u64,
    /// How long it took until what is stored was what the simulator saw.
    reconciled: Option<Duration>,
    seen: u64,
}

#[derive(Debug)]
struct Phase {
    answered: usize,
    /// By status: how many, and when the first and the last, from the phase's beginning.
    failed: BTreeMap<u16, (usize, Duration, Duration)>,
    times: Times,
    /// By process: the most, in KiB.
    memory: Vec<(Part, u64)>,
}

impl Outage {
    /// Runs it.
    pub async fn run(self) -> Outcome {
        let config = json!({
            "limits": [{"models": "*", "rpm": RPM}],
            "quota": {"when_unleased": "reserve(0.5)", "max_replicas": REPLICAS},
        });
        let world = World { log_capacity: 5_000_000, ..World::pool(PROJECTS, 1) };
        let options = ClusterOptions::new(config).gateways(REPLICAS);
        let mut cluster = Cluster::start(world, options).await;
        let pause = Duration::from_secs(1) * CLIENTS / RATE;
        let crowd = Crowd::start(cluster.front(), CLIENTS.into(), pause, MODEL, 1);
        let began = Instant::now();
        let calm = memory(&cluster, CALM).await;
        let down = Instant::now();
        for part in &self.parts {
            cluster.kill(*part);
        }
        let dark = memory(&cluster, self.length).await;
        for part in &self.parts {
            cluster.restart(*part).await;
        }
        let up = Instant::now();
        let after = memory(&cluster, CALM).await;
        let (_, samples) = crowd.end().await;
        let reconciled = reconciled(&cluster, up).await;
        let log = cluster.sim().log();
        let far = up + Duration::from_hours(1);
        Outcome {
            outage: self,
            phases: [
                Phase::of(&samples, began, down, calm),
                Phase::of(&samples, down, up, dark),
                Phase::of(&samples, up, far, after),
            ],
            most: judge::buckets(&log).iter().map(|bucket| bucket.most).max().unwrap_or_default(),
            reconciled,
            seen: sum(&judge::seen(&log)),
        }
    }
}

fn sum(counts: &Counts) -> u64 {
    counts.values().map(|count| count.answered + count.failed).sum()
}

/// The most that every process held meanwhile.
async fn memory(cluster: &Cluster, length: Duration) -> Vec<(Part, u64)> {
    let parts = [Part::Nats, Part::Redis, Part::Coordinator(0), Part::Coordinator(1)];
    let parts = parts.into_iter().chain((0..REPLICAS).map(Part::Gateway));
    let mut most: Vec<_> = parts.map(|part| (part, 0)).collect();
    let end = Instant::now() + length;
    while Instant::now() < end {
        tokio::time::sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
        for (part, kib) in &mut most {
            *kib = cluster.usage(*part).rss_kib.max(*kib);
        }
    }
    most
}

async fn reconciled(cluster: &Cluster, since: Instant) -> Option<Duration> {
    while since.elapsed() < RECONCILED_WITHIN {
        if cluster.totals().await.ok() == Some(judge::seen(&cluster.sim().log())) {
            return Some(since.elapsed());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    None
}

impl Phase {
    fn of(samples: &[Sample], from: Instant, to: Instant, memory: Vec<(Part, u64)>) -> Self {
        let within: Vec<_> =
            samples.iter().filter(|sample| sample.began >= from && sample.began < to).collect();
        let (good, bad): (Vec<&Sample>, Vec<&Sample>) =
            within.iter().copied().partition(|sample| sample.status == 200);
        let mut failed = BTreeMap::new();
        for sample in bad {
            let at = sample.began - from;
            let (count, first, last) = failed.entry(sample.status).or_insert((0, at, at));
            (*count, *first, *last) = (*count + 1, at.min(*first), at.max(*last));
        }
        let times = within.iter().map(|sample| sample.ended - sample.began);
        Self { answered: good.len(), failed, times: Times::of(times), memory }
    }
}

impl Outcome {
    /// Whether no request failed, no quota was exceeded, and every count was made up for.
    pub fn holds(&self) -> bool {
        self.phases.iter().all(|phase| phase.failed.is_empty())
            && self.most <= RPM
            && self.reconciled.is_some()
    }

    /// What was found.
    pub fn table(&self) -> String {
        let Outage { parts, length } = &self.outage;
        let title = format!(
            "{parts:?} away for {length:?}; {REPLICAS} gateways, {PROJECTS} projects, {RPM} requests per minute, half \
             of them kept in reserve; {RATE} requests per second"
        );
        let mut lines = Lines::titled(&title);
        for (name, phase) in ["before", "during", "after"].into_iter().zip(&self.phases) {
            let failed = phase.failed.iter().map(|(status, (count, first, last))| {
                format!("{count} times {status} ({:.1} to {:.1} s)", first.as_secs_f32(), last.as_secs_f32())
            });
            let failed = failed.reduce(|all, more| format!("{all}, {more}")).unwrap_or("none".to_owned());
            lines.line(name, format!("{} answered, failed: {failed}, {}", phase.answered, phase.times));
        }
        for (at, (part, before)) in self.phases[0].memory.iter().enumerate() {
            let [_, during, after] = self.phases.each_ref().map(|phase| phase.memory[at].1);
            lines.line(&format!("memory of {part:?}, KiB"), format!("{before} / {during} / {after}"));
        }
        lines.line("largest minute of any bucket", format!("{} of {RPM}", self.most));
        let reconciled = self.reconciled.map_or_else(
            || "**never**".to_owned(),
            |time| format!("{} after the end: {} = {1}", time.as_secs(), self.seen),
        );
        lines.line("counted = seen upstream, s", reconciled);
        lines.0
    }
}
