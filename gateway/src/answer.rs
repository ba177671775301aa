//! The head of an upstream answer, read far enough to know whether it is one.
//!
//! An error status is read and classified. A success is looked into before anything is relayed: Google reports
//! errors inside a 200, and sometimes nothing at all; as long as the client has seen nothing, another attempt is
//! possible. Plain answers of up to [`HELD`] bytes are read to their end for the same reason.
//!
//! How an answer is read follows from its form alone. Whether the request may be sent again is not decided here.

mod judge;

use std::io::Read as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};
use keyfleet_core::outcome::{Cause, Outcome, Retry, Scope, classify};
use keyfleet_core::time::Mono;
use keyfleet_service::clock;
use serde_json::Value;
use tokio::time::Instant;

use crate::api::interactions;
use crate::array;
use crate::call::{Call, Kind, Surface};
use judge::{Judged, Least};

/// Plain answers up to this size are relayed only when they are complete, and so can be judged: twice the size of any
/// error that is read. Larger ones are images and embeddings; to hold those would cost megabytes and time.
const HELD: usize = 128 * 1024;
/// How long the body of an error may take; its status has said most.
const ERROR_BODY: Duration = Duration::from_secs(3);
/// How much of a stream is looked at before it is taken for an answer.
const FIRST_EVENTS: usize = 64 * 1024;

/// An answer that goes to the client.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) form: Form,
    /// What has been read of the body.
    pub(crate) begun: Bytes,
    /// The rest; `None` if `begun` is all of it.
    pub(crate) rest: Option<Incoming>,
}

/// What passes through, which decides what the relay watches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Events of a model's answer.
    Events,
    /// Events of an interaction.
    Interaction,
    /// A model's answer as one streamed JSON array.
    Array,
    /// Anything else.
    Bytes,
}

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) outcome: Outcome,
    pub(crate) status: StatusCode,
    pub(crate) body: ErrorBody,
}

impl Failed {
    /// Without an answer from upstream.
    pub(crate) fn without_answer(cause: Cause) -> Box<Self> {
        let (status, message) = match cause {
            Cause::Timeout => (StatusCode::GATEWAY_TIMEOUT, "The upstream did not answer in time."),
            Cause::Connect => (StatusCode::BAD_GATEWAY, "The upstream cannot be reached."),
            Cause::BadRequest => (StatusCode::BAD_REQUEST, "The request cannot be sent upstream."),
            Cause::EmptyAnswer => (StatusCode::BAD_GATEWAY, "The upstream answered without content."),
            Cause::PermitLapsed => {
                (StatusCode::SERVICE_UNAVAILABLE, "Its quota had lapsed before the request could be sent.")
            }
            _ => (StatusCode::BAD_GATEWAY, "The upstream broke the connection off."),
        };
        let body = ErrorBody { message: message.to_owned(), ..ErrorBody::default() };
        Box::new(Self { outcome: cause.outcome(), status, body })
    }

    /// The quota for it was gone before there was a connection: the upstream knows nothing of it, and the key is as good as
    /// before.
    pub(crate) fn was_never_sent(&self) -> bool {
        self.outcome.cause == Cause::PermitLapsed
    }

    /// Given up by ourselves: nobody is at fault, and nothing is tried again.
    pub(crate) fn shutting_down() -> Box<Self> {
        let outcome = Outcome { scope: Scope::Client, retry: Retry::Never, ..Cause::Cancelled.outcome() };
        let body = ErrorBody { message: "The gateway is shutting down.".to_owned(), ..ErrorBody::default() };
        Box::new(Self { outcome, status: StatusCode::SERVICE_UNAVAILABLE, body })
    }
}

/// What the call lets expect of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A model's answer, at once or as events. An empty one is none.
    Answer,
    /// A model's answer as one streamed JSON array, unless events come.
    Elements,
    /// A new interaction, at once or as events.
    Interaction,
    /// An interaction from before, at once or as events; nothing, if it was deleted.
    KnownInteraction,
    /// Embeddings.
    Embeddings,
    /// Figures, images.
    Result,
    /// Resources; nothing, where they were deleted.
    Other,
    /// A file's content, which is the client's whatever it says, or no body at all.
    Content,
}

