//! Faults by rule: which requests, how often, and what happens to them.

use serde::{Deserialize, Serialize};

use crate::family::Family;

/// Something that goes wrong for the requests it matches. Of several rules the first that matches acts.
///
/// Only requests that pass authentication meet a rule ([`Action::Refuse`] and [`Action::SlowLorisBody`] act before).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which requests; every one when left out.
    #[serde(rename = "match", default)]
    pub when: Match,
    /// How many times it acts; without end when absent.
    #[serde(default)]
    pub times: Option<u64>,
    /// Whether the request is charged to quota all the same, and refused when there is none.
    #[serde(default)]
    pub through_quota: bool,
    /// What happens.
    pub action: Action,
}

impl Rule {
    /// `action` for every request.
    pub fn new(action: Action) -> Self {
        Self { when: Match::default(), times: None, through_quota: false, action }
    }

    /// The error `family` for every request.
    pub fn family(family: Family) -> Self {
        Self::new(Action::Family(family))
    }

    /// Only requests with this key (its id).
    #[must_use]
    pub fn key(mut self, id: &str) -> Self {
        self.when.key = Some(id.to_owned());
        self
    }

    /// Only requests with a key of this project.
    #[must_use]
    pub fn project(mut self, id: &str) -> Self {
        self.when.project = Some(id.to_owned());
        self
    }

    /// Only requests for this model.
    #[must_use]
    pub fn model(mut self, id: &str) -> Self {
        self.when.model = Some(id.to_owned());
        self
    }

    /// Only paths that contain this text, or, if it has a `*`, that match it as a glob.
    #[must_use]
    pub fn path(mut self, pattern: &str) -> Self {
        self.when.path = Some(pattern.to_owned());
        self
    }

    /// At most this many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Only some of the requests that match otherwise.
    #[must_use]
    pub fn nth(mut self, nth: Nth) -> Self {
        self.when.nth = Some(nth);
        self
    }
}

/// Which requests a rule concerns: all conditions that are present must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// A key id.
    pub key: Option<String>,
    /// A project id.
    pub project: Option<String>,
    /// A model id, without `models/`.
    pub model: Option<String>,
    /// A part of the path, or a glob if it has a `*`.
    pub path: Option<String>,
    /// An HTTP method.
    pub method: Option<String>,
    /// Which of the requests that match so far, counted from 1 for each rule.
    pub nth: Option<Nth>,
    /// The share of them, drawn from the world's seed.
    pub probability: Option<f64>,
}

/// Which of the matching requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nth {
    /// The `n`th alone.
    Only(u64),
    /// Each `n`th.
    Every(u64),
    /// The first `n`.
    First(u64),
    /// All after the first `n`.
    After(u64),
}

/// What a rule does. Actions that shape an answer leave its status alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Any answer at all.
    Status {
        /// The status code.
        status: u16,
        /// The body, as it is.
        #[serde(default)]
        body: String,
        /// Headers on top of Google's.
        #[serde(default)]
        headers: Vec<(String, String)>,
        /// `application/json; charset=UTF-8` when absent.
        #[serde(default)]
        content_type: Option<String>,
    },
    /// A known error in the dialect of the surface.
    Family(Family),
    /// Closes the connection on the request's head, unread and unanswered; without conditions also new connections.
    Refuse,
    /// Reads the request, then resets the connection.
    Reset,
    /// Says nothing for a while before the answer; for good when absent.
    StallBeforeHeaders {
        /// How long.
        #[serde(default)]
        ms: Option<u64>,
    },
    /// Stops for a while after some chunks, or with 0 right behind the headers; for good when absent.
    StallMidStream {
        /// Chunks that come before.
        after_chunks: usize,
        /// How long.
        #[serde(default)]
        ms: Option<u64>,
    },
    /// Breaks off after so many bytes of the body.
    TruncateAt {
        /// How many.
        bytes: usize,
    },
    /// An error as an event of a streamed answer, and the end.
    ErrorEvent {
        /// Chunks that come before.
        after_chunks: usize,
        /// Which error.
        family: Family,
        /// Whether it stands in an array.
        #[serde(default)]
        wrapped: bool,
    },
    /// An error that is no event: bare JSON after some chunks of a streamed answer, and the end.
    RawTail {
        /// Chunks that come before.
        after_chunks: usize,
        /// Which error.
        family: Family,
    },
    /// 200 and an event stream without any event.
    EmptyStream,
    /// 200 without a body.
    Empty200,
    /// 200 without a candidate.
    EmptyCandidates,
    /// A compressed body, asked for or not.
    Gzip,
    /// A body in Brotli, if the request accepts that.
    Brotli,
    /// Every byte in a write of its own.
    BytePerChunk,
    /// The mark that ends a compatible stream, twice.
    DuplicateDone,
    /// No usage in any chunk.
    NoUsage,
    /// 200 with a candidate that says nothing but why it ended: `STOP` with an empty content, anything else without one.
    Blank {
        /// Google's word for the reason.
        finish_reason: String,
    },
    /// Answers, and asks for further requests on another connection: GOAWAY in HTTP/2, `Connection: close` before.
    GoAway,
    /// Reads the request's body slowly: a pause after each piece.
    SlowLorisBody {
        /// How long.
        ms: u64,
    },
}

impl Action {
    /// Why an answer without words ends.
    pub(crate) fn blank(&self) -> Option<&str> {
        if let Self::Blank { finish_reason } = self { Some(finish_reason) } else { None }
    }

    /// The name in the log's outcome.
    pub(crate) fn tag(&self) -> String {
        let name = match self {
            Self::Status { status, .. } => return format!("rule:{status}"),
            Self::Family(family) => return format!("rule:{}", family.name()),
            Self::Refuse => "refuse",
            Self::Reset => "reset",
            Self::StallBeforeHeaders { .. } => "stall_before_headers",
            Self::StallMidStream { .. } => "stall_mid_stream",
            Self::TruncateAt { .. } => "truncate_at",
            Self::ErrorEvent { .. } => "error_event",
            Self::RawTail { .. } => "raw_tail",
            Self::EmptyStream => "empty_stream",
            Self::Empty200 => "empty_200",
            Self::EmptyCandidates => "empty_candidates",
            Self::Gzip => "gzip",
            Self::Brotli => "brotli",
            Self::BytePerChunk => "byte_per_chunk",
            Self::DuplicateDone => "duplicate_done",
            Self::NoUsage => "no_usage",
            Self::Blank { .. } => "blank",
            Self::GoAway => "go_away",
            Self::SlowLorisBody { .. } => "slow_loris_body",
        };
        format!("rule:{name}")
    }
}
