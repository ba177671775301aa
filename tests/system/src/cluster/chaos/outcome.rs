//! What came of a run, and the table of several.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use keyfleet_simulator::Received;

use super::{Chaos, Kind, Limits};
use crate::cluster::crowd::Tally;
use crate::cluster::judge::{self, Counts, MINUTE};
use crate::fullest::uses;
use crate::times::Times;

/// No run is so long.
const DAY: Duration = Duration::from_hours(24);

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub chaos: Chaos,
    /// What became of the requests of clients.
    pub tally: Tally,
    /// What was hit how often.
    pub hits: BTreeMap<Kind, u64>,
    /// How long nobody led.
    pub takeovers: Takeovers,
    /// How full the quotas were.
    pub peaks: Vec<Peak>,
    /// Refusals for want of quota while the upstream had counted less than all of it.
    pub refused_on_quota: usize,
    /// Other failures while there was quota.
    pub failed_on_quota: usize,
    /// What the simulator saw, by key.
    pub seen: Counts,
    /// What is stored, if that is what was reported.
    pub counted: Option<Counts>,
}

/// How much of one kind of quota was used.
#[derive(Debug, Clone, PartialEq)]
pub struct Peak {
    /// Which: `rpm`, `tpm`, `rpd`.
    pub dimension: &'static str,
    /// The fullest window of any bucket, over its limit.
    pub fullest: f64,
    /// What was used of what all windows of the run allow.
    pub used: f64,
}

/// How long nobody led, each time that the leader was taken away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Takeovers(Times);

impl Takeovers {
    pub(super) fn of(times: Vec<Duration>) -> Self {
        Self(Times::of(times))
    }
}

impl fmt::Display for Takeovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} / {} ms", self.0.n, self.0.p50.as_millis(), self.0.max.as_millis())
    }
}

pub(super) fn peaks(log: &[Received], chaos: &Chaos) -> Vec<Peak> {
    let generations: Vec<_> = judge::generations(log).cloned().collect();
    let Limits { rpm, tpm, rpd } = chaos.limits;
    let one = |_: &Received| 1;
    // As the simulator counts them.
    let tokens = |request: &Received| request.body_len as u64 / 4;
    let peak = |dimension, limit: u64, window: Duration, weigh: &dyn Fn(&Received) -> u64| {
        let found = uses(&generations, window, limit, weigh);
        let total: u64 = found.iter().map(|of| of.total).sum();
        let windows = (chaos.length.as_secs_f64() / window.as_secs_f64()).max(1.0);
        Peak {
            dimension,
            fullest: found.iter().map(|of| of.fullest).fold(0.0, f64::max),
            used: float(total) / (float(limit * chaos.projects as u64) * windows),
        }
    };
    let mut peaks = vec![peak("rpm", rpm, MINUTE, &one)];
    peaks.extend(tpm.map(|tpm| peak("tpm", tpm, MINUTE, &tokens)));
    peaks.extend(rpd.map(|rpd| peak("rpd", rpd, DAY, &one)));
    peaks
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn float(n: u64) -> f64 {
    n as f64
}

impl Outcome {
    /// Whether every quota was kept to in every window, and everything reported was counted. What a gateway that is
    /// killed has not reported yet is lost with it; otherwise everything seen was reported.
    pub fn holds(&self) -> bool {
        let loses = self.hits.contains_key(&Kind::Gateway);
        let counted = self.counted.as_ref().is_some_and(|counted| loses || *counted == self.seen);
        self.peaks.iter().all(|peak| peak.fullest <= 1.0) && counted
    }

    /// The share of the minute's quota that was used: all attempts over what the length allows.
    pub fn used(&self) -> f64 {
        self.peaks.first().map_or(0.0, |peak| peak.used)
    }

    fn row(&self) -> String {
        let sum = |counts: &Counts| counts.values().map(|count| count.answered + count.failed).sum::<u64>();
        let counted = match &self.counted {
            Some(counted) => format!("{} = {0}", sum(counted)),
            None => "**differ**".to_owned(),
        };
        let peaks: Vec<_> =
            self.peaks.iter().map(|peak| format!("{} {:.3}", peak.dimension, peak.fullest)).collect();
        let used: Vec<_> =
            self.peaks.iter().map(|peak| format!("{} {:.1} %", peak.dimension, peak.used * 100.0)).collect();
        let hits: Vec<_> = self.hits.iter().map(|(kind, n)| format!("{n} {kind:?}")).collect();
        let failures: Vec<_> = self.tally.failures().iter().map(|(end, n)| format!("{n} {end}")).collect();
        let cells = [
            self.chaos.seed.to_string(),
            peaks.join(", "),
            used.join(", "),
            list(&hits),
            self.takeovers.to_string(),
            self.tally.of("200").to_string(),
            format!("{} ({})", self.tally.of("429"), self.refused_on_quota),
            format!("{} ({})", list(&failures), self.failed_on_quota),
            format!("{} ms", self.tally.slowest.as_millis()),
            counted,
            sum(&self.seen).to_string(),
        ];
        format!("| {} |", cells.join(" | "))
    }
}

fn list(texts: &[String]) -> String {
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// One line per run.
pub fn table(outcomes: &[Outcome]) -> String {
    let Some(first) = outcomes.first() else { return String::new() };
    let Chaos { length, replicas, victims, pause, every, away, clients, rate, projects, limits, .. } =
        &first.chaos;
    let done = if *pause { "paused" } else { "killed" };
    let what = if victims.is_empty() {
        "nobody is killed".to_owned()
    } else {
        format!("one of {victims:?} is {done} every {every:?} for {away:?}")
    };
    let mut text = format!(
        "{length:?}, {replicas} gateways, {clients} clients with {rate} requests per second, {projects} projects with \
         {limits:?}; {what}. In parentheses: while the upstream had counted less than all of the quota.\n\n"
    );
    let heads = [
        "seed",
        "largest window ÷ quota",
        "quota used",
        done,
        "takeovers: n: p50 / max",
        "answered",
        "429",
        "failed",
        "slowest",
        "reported = counted",
        "seen upstream",
    ];
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for outcome in outcomes {
        text.push_str(&outcome.row());
        text.push('\n');
    }
    text
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&table(std::slice::from_ref(self)))
    }
}