impl Expected {
    pub(crate) fn of(call: &Call) -> Self {
        let is_native = call.surface == Surface::Native;
        let is_content =
            call.path.starts_with("download/") || call.query.split('&').any(|pair| pair == "alt=media");
        if call.method == Method::HEAD || is_content {
            Self::Content
        } else if is_native && interactions::has_path(&call.path) {
            if call.kind == Kind::Create && call.path.ends_with("/interactions") {
                Self::Interaction
            } else {
                Self::KnownInteraction
            }
        } else if call.kind == Kind::Other && call.method == Method::POST && !call.model.as_str().is_empty() {
            let path = call.path.as_str();
            let embeds = ["embeddings", ":embedContent", ":batchEmbedContents"];
            if embeds.iter().any(|name| path.ends_with(name)) { Self::Embeddings } else { Self::Result }
        } else if call.kind != Kind::Generate {
            Self::Other
        } else if is_native && call.stream {
            Self::Elements
        } else {
            Self::Answer
        }
    }
}

impl Expected {
    /// Whether it tells of tokens that were spent for it, and not before.
    pub(crate) fn spends(self) -> bool {
        match self {
            Self::Answer | Self::Elements | Self::Interaction | Self::Embeddings | Self::Result => true,
            Self::KnownInteraction | Self::Other | Self::Content => false,
        }
    }

    /// How little may come.
    fn least(self) -> Least {
        match self {
            Self::Answer | Self::Elements => Least::Answer,
            Self::Interaction | Self::Embeddings => Least::Fields,
            Self::Result => Least::Json,
            Self::KnownInteraction | Self::Other | Self::Content => Least::Nothing,
        }
    }
}

/// Reads what is needed. The first byte has to come before `deadline`; `idle` bounds every wait for more.
pub(crate) async fn read(
    answer: http::Response<Incoming>,
    expected: Expected,
    deadline: Mono,
    idle: Duration,
) -> Result<Answer, Box<Failed>> {
    let (head, body) = answer.into_parts();
    let mut reader = Reader { body: Some(body), read: BytesMut::new(), first: Bytes::new(), deadline, idle };
    if head.status.is_client_error() || head.status.is_server_error() {
        return Err(failed(head.status, &head.headers, reader).await);
    }
    let form = reader.begin(expected, &head.headers).await?;
    let (begun, rest) = reader.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, form, begun, rest })
}

async fn failed(status: StatusCode, headers: &HeaderMap, mut reader: Reader) -> Box<Failed> {
    // What cannot be read of an error does not make it another one, and another key may be waiting for its turn.
    let read = async { while reader.len() <= MAX_ERROR_BODY && reader.more().await.unwrap_or(false) {} };
    let _ = tokio::time::timeout(ERROR_BODY, read).await;
    let (bytes, _) = reader.into_parts();
    let gzip = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding == "gzip");
    let body = if gzip { ErrorBody::parse(&gunzip(&bytes)) } else { ErrorBody::parse(&bytes) };
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let outcome =
        classify(status, seconds.map(|seconds: u64| Duration::from_secs(seconds.min(86_400))), &body);
    Box::new(Failed { outcome, status, body })
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(bytes).take(MAX_ERROR_BODY as u64);
    // A damaged body is worth what could be read of it.
    let _ = decoder.read_to_end(&mut plain);
    plain
}

/// A body that is being read.
struct Reader {
    body: Option<Incoming>,
    /// The first frame alone needs no copy.
    first: Bytes,
    read: BytesMut,
    deadline: Mono,
    idle: Duration,
}

impl Reader {
    fn bytes(&self) -> &[u8] {
        if self.read.is_empty() { &self.first } else { &self.read }
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Reads one more frame; false at the end.
    async fn more(&mut self) -> Result<bool, Cause> {
        let (until, late) = match self.len() {
            0 => (clock::instant(self.deadline), Cause::Timeout),
            _ => (Instant::now() + self.idle, Cause::Truncated),
        };
        let Some(body) = &mut self.body else { return Ok(false) };
        loop {
            let frame = tokio::time::timeout_at(until, body.frame()).await.map_err(|_| late)?;
            match frame {
                None => {
                    self.body = None;
                    return Ok(false);
                }
                Some(Err(_)) => return Err(Cause::Truncated),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if self.first.is_empty() && self.read.is_empty() {
                        self.first = data;
                    } else {
                        if self.read.is_empty() {
                            self.read.extend_from_slice(&self.first);
                        }
                        self.read.extend_from_slice(&data);
                    }
                    return Ok(true);
                }
            }
        }
    }

