//! What a leader writes down before anybody hears of it, in the form in which stores keep it.
//!
//! A [`Commit`] is all or nothing: it fails if another leader's epoch is stored, or if the store is not at the
//! commit that it follows. The store never looks into keys and values.

use serde::{Deserialize, Serialize};

use crate::id::ReplicaId;
use crate::message::Delta;
use crate::time::{LedgerTime, Utc};

/// The kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// What traffic stays away from, by subject.
    Blocks,
    /// Health, fingerprint and probes, by key.
    Keys,
    /// Owners of resources, by resource.
    Owners,
    /// Use and open lots, by bucket.
    Accounts,
    /// Learned limits, by bucket.
    Limits,
    /// Sums for people, by key and model.
    Totals,
    /// What people are told when something is wrong, by its place in [`alert`](crate::alert).
    Alerts,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Blocks, Self::Keys, Self::Owners, Self::Accounts, Self::Limits, Self::Totals, Self::Alerts];

    /// The name in a store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Keys => "keys",
            Self::Owners => "owners",
            Self::Accounts => "accounts",
            Self::Limits => "limits",
            Self::Totals => "totals",
            Self::Alerts => "alerts",
        }
    }
}

/// One thing that is stored, or removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub table: Table,
    /// Under which name.
    pub key: String,
    /// What; `None`: nothing any more.
    pub value: Option<String>,
}

/// What stands beside the entries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// The last epoch that was claimed.
    pub epoch: u64,
    /// Who claimed it. A store that lost writes may give an epoch out twice.
    pub leader: String,
    /// Counts commits.
    pub commit: u64,
    /// The revision of the decisions that gateways follow.
    pub rev: u64,
    /// How far ledger time has come.
    pub time: LedgerTime,
    /// The leader's calendar at that moment.
    pub at: Utc,
    /// The position in the stream of reports up to which all are applied.
    pub cursor: u64,
    /// What tells this stream from one that was made anew under the same name.
    pub stream: String,
    /// The store that it was written to: what tells it from a copy that took its place.
    pub store: String,
    /// Who wrote the last commit, in which term. Unlike `leader`, a claim that is not followed by a commit leaves it.
    #[serde(default)]
    pub author: String,
    /// Nothing is granted of a minute's quota before this moment, by ledger time.
    pub blind_until: LedgerTime,
}

/// Everything that changes in one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// The commit that it follows.
    pub follows: u64,
    /// What stands beside the entries afterwards; its `commit` is `follows + 1`.
    pub meta: Meta,
    /// Up to which report each publisher has been heard. An entry is only ever replaced by a higher one.
    pub heard: Vec<(ReplicaId, u64)>,
    /// What is stored and removed.
    pub entries: Vec<Entry>,
    /// What gateways are to hear; kept until later ones push it out.
    pub delta: Option<Delta>,
}

/// All that a store holds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Image {
    /// What stands beside the entries.
    pub meta: Meta,
    /// Up to which report each publisher has been heard.
    pub heard: Vec<(ReplicaId, u64)>,
    /// The entries, in no order. None without a value.
    pub entries: Vec<Entry>,
}
