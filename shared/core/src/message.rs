//! What gateways and the coordinator tell each other. Durations and ages travel, never moments: no two machines
//! have to agree on the time. Unknown fields are ignored, so that neighbouring releases understand each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::health::Score;
use crate::id::{Host, KeyId, Model, ProjectId, ReplicaId, Resource};
use crate::latency::Latencies;
use crate::outcome::{Cause, Scope};
use crate::quota::message::{LeaseReply, LeaseRequest};
use crate::quota::{Bucket, Dimension, LotId, written};
use crate::trace::TraceParent;

/// The requests that one message names as what caused it, at most: a storm needs no more to be recognised.
pub const MOST_TRACES: usize = 8;
/// The most models whose times one report tells.
pub const MOST_TIMES: usize = 64;

/// What a replica saw, in the order in which it saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who saw it.
    pub replica: ReplicaId,
    /// Counts the reports of this replica from 1.
    pub seq: u64,
    /// What it saw.
    pub records: Vec<Record>,
    /// Times to the first byte of answers among these and in earlier reports, by model. `None`: of a release that tells
    /// no more than the means in its records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Vec<(Model, Latencies)>>,
    /// Requests that met the failures among these, at most [`MOST_TRACES`]. They travel beside the body.
    #[serde(skip)]
    pub traces: Vec<TraceParent>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Answers in full, folded together.
    Succeeded {
        /// The key that was used.
        key: KeyId,
        /// The model that answered.
        model: Model,
        /// How many.
        n: u32,
        /// Their mean time to the first byte, in ms.
        ttfb_ms: u32,
        /// It was the single request that a block had let through.
        probe: bool,
    },
    /// Failed attempts that tell the same, folded together: the last of them, and how many.
    Failed {
        /// The key that was used.
        key: KeyId,
        /// The model that was asked.
        model: Model,
        /// Whose state it concerns.
        scope: Scope,
        /// Why it failed.
        cause: Cause,
        /// How many.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        n: u32,
        /// How long the upstream asked to stay away, in ms.
        retry_after_ms: Option<u64>,
        /// The random draw of the block's jitter.
        draw: u32,
        /// It was the single request that a block had let through.
        probe: bool,
        /// The limits that the error told.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        limits: Vec<(Dimension, u64)>,
        /// How many of them the key has had in a row, without an answer in between; `None`: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        in_a_row: Option<u32>,
        /// How long ago the last of them was, in ms.
        #[serde(default, skip_serializing_if = "is_zero")]
        age_ms: u64,
    },
    /// A replica's breaker of a model has opened, or stays open because the single request that tried failed.
    Tripped {
        /// Where the model is asked for.
        host: Host,
        /// Which model.
        model: Model,
        /// What the last failure was.
        cause: Cause,
        /// How long to wait before the next single request, in ms, the first time.
        recovery_ms: u64,
        /// The random draw of the block's jitter.
        draw: u32,
        /// It was the single request that the breaker had let through.
        probe: bool,
        /// How long ago it was, in ms.
        #[serde(default, skip_serializing_if = "is_zero")]
        age_ms: u64,
    },
    /// The single requests that a model's breaker had let through were answered.
    Recovered {
        /// Where.
        host: Host,
        /// Which model.
        model: Model,
    },
    /// The probe of this lot has ended, and its verdict is in the records before this one.
    Judged {
        /// What was tried.
        subject: Subject,
        /// The right to it.
        lot: LotId,
    },
    /// Something was created upstream that only this project can use.
    Owned(Owned),
}

impl Record {
    /// How many attempts, or single facts, it stands for.
    pub fn count(&self) -> u64 {
        match self {
            Self::Succeeded { n, .. } | Self::Failed { n, .. } => u64::from(*n),
            Self::Tripped { .. } | Self::Recovered { .. } | Self::Judged { .. } | Self::Owned(_) => 1,
        }
    }

    /// It has waited for so long. Of what closes nothing the age does not matter.
    pub fn wait(&mut self, span: Duration) {
        if let Self::Failed { age_ms, .. } | Self::Tripped { age_ms, .. } = self {
            *age_ms = age_ms.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        }
    }
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_one(n: &u32) -> bool {
    *n == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Who owns a resource of the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// What: an opaque name; capabilities such as upload ids are hashed first.
    pub resource: Resource,
    /// The project that made it.
    pub project: ProjectId,
    /// For how long it matters, in ms.
    pub ttl_ms: u64,
}

/// What a block is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A credential.
    Key(KeyId),
    /// A credential for one model.
    KeyModel(KeyId, Model),
    /// A project's quota for one model.
    Bucket(ProjectId, Model),
    /// A project.
    Project(ProjectId),
    /// A model, whoever asks for it at this host.
    Model(Host, Model),
}