    async fn more_or_fail(&mut self) -> Result<bool, Box<Failed>> {
        let began = self.len() > 0;
        self.more().await.map_err(|cause| {
            let is_reset = !began && cause != Cause::Timeout;
            Failed::without_answer(if is_reset { Cause::Reset } else { cause })
        })
    }

    fn into_parts(self) -> (Bytes, Option<Incoming>) {
        let read = if self.read.is_empty() { self.first } else { self.read.freeze() };
        (read, self.body)
    }

    /// Reads as far as the answer's form needs.
    async fn begin(&mut self, expected: Expected, headers: &HeaderMap) -> Result<Form, Box<Failed>> {
        let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let are_events = kind.starts_with(b"text/event-stream");
        let least = expected.least();
        match expected {
            Expected::Content => Ok(Form::Bytes),
            _ if headers.contains_key(CONTENT_ENCODING) => Ok(Form::Bytes),
            Expected::Answer | Expected::Elements if are_events => {
                self.first_pieces(event_len, judge::event, least).await.map(|()| Form::Events)
            }
            Expected::Interaction | Expected::KnownInteraction if are_events => {
                self.first_pieces(event_len, judge::event, least).await.map(|()| Form::Interaction)
            }
            Expected::Elements => {
                self.first_pieces(array::element_len, judge::element, least).await.map(|()| Form::Array)
            }
            _ if kind.starts_with(b"application/json") => self.plain(least).await.map(|()| Form::Bytes),
            _ => Ok(Form::Bytes),
        }
    }

    /// A plain JSON answer: all of it if it is small.
    async fn plain(&mut self, least: Least) -> Result<(), Box<Failed>> {
        while self.len() < HELD && self.more_or_fail().await? {}
        if self.body.is_none() { judge::plain(self.bytes(), least) } else { Ok(()) }
    }

    /// The first events or elements of a stream: up to one that is an answer.
    async fn first_pieces(
        &mut self,
        piece_len: fn(&[u8]) -> Option<usize>,
        judge: fn(&[u8]) -> Judged,
        least: Least,
    ) -> Result<(), Box<Failed>> {
        let mut looked = 0;
        loop {
            while let Some(len) = piece_len(&self.bytes()[looked..]) {
                match judge(&self.bytes()[looked..looked + len]) {
                    Judged::Answer | Judged::Half => return Ok(()),
                    Judged::Error(body) => return Err(inside_success(*body)),
                    Judged::Nothing => looked += len,
                }
            }
            if self.len() > FIRST_EVENTS {
                return Ok(());
            }
            if self.more_or_fail().await? {
                continue;
            }
            // A tail that is no piece may be an error in plain JSON.
            let tail = &self.bytes()[looked..];
            let body = ErrorBody::parse(tail.trim_ascii());
            if body.is_error() {
                return Err(inside_success(body));
            }
            return match judge(tail) {
                Judged::Half => Err(Failed::without_answer(Cause::Truncated)),
                Judged::Nothing if least > Least::Nothing => Err(Failed::without_answer(Cause::EmptyAnswer)),
                _ => Ok(()),
            };
        }
    }
}

/// An error that came with a 200: its own code is its status.
pub(crate) fn inside_success(body: ErrorBody) -> Box<Failed> {
    let code = body.details.as_ref().and_then(|error| error.get("code")).and_then(Value::as_u64);
    let status = code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let status = status.filter(|status| status.as_u16() >= 400).or_else(|| interactions::status_of(&body));
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    Box::new(Failed { outcome: classify(status, None, &body), status, body })
}

/// The length of the first event, its blank line included.
fn event_len(bytes: &[u8]) -> Option<usize> {
    let lf = memchr::memmem::find(bytes, b"\n\n").map(|at| at + 2);
    let crlf = memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4);
    match (lf, crlf) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
