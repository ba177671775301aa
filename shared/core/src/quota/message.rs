//! What holder and grantor say to each other. Durations travel, never moments.

use serde::{Deserialize, Serialize};

use super::{Bucket, LotId};
use crate::id::ReplicaId;

/// A holder reports what it used and asks for more. One is outstanding at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// One start of one gateway.
    pub boot: ReplicaId,
    /// Counts its requests from 1; never used twice.
    pub number: u64,
    /// The highest epoch that it has heard of. A grantor of a lower one has been replaced.
    pub epoch: u64,
    /// Every lot that the holder has, and those that it closed and nobody has acknowledged yet.
    pub reports: Vec<LotReport>,
    /// What it asks for.
    pub wants: Vec<Want>,
}

/// What became of a lot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LotReport {
    /// Of which bucket.
    pub bucket: Bucket,
    /// Which lot.
    pub lot: LotId,
    /// How many permits were drawn so far.
    pub drawn: u64,
    /// How many of them were given back unspent; each may have been drawn again.
    #[serde(default)]
    pub given_back: u64,
    /// No more will be drawn.
    pub closed: bool,
}

/// A wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Of which bucket.
    pub bucket: Bucket,
    /// Permits that requests wait for.
    pub need: u64,
    /// Permits that requests will need soon.
    pub ahead: u64,
    /// What was spent beyond what was drawn, to be charged now.
    #[serde(default)]
    pub debt: u64,
}

/// The answer to a [`LeaseRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// The grantor's epoch. Lower ones than were seen are ignored.
    pub epoch: u64,
    /// The number of the request.
    pub number: u64,
    /// What is granted.
    pub grants: Vec<Grant>,
    /// What could not be granted in full, and when to ask again.
    pub refusals: Vec<Refusal>,
}

/// A lot, on its way to its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Of which bucket.
    pub bucket: Bucket,
    /// Its name.
    pub lot: LotId,
    /// How many permits it holds.
    pub size: u64,
    /// How long it lives, counted from when the request was sent, in ms.
    pub life_ms: u64,
}

/// A bucket that has nothing left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which.
    pub bucket: Bucket,
    /// When permits come back at the latest by the grantor's book, in ms; others may return some before.
    pub retry_ms: u64,
}
