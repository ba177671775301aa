//! What a run is about.

use keyfleet_core::id::{ClientName, Model, ProjectId};
use keyfleet_core::message::Subject;
use keyfleet_core::quota::{Bucket, Dimension};

use super::{Faults, TERMS};

/// So long before and after a midnight is simulated in worlds that leap from one to the next.
pub(crate) const NEAR: u64 = 300_000;

/// What a token quota allows per request: less than requests take on average.
const TOKENS: u64 = 60;

/// Pacific midnights. The days that begin with the first and the third have 25 and 23 hours.
const MIDNIGHTS: [&str; 4] =
    ["2026-11-01T07:00:00Z", "2026-11-02T08:00:00Z", "2027-03-14T08:00:00Z", "2027-03-15T07:00:00Z"];

#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) gateways: usize,
    pub(crate) coordinators: usize,
    /// Projects with one model each.
    pub(crate) targets: usize,
    /// Requests per target and window, or per day where only days are counted.
    pub(crate) limit: u64,
    /// Requests over all gateways, as a multiple of what the quotas allow.
    pub(crate) load: f64,
    pub(crate) shape: Shape,
    pub(crate) faults: Faults,
    pub(crate) flaw: Option<Flaw>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Requests per minute.
    Requests,
    /// Requests and tokens per minute, and requests of two clients.
    Minutes,
    /// The same and requests per day; the run begins before a midnight.
    Everything,
    /// Requests per day; nothing is simulated but some time around each midnight.
    Midnights,
    /// Requests per day.
    WholeDays,
    /// Nothing is counted: it is always time to try what is blocked, once at a time.
    Probes,
}

impl Setup {
    pub(crate) const SMALL: Self = Self {
        gateways: 3,
        coordinators: 2,
        targets: 2,
        limit: 20,
        load: 2.0,
        shape: Shape::Requests,
        faults: Faults::ALL,
        flaw: None,
    };
    /// Three days, of which one begins or ends daylight saving time.
    pub(crate) const DAYS: Self =
        Self { targets: 1, limit: 200, load: 1.2, shape: Shape::Midnights, ..Self::SMALL };

    pub(crate) const PROBES: Self = Self { shape: Shape::Probes, ..Self::SMALL };

    /// What the quotas of requests allow in so much time.
    pub(crate) fn possible(&self, secs: u64) -> f64 {
        let span = match self.shape {
            Shape::Requests | Shape::Minutes | Shape::Everything | Shape::Probes => TERMS.window.as_secs(),
            Shape::Midnights => 2 * NEAR / 1_000,
            Shape::WholeDays => 86_400,
        };
        (self.targets as u64 * self.limit * secs) as f64 / span as f64
    }

    /// The mean number of requests per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.load * self.possible(1)
    }

    /// How often tasks look around, in ms. Days are long.
    pub(crate) fn tick(&self) -> u64 {
        if self.shape == Shape::WholeDays { 1_000 } else { 100 }
    }

    /// The buckets of the targets, then those of the clients, with their limits.
    pub(crate) fn limits(&self) -> Vec<(Bucket, u64)> {
        let mut limits = Vec::new();
        if self.shape == Shape::Probes {
            let subject = |target| Subject::Project(ProjectId::new(format!("p{target}")));
            return (0..self.targets).map(|target| (Bucket::Probe(subject(target)), 1)).collect();
        }
        for target in 0..self.targets {
            for dimension in self.dimensions() {
                let project = ProjectId::new(format!("p{target}"));
                let limit = match (dimension, self.shape) {
                    (Dimension::Tpm, _) => self.limit * TOKENS,
                    (Dimension::Rpd, Shape::Everything) => self.limit * 5,
                    _ => self.limit,
                };
                limits.push((Bucket::Quota(project, Model::new("m"), *dimension), limit));
            }
        }
        for client in 0..self.clients() {
            let share = self.targets as u64 * self.limit * 2 / 3;
            limits.push((Bucket::Client(ClientName::new(format!("c{client}"))), share));
        }
        limits
    }

    pub(crate) fn dimensions(&self) -> &'static [Dimension] {
        match self.shape {
            Shape::Requests | Shape::Probes => &[Dimension::Rpm],
            Shape::Minutes => &[Dimension::Rpm, Dimension::Tpm],
            Shape::Everything => &Dimension::ALL,
            Shape::Midnights | Shape::WholeDays => &[Dimension::Rpd],
        }
    }

    pub(crate) fn clients(&self) -> usize {
        if matches!(self.shape, Shape::Minutes | Shape::Everything) { 2 } else { 0 }
    }
}

/// The calendar at the beginning of a run.
pub(crate) fn begins(seed: u64) -> i64 {
    let midnight = MIDNIGHTS[usize::try_from(seed % 4).unwrap()];
    let midnight = midnight.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    midnight - i64::try_from(NEAR).unwrap()
}

/// A rule of the protocol that a world breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A lot's life is counted from when the answer came.
    LifeFromReceipt,
    /// The answer is sent before the lot is stored.
    ReplyBeforePersist,
    /// A new leader goes by its calendar instead of ledger time.
    WallClockAtTakeover,
    /// The store takes the writes of every leader.
    NoFence,
    /// Every lot that is not listed counts as never accepted.
    NoRequestNumbers,
    /// A closed lot is listed once only.
    ClosedForgotten,
    /// A lot that ran out is free again.
    ExpiredFreed,
    /// A store that lost writes is believed.
    LossUnnoticed,
    /// The last author vouches for its store, whoever began a term since.
    NoWitness,
    /// The last author vouches for its store after a term of its own of which nobody told it what came before.
    UnansweredVouch,
    /// The last author vouches for its store, whatever of its own is missing there.
    CommitsUncompared,
    /// What was drawn is charged as of the moment from which it can have been drawn, not of that of the report.
    ChargedEarly,
    /// Nobody looks at a permit again before it is sent.
    NoLastLook,
    /// A request is charged to the one day that the leader's calendar shows.
    OneDayOnly,
    /// That a store lost writes is noticed, and forgotten with the leader that did.
    QuarantineForgotten,
    /// All leaders get the same epoch, and the store asks them for nothing else.
    EpochsAlike,
    /// What was spent beyond the estimate is not charged.
    DebtForgotten,
    /// A probe's lot is closed as soon as it is drawn, as others are.
    ProbeNotListed,
    /// Whoever finds no right to a probe probes all the same.
    ProbesUnasked,
}

impl Flaw {
    pub(crate) const ALL: [Self; 19] = [
        Self::LifeFromReceipt,
        Self::ReplyBeforePersist,
        Self::WallClockAtTakeover,
        Self::NoFence,
        Self::NoRequestNumbers,
        Self::ClosedForgotten,
        Self::ExpiredFreed,
        Self::LossUnnoticed,
        Self::NoWitness,
        Self::UnansweredVouch,
        Self::CommitsUncompared,
        Self::ChargedEarly,
        Self::NoLastLook,
        Self::OneDayOnly,
        Self::QuarantineForgotten,
        Self::EpochsAlike,
        Self::DebtForgotten,
        Self::ProbeNotListed,
        Self::ProbesUnasked,
    ];
}
