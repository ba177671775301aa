//! What of the ledger survives a restart, put together; `stored` is how it lies in a store. The fields that
//! are read from text are the state file's first format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Learned, SavedProbe, Totals};
use crate::block::Block;
use crate::id::{KeyId, Model, ProjectId, ReplicaId, Resource};
use crate::message::Subject;
use crate::quota::Bucket;
use crate::quota::account::Account;
use crate::time::Utc;

/// The state that survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// When it was written.
    pub at: Utc,
    /// The revision that it holds.
    pub rev: u64,
    /// Blocks.
    pub blocks: Vec<(Subject, Block)>,
    /// Successes and failures that count for a key.
    pub health: BTreeMap<KeyId, (f64, f64)>,
    /// The fingerprint of the secret behind each key that is blocked.
    #[serde(default)]
    pub fingerprints: BTreeMap<KeyId, KeyId>,
    /// When the keys that are out for good are looked at again.
    #[serde(default)]
    pub probes: BTreeMap<KeyId, SavedProbe>,
    /// Owners of resources, and until when.
    pub owned: Vec<(Resource, ProjectId, Utc)>,
    /// Use and open lots of limited buckets.
    #[serde(skip)]
    pub accounts: Vec<(Bucket, Account)>,
    /// Limits that errors told.
    #[serde(skip)]
    pub limits: Vec<(Bucket, Learned)>,
    /// Everything that was ever reported.
    #[serde(skip)]
    pub totals: Vec<((KeyId, Model), Totals)>,
    /// Up to which report each publisher has been heard.
    #[serde(skip)]
    pub heard: Vec<(ReplicaId, u64)>,
}
