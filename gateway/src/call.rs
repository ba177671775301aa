//! One client request, as the pipeline sees it: where it goes, for which model, and what may be done with it.

use std::ops::Range;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method};
use keyfleet_core::id::{Model, Resource};

use crate::budget::Held;

/// Which of the upstream's two surfaces a request speaks to, and so in which dialect errors are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surface {
    /// The OpenAI-compatible one.
    Compat,
    /// Gemini's own.
    Native,
}

impl Surface {
    /// The word in logs and metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Compat => "openai",
            Self::Native => "gemini",
        }
    }
}

/// What comes back from a successful call, which decides how it is relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A model's answer: chat, generate.
    Generate,
    /// It makes something that belongs to the project: files, caches, batches.
    Create,
    /// Anything else.
    Other,
}

/// Where the model's name stands, to put an alias in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelAt {
    /// In the body.
    Body(Range<usize>),
    /// In the path.
    Path(Range<usize>),
    /// The request names none.
    Nowhere,
}

/// The request's body.
#[derive(Debug)]
pub(crate) enum Payload {
    /// In memory: it can be sent again. The bytes stay counted while they are held, and with them the copy that is
    /// sent when something in them is rewritten.
    Held(Bytes, Held),
    /// An upload, passed through as it comes; sent once.
    Stream(Option<Body>),
}

/// A client request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) surface: Surface,
    pub(crate) kind: Kind,
    pub(crate) method: Method,
    /// Behind the compat base or the native root, without a leading slash.
    pub(crate) path: String,
    /// Without credentials; may be empty.
    pub(crate) query: String,
    /// What goes upstream: no credentials, no hop-by-hop headers.
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    /// The name by which the client calls the model; empty if it names none.
    pub(crate) model: Model,
    /// A part of the quota that is counted apart, such as `countTokens`; empty for the rest.
    pub(crate) quota: &'static str,
    pub(crate) model_at: ModelAt,
    /// The upstream is told to keep nothing of what it makes.
    pub(crate) not_stored: bool,
    /// The answer is to come piece by piece.
    pub(crate) stream: bool,
    /// The body has no `top_p`, and the place for one is here.
    pub(crate) top_p_at: Option<usize>,
    /// Stored resources that it refers to.
    pub(crate) resources: Vec<Resource>,
    /// Requests with the same value should stay on one project.
    pub(crate) session: Option<u64>,
    /// How long it may wait for leases on the quota of keys.
    pub(crate) patience: Duration,
    /// The base under which the client reached us, for URLs that are handed to it.
    pub(crate) own_base: String,
}

impl Call {
    /// Whether the answer is a stream of events, in which comments may stand. Gemini's own streams are one JSON array
    /// unless the query asks for events.
    pub(crate) fn expects_events(&self) -> bool {
        let asks = |pair: &str| matches!(pair, "alt=sse" | "$alt=sse" | "%24alt=sse");
        let is_native = self.surface == Surface::Native && self.kind == Kind::Generate;
        self.stream && (!is_native || self.query.split('&').any(asks))
    }

    /// How long the caller lets the upstream work on it: `X-Server-Timeout`, in seconds.
    pub(crate) fn server_timeout(&self) -> Option<Duration> {
        let seconds: u64 = self.headers.get("x-server-timeout")?.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds.min(86_400)))
    }

    /// Whether the body can be sent a second time.
    pub(crate) fn can_repeat(&self) -> bool {
        matches!(self.payload, Payload::Held(..))
    }

    /// Whether a second sending does no harm when the first may have been carried out.
    pub(crate) fn is_idempotent(&self) -> bool {
        !self.creates()
    }

    /// Whether it makes something that belongs to the project from then on.
    pub(crate) fn creates(&self) -> bool {
        self.kind == Kind::Create && !self.not_stored
    }
}

/// A lane's name: the model, and the part of its quota.
pub(crate) fn lane(model: &Model, quota: &str) -> Model {
    if quota.is_empty() { model.clone() } else { Model::new(format!("{model}#{quota}")) }
}
