//! What the API shows, in the form in which it travels; the commands read the same.

use std::collections::HashMap;
use std::time::Duration;

use coordinator::status::Overview;
use keyfleet_core::block::Block;
use keyfleet_core::ledger::{BucketView, External, KeyView};
use keyfleet_core::message::Subject;
use keyfleet_core::quota::{Bucket, Dimension};
use keyfleet_core::time::Utc;
use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    /// `leading`, `standby`, or `unknown`: nobody is known to lead.
    pub(crate) role: String,
    /// Where the leader is reached, or its name.
    pub(crate) leader: Option<String>,
    pub(crate) epoch: u64,
    pub(crate) revision: u64,
    /// Reports that wait to be applied; only the leader knows.
    pub(crate) lag: Option<u64>,
    /// How long the stream had held the report that was read last.
    #[serde(default)]
    pub(crate) lag_ms: Option<u64>,
    /// Reports that this coordinator knows to be lost.
    #[serde(default)]
    pub(crate) reports_lost: u64,
    pub(crate) ledger_time_ms: Option<u64>,
    /// How long nothing is granted yet of a minute's quota.
    pub(crate) blind_seconds_left: u64,
    pub(crate) buckets: Option<usize>,
    pub(crate) open_lots: Option<usize>,
    pub(crate) replicas: Option<Vec<Replica>>,
    pub(crate) store_up: bool,
    pub(crate) bus_up: bool,
}

/// A gateway.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Replica {
    pub(crate) id: String,
    pub(crate) heard_seconds_ago: u64,
}

/// `GET /api/v1/keys`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// `leader`, or `store` for what a standby reads there.
    pub(crate) source: String,
    pub(crate) keys: Vec<Key>,
    /// The buckets of clients.
    pub(crate) clients: Vec<ClientUse>,
}

/// A key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) project: String,
    pub(crate) state: String,
    pub(crate) score: f64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) blocks: Vec<Blocked>,
    /// Those of its project, which all its keys share.
    pub(crate) buckets: Vec<BucketUse>,
}

/// What keeps traffic away.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Blocked {
    /// `key`, `key_model`, `quota` or `project`.
    pub(crate) scope: String,
    pub(crate) model: Option<String>,
    pub(crate) reason: String,
    /// Nothing: until a probe or an operator ends it.
    pub(crate) seconds_left: Option<u64>,
    pub(crate) probe_in_seconds: Option<u64>,
}

/// What of a bucket is used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BucketUse {
    pub(crate) model: String,
    pub(crate) dimension: Dimension,
    pub(crate) used: u64,
    pub(crate) open: u64,
    pub(crate) limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) external: Option<ExternalUse>,
}

/// Somebody else uses the project: its quota was refused though something was left of it by our count.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExternalUse {
    pub(crate) refused: u64,
    pub(crate) last_seconds_ago: u64,
}

/// What of a client's rate limit is used.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientUse {
    pub(crate) client: String,
    pub(crate) used: u64,
    pub(crate) open: u64,
    pub(crate) limit: Option<u64>,
}

/// What became of an operation, or why there is no answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Said {
    /// It is done, and every gateway hears of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) done: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Who leads, where that is whom to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) leader: Option<String>,
}

impl Listing {
    pub(crate) fn of(overview: &Overview, source: &str, now: Utc) -> Self {
        let mut of_projects: HashMap<&str, Vec<BucketUse>> = HashMap::new();
        let mut clients = Vec::new();
        for BucketView { bucket, used, open, limit, external } in &overview.buckets {
            let (used, open, limit) = (*used, *open, *limit);
            let external = external.map(|External { times, last }| ExternalUse {
                refused: times,
                last_seconds_ago: now.since(last).as_secs(),
            });
            match bucket {
                Bucket::Quota(project, model, dimension) => {
                    let (model, dimension) = (model.as_str().to_owned(), *dimension);
                    let bucket = BucketUse { model, dimension, used, open, limit, external };
                    of_projects.entry(project.as_str()).or_default().push(bucket);
                }
                Bucket::Client(name) => {
                    clients.push(ClientUse { client: name.as_str().to_owned(), used, open, limit });
                }
                Bucket::Probe(_) => {}
            }
        }
        let keys = overview.keys.iter().map(|view| {
            let buckets = of_projects.get(view.project.as_str()).cloned().unwrap_or_default();
            Key::of(view, buckets, now)
        });
        Self { source: source.to_owned(), keys: keys.collect(), clients }
    }
}

impl Key {
    fn of(view: &KeyView, buckets: Vec<BucketUse>, now: Utc) -> Self {
        Self {
            id: view.key.as_str().to_owned(),
            project: view.project.as_str().to_owned(),
            state: view.state().to_owned(),
            score: f64::from(view.score.tenths()) / 10.0,
            answered: view.totals.answered,
            failed: view.totals.failed,
            blocks: view.blocks.iter().map(|(subject, block)| Blocked::of(subject, block, now)).collect(),
            buckets,
        }
    }
}

impl Blocked {
    fn of(subject: &Subject, block: &Block, now: Utc) -> Self {
        let (scope, model) = match subject {
            Subject::Key(_) => ("key", None),
            Subject::KeyModel(_, model) => ("key_model", Some(model)),
            Subject::Bucket(_, model) => ("quota", Some(model)),
            Subject::Project(_) => ("project", None),
            Subject::Model(_, model) => ("model", Some(model)),
        };
        Self {
            scope: scope.to_owned(),
            model: model.map(|model| model.as_str().to_owned()),
            reason: block.cause.as_str().to_owned(),
            seconds_left: (block.until != Utc::FOREVER).then(|| seconds_up(block.until.since(now))),
            probe_in_seconds: block.probe_at.map(|at| seconds_up(at.since(now))),
        }
    }
}

/// Whole seconds: nothing that is left is shown as nothing.
pub(crate) fn seconds_up(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}