impl Subject {
    /// The length of its names in bytes.
    pub fn names(&self) -> usize {
        match self {
            Self::Key(key) => written(key.as_str()),
            Self::KeyModel(key, model) => written(key.as_str()) + written(model.as_str()),
            Self::Bucket(project, model) => written(project.as_str()) + written(model.as_str()),
            Self::Project(project) => written(project.as_str()),
            Self::Model(host, model) => written(host.as_str()) + written(model.as_str()),
        }
    }
}

/// One authoritative decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// Traffic stays away.
    Blocked {
        /// From what.
        subject: Subject,
        /// Why.
        cause: Cause,
        /// For how long, in ms; `None`: until it is cleared.
        ttl_ms: Option<u64>,
        /// When one single request may try, in ms.
        probe_ms: Option<u64>,
    },
    /// Traffic may come back before the block's time, or before that of which a refused lease spoke.
    Cleared {
        /// To what.
        subject: Subject,
        /// It starts slowly.
        slow_start: bool,
    },
    /// A key's score.
    Scored {
        /// Whose.
        key: KeyId,
        /// The score.
        score: Score,
    },
    /// Ownership of a resource.
    Owned(Owned),
    /// What a bucket may hold by the upstream's word, which does not count where an operator has given a limit. Of a
    /// client's bucket: by the operator's, which is higher than when somebody was refused.
    Limited {
        /// Which.
        bucket: Bucket,
        /// How much; `None`: nobody knows.
        limit: Option<u64>,
    },
    /// The prober found a key valid.
    Validated {
        /// Which.
        key: KeyId,
    },
}

/// Decisions that follow those of revision `prev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The leader's epoch. Decisions of lower ones than were seen are ignored.
    pub epoch: u64,
    /// The revision that these lead to.
    pub rev: u64,
    /// The revision that they apply to.
    pub prev: u64,
    /// The decisions, in order.
    pub changes: Vec<Change>,
}

/// All decisions that hold at a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The epoch of the leader that wrote it down.
    pub epoch: u64,
    /// The revision.
    pub rev: u64,
    /// The decisions.
    pub changes: Vec<Change>,
}

/// What one replica just found out, for the others to act on at once. It can only close, never open, and holds no
/// longer than the receiver allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Who found it.
    pub replica: ReplicaId,
    /// What to stay away from.
    pub subject: Subject,
    /// Why.
    pub cause: Cause,
    /// For how long, in ms, counted from `age_ms` ago.
    pub ttl_ms: u64,
    /// How long ago it was found, in ms.
    pub age_ms: u64,
    /// The request that found it. It travels beside the body.
    #[serde(skip)]
    pub trace: Option<TraceParent>,
}

/// The leader is alive, and this is where it stands: what reveals that the last decisions were lost on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The leader's epoch.
    pub epoch: u64,
    /// The revision of its decisions.
    pub rev: u64,
    /// The revision that it began with: up to there, decisions of earlier leaders hold. 0: it cannot vouch for any, since
    /// its store may have lost some, and given their numbers to others.
    #[serde(default)]
    pub began: u64,
}

/// What somebody asks the leader, who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ask {
    /// For quota.
    Lease(LeaseRequest),
    /// To remember who owns a resource, before the client hears of it.
    Own(Owned),
    /// For an operator.
    Operate {
        /// What to do.
        operation: Operation,
        /// Who asks, for the audit.
        by: String,
    },
}

/// What an operator can do to a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Operation {
    /// Keep traffic away for a while.
    Block {
        /// From which key.
        key: KeyId,
        /// For how long, in ms.
        ttl_ms: u64,
    },
    /// Let traffic back that a block keeps away.
    Unblock {
        /// To which key.
        key: KeyId,
    },
    /// Keep traffic away until it is enabled.
    Disable {
        /// From which key.
        key: KeyId,
    },
    /// Undo that.
    Enable {
        /// Of which key.
        key: KeyId,
    },
    /// Look now whether it works.
    Probe {
        /// Which key.
        key: KeyId,
    },
}

/// What the leader answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// Quota.
    Lease(LeaseReply),
    /// It is written down.
    Done,
    /// It cannot be.
    Refused {
        /// Why, for people.
        why: String,
    },
}
