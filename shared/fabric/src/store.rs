//! Where the state is kept that outlives processes, and the lock that says who leads.
//!
//! Two worlds: [`redis`] for many processes, [`memory`] for one, which keeps a file if it is given a path. Both
//! behave alike, and the suite in this crate's `tests/store` is the contract.

pub mod memory;
pub mod redis;

mod journal;
mod scripts;

use async_trait::async_trait;
use keyfleet_core::id::ReplicaId;
use keyfleet_core::message::Delta;
use keyfleet_core::state::{Commit, Image, Meta, Table};
use keyfleet_core::time::{LedgerTime, Utc};
use std::time::Duration;

/// A store of one partition. Every call is one atomic step, and answers or fails within a bounded time.
#[async_trait]
pub trait StateStore: Send + Sync + std::fmt::Debug {
    /// Takes the leadership, keeps it, or gives it up.
    ///
    /// A claim with epoch 0 is a new one: if nobody else holds the leadership, it begins a new epoch, also where the
    /// claimer held an earlier one. A claim with an epoch keeps exactly that one, if it is the claimer's and no other
    /// has begun since; it may have lapsed meanwhile. The stored time never goes back.
    ///
    /// After [`StoreError::Unreachable`] the same claim can be made again.
    async fn lead(&self, claim: &Claim) -> Result<Lead, StoreError>;

    /// Writes a commit, if its epoch is the stored one, the store is at the commit that it follows, every report is
    /// later than what was heard of its publisher, and its decisions are later than all before.
    ///
    /// A publisher with the number 0 is forgotten. The stored time never goes back.
    ///
    /// After [`StoreError::Unreachable`] it may have been written or not: writing it again is safe, since a commit
    /// that is there already is refused as [`StoreError::Conflict`] with the stored state to compare. A stored epoch
    /// *below* the commit's is a conflict too, and so is the same epoch with another leader: the store has lost
    /// something.
    async fn commit(&self, commit: &Commit) -> Result<(), StoreError>;

    /// Everything, at one moment.
    async fn load(&self) -> Result<Image, StoreError>;

    /// The decisions after revision `rev`, in order and without a gap; `None` if they are no longer kept, or if the
    /// store is not that far.
    async fn since(&self, rev: u64) -> Result<Option<Vec<Delta>>, StoreError>;

    /// Which server answers, and which history it has. Another answer than before means that it was restarted or that
    /// a copy took its place, and that the last writes may be lost. The store of one process always gives the same:
    /// what it may have lost, it says when it is opened.
    async fn identity(&self) -> Result<String, StoreError>;

    /// One entry.
    async fn get(&self, table: Table, key: &str) -> Result<Option<String>, StoreError>;
}

/// A wish to lead.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Who wants to lead: one start of one process.
    pub holder: ReplicaId,
    /// For how long from now, in whole milliseconds; zero gives the leadership up.
    pub ttl: Duration,
    /// The epoch held, or 0 for one that does not lead.
    pub epoch: u64,
    /// A new epoch is higher than this, whatever the store remembers.
    pub above: u64,
    /// How far ledger time has come, and the calendar, to be stored by one that leads already.
    pub clock: Option<(LedgerTime, Utc)>,
}

/// Who leads after a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Lead {
    /// The claimer, in this epoch, and this is what stands beside the entries.
    Mine(Meta),
    /// Somebody else, in this epoch, for so long at least.
    Theirs {
        /// Who. The claimer itself, if it claims an epoch before its own.
        holder: ReplicaId,
        /// Their epoch.
        epoch: u64,
        /// What is left of their claim.
        left: Duration,
    },
    /// Nobody: it was given up, or the claim was to keep an epoch that is not the stored one.
    Nobody,
}

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// Another leader's epoch is stored.
    #[error("epoch {stored} has taken over")]
    Fenced {
        /// The epoch that is stored.
        stored: u64,
    },
    /// The store is not at the commit that was to be followed, or a report is not the next of its publisher.
    #[error("the store is at commit {} of epoch {}, which does not fit", .0.commit, .0.epoch)]
    Conflict(Box<Meta>),
    /// Nobody knows whether it was done.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// What is stored cannot be read.
    #[error("the store holds what this release cannot read: {0}")]
    Damaged(String),
    /// It was not done, and will not be until somebody changes the configuration, here or there.
    #[error("the store cannot be used: {0}")]
    Misconfigured(String),
}

/// How many decisions a store keeps at least, unless told otherwise: many times what is made while a gateway that
/// lost some asks for them.
pub const KEEP: usize = 10_000;

/// Those of the kept decisions that lead from `rev` to `head`; `None` if one is missing.
fn chain(rev: u64, head: u64, kept: impl Iterator<Item = Delta>) -> Option<Vec<Delta>> {
    let mut at = rev;
    let mut chain = Vec::new();
    for delta in kept.filter(|delta| delta.rev > rev) {
        if delta.prev != at {
            return None;
        }
        at = delta.rev;
        chain.push(delta);
    }
    (at == head).then_some(chain)
}
