//! How quota is shared: counted permits in short leases ("lots"), never rates.
//!
//! The coordinator's [`grantor`] writes a lot down before it hands it out, and counts it as used up until it hears
//! otherwise. A gateway's [`holder`] draws from its lots with one atomic step ([`lot`]) and asks for the next ones in
//! the background. Whatever is lost, late, doubled, paused or killed on the way can only leave quota unused:
//!
//! - A holder counts the life of a lot from when it *sent* the request, by its own clock; the grantor from when it
//!   granted, in [`LedgerTime`], which stands still while nobody leads. So a lot is never drawn from after the grantor
//!   has written it off.
//! - A lot that runs out unheard is charged in full. A lot that was never accepted is known by the number of the
//!   request, of which a holder has one outstanding, and is free again.
//! - A closed lot stays in every report until an answer to such a report is in: forgetting it earlier would make a
//!   used lot look like one that was never accepted.
//!
//! The right to try what is blocked is a lot too, of one permit ([`Bucket::Probe`]). It is not counted over a window:
//! its holder keeps listing it while the request is under way, which prolongs it, and when it is closed the next one
//! waits for the verdict.
//!
//! Take any window, and the last lot granted of those with an admission in it. Every other admission in the window
//! was, at that grant, either charged (at or after its real time, so still counted) or inside the open part of a
//! lot. The grant left the sum of both within the limit; hence so are the admissions.

pub mod account;
pub mod grantor;
pub mod holder;
pub mod holders;
pub mod lot;
pub mod message;
pub mod rules;
pub mod share;
pub mod used;

/// Where [`lot`] finds its atomics.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{ClientName, Model, ProjectId};
use crate::message::Subject;
use crate::time::LedgerTime;

/// What the upstream counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// Requests per minute.
    Rpm,
    /// Input tokens per minute.
    Tpm,
    /// Requests per day, which ends at Pacific midnight.
    Rpd,
}

impl Dimension {
    /// All of them, in the order in which a request draws.
    pub const ALL: [Self; 3] = [Self::Rpm, Self::Tpm, Self::Rpd];
}

/// One budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// What the upstream counts for a project and model; all keys of the project share it.
    Quota(ProjectId, Model, Dimension),
    /// What a named client may ask of all replicas together, in requests per minute.
    Client(ClientName),
    /// The single request that may try whether a block is over. It has one permit, which nobody else gets before its
    /// holder has told how the request went, or has not been heard of for as long as a lot lives.
    Probe(Subject),
}

impl Bucket {
    /// The length of its names in bytes, as messages have them.
    pub(crate) fn names(&self) -> usize {
        match self {
            Self::Quota(project, model, _) => written(project.as_str()) + written(model.as_str()),
            Self::Client(name) => written(name.as_str()),
            Self::Probe(subject) => subject.names(),
        }
    }

    /// Whether it is counted by the calendar day instead of a sliding window.
    pub fn is_daily(&self) -> bool {
        matches!(self, Self::Quota(_, _, Dimension::Rpd))
    }

    /// Whether it is the right to try what is blocked.
    pub fn is_probe(&self) -> bool {
        matches!(self, Self::Probe(_))
    }
}

/// The length of a string in JSON.
pub(crate) fn written(text: &str) -> usize {
    let length = |byte| match byte {
        b'"' | b'\\' => 2,
        ..b' ' => 6,
        _ => 1,
    };
    text.bytes().map(length).sum()
}

/// The protocol's spans. Both sides of a deployment use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The sliding window of the upstream's minute quotas.
    pub window: Duration,
    /// The longest time between an admission here and the upstream's count of it.
    pub jitter: Duration,
    /// How long a lot may be drawn from.
    pub life: Duration,
    /// How much of a lot's life a holder leaves unused, in thousandths: clocks run at different speeds.
    pub drift_permille: u32,
    /// For how long a holder keeps permits in hand. It carries an outage of so long but what has passed since the last
    /// answer, while that is less than the life of a lot.
    pub ahead: Duration,
    /// How long a holder waits for an answer before it asks anew.
    pub timeout: Duration,
}

impl Terms {
    /// The terms of a minute's window.
    pub const MINUTE: Self = Self {
        window: Duration::from_mins(1),
        jitter: Duration::from_millis(250),
        life: Duration::from_secs(10),
        drift_permille: 10,
        ahead: Duration::from_secs(8),
        timeout: Duration::from_millis(250),
    };
}

/// The name of a lot: unique for ever, since no two leaders share an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LotId {
    /// The epoch of the leader that granted it.
    pub epoch: u64,
    /// Counts the lots of that epoch.
    pub number: u64,
}

/// A lot as the grantor keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenLot {
    /// Its name.
    pub id: LotId,
    /// Who holds it: one start of one gateway.
    pub boot: crate::id::ReplicaId,
    /// The request that it answered.
    pub request: u64,
    /// How many permits it held.
    pub size: u64,
    /// How many draws are charged already.
    pub drawn: u64,
    /// How many permits came back unspent.
    pub given_back: u64,
    /// When it is written off.
    pub expires: LedgerTime,
}

impl OpenLot {
    /// The permits that may be used any moment.
    pub fn open(&self) -> u64 {
        (self.size + self.given_back).saturating_sub(self.drawn)
    }
}
