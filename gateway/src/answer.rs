//! The head of an upstream answer, read far enough to know whether it is one.
//!
//! An error status is read and classified. A success is looked into before anything is relayed: Google reports
//! errors inside a 200, and sometimes nothing at all; as long as the client has seen nothing, another attempt is
//! possible. Plain answers of up to [`HELD`] bytes are read to their end for the same reason.

use std::io::Read as _;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};
use keyfleet_core::outcome::{Cause, Outcome, Retry, Scope, classify};
use keyfleet_core::time::Mono;
use keyfleet_service::clock;
use memchr::memmem::Finder;
use serde_json::Value;
use tokio::time::Instant;

use crate::call::{Call, Kind, Surface};

/// Plain answers up to this size are relayed only when they are complete.
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
    pub(crate) rest: Option<reqwest::Body>,
}

/// What passes through, which decides what the relay watches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Events of a model's answer.
    Events,
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
            _ => (StatusCode::BAD_GATEWAY, "The upstream broke the connection off."),
        };
        let body = ErrorBody { message: message.to_owned(), ..ErrorBody::default() };
        Box::new(Self { outcome: cause.outcome(), status, body })
    }

    /// Given up by ourselves: nobody is at fault, and nothing is tried again.
    pub(crate) fn shutting_down() -> Box<Self> {
        let outcome = Outcome { scope: Scope::Client, retry: Retry::Never, ..Cause::Cancelled.outcome() };
        let body = ErrorBody { message: "The gateway is shutting down.".to_owned(), ..ErrorBody::default() };
        Box::new(Self { outcome, status: StatusCode::SERVICE_UNAVAILABLE, body })
    }
}

/// What the call lets expect of its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// A model's answer.
    generated: bool,
    /// A native stream, whose form the query decides.
    native_stream: bool,
    /// No body.
    head_only: bool,
}

impl Expected {
    pub(crate) fn of(call: &Call) -> Self {
        Self {
            generated: call.kind == Kind::Generate,
            native_stream: call.stream && call.surface == Surface::Native,
            head_only: call.method == http::Method::HEAD,
        }
    }
}

/// Reads what is needed. The first byte has to come before `deadline`; `idle` bounds every wait for more.
pub(crate) async fn read(
    answer: reqwest::Response,
    expected: Expected,
    deadline: Mono,
    idle: Duration,
) -> Result<Answer, Box<Failed>> {
    let (head, body) = http::Response::from(answer).into_parts();
    let mut reader = Reader { body: Some(body), read: BytesMut::new(), first: Bytes::new(), deadline, idle };
    if head.status.is_client_error() || head.status.is_server_error() {
        return Err(failed(head.status, &head.headers, reader).await);
    }
    let is = |kind: &str| {
        let value = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.starts_with(kind))
    };
    let opaque = head.headers.contains_key(CONTENT_ENCODING);
    let form = match expected.generated && !opaque {
        true if is("text/event-stream") => Form::Events,
        true if expected.native_stream => Form::Array,
        _ => Form::Bytes,
    };
    if !expected.head_only {
        match form {
            Form::Events => reader.first_events().await?,
            Form::Array => reader.first_element().await?,
            Form::Bytes if is("application/json") && !opaque => reader.plain(expected.generated).await?,
            Form::Bytes => {}
        }
    }
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
    body: Option<reqwest::Body>,
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

    fn into_parts(self) -> (Bytes, Option<reqwest::Body>) {
        let read = if self.read.is_empty() { self.first } else { self.read.freeze() };
        (read, self.body)
    }

    /// A plain JSON answer: all of it if it is small.
    async fn plain(&mut self, generated: bool) -> Result<(), Box<Failed>> {
        while self.len() < HELD && self.more_or_fail().await? {}
        if generated && self.body.is_none() { judge_plain(self.bytes()) } else { Ok(()) }
    }

    /// The first events: up to one that is an answer.
    async fn first_events(&mut self) -> Result<(), Box<Failed>> {
        let mut looked = 0;
        loop {
            while let Some(len) = event_len(&self.bytes()[looked..]) {
                match judge_event(&self.bytes()[looked..looked + len]) {
                    Judged::Answer => return Ok(()),
                    Judged::Error(body) => return Err(inside_success(*body)),
                    Judged::Nothing => looked += len,
                }
            }
            // A tail that is no event is an error in plain JSON.
            if self.len() > FIRST_EVENTS {
                return Ok(());
            }
            if !self.more_or_fail().await? {
                let body = ErrorBody::parse(self.bytes()[looked..].trim_ascii());
                if body.is_error() {
                    return Err(inside_success(body));
                }
                return match judge_event(&self.bytes()[looked..]) {
                    Judged::Answer => Ok(()),
                    _ => Err(Failed::without_answer(Cause::EmptyAnswer)),
                };
            }
        }
    }

    /// The beginning of a JSON array: enough to see that its first element is not an error.
    async fn first_element(&mut self) -> Result<(), Box<Failed>> {
        loop {
            let start: Vec<u8> =
                self.bytes().iter().filter(|b| !b.is_ascii_whitespace()).take(10).copied().collect();
            let may_be_error = b"[{\"error\":".starts_with(&start)
                || b"{\"error\":".starts_with(&start[..start.len().min(9)]);
            if !may_be_error {
                return if start == b"[]" { Err(Failed::without_answer(Cause::EmptyAnswer)) } else { Ok(()) };
            }
            let whole = !self.more_or_fail().await?;
            if whole || self.len() > MAX_ERROR_BODY {
                let body = ErrorBody::parse(self.bytes());
                return Err(if body.is_error() {
                    inside_success(body)
                } else {
                    Failed::without_answer(Cause::EmptyAnswer)
                });
            }
        }
    }
}

/// An error that came with a 200: its own code is its status.
pub(crate) fn inside_success(body: ErrorBody) -> Box<Failed> {
    let code = body.details.as_ref().and_then(|error| error.get("code")).and_then(Value::as_u64);
    let status = code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let status = status.filter(|status| status.as_u16() >= 400).unwrap_or(StatusCode::BAD_GATEWAY);
    Box::new(Failed { outcome: classify(status, None, &body), status, body })
}

enum Judged {
    Answer,
    Error(Box<ErrorBody>),
    /// Neither: comments, or figures without content.
    Nothing,
}

fn judge_event(event: &[u8]) -> Judged {
    let data = event.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"data:"));
    let Some(data) = data.map(<[u8]>::trim_ascii) else { return Judged::Nothing };
    if data == b"[DONE]" {
        return Judged::Nothing;
    }
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return Judged::Answer };
    let body = ErrorBody::parse(data);
    if body.is_error() {
        return Judged::Error(Box::new(body));
    }
    if has_content(&value) { Judged::Answer } else { Judged::Nothing }
}

static ANSWERS: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| ["\"content\"", "\"message\""].map(Finder::new));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"error\""));

fn judge_plain(bytes: &[u8]) -> Result<(), Box<Failed>> {
    if bytes.trim_ascii().is_empty() {
        return Err(Failed::without_answer(Cause::EmptyAnswer));
    }
    // An answer of any length is not worth a parse: errors and empty ones are short.
    if bytes.len() > 4 * 1024 {
        return Ok(());
    }
    let looks_full = ANSWERS.iter().any(|name| name.find(bytes).is_some());
    if looks_full && ERROR.find(bytes).is_none() {
        return Ok(());
    }
    let body = ErrorBody::parse(bytes);
    if body.is_error() {
        return Err(inside_success(body));
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) if !has_content(&value) => Err(Failed::without_answer(Cause::EmptyAnswer)),
        Err(error) if error.is_eof() => Err(Failed::without_answer(Cause::Truncated)),
        _ => Ok(()),
    }
}

/// Whether there is anything in an answer: a candidate, a choice, or the reason why there is none. What is neither
/// surface's answer is not judged.
fn has_content(value: &Value) -> bool {
    let is_filled =
        |name: &str| value.get(name).map(|list| list.as_array().is_some_and(|list| !list.is_empty()));
    if value.get("promptFeedback").is_some() {
        return true;
    }
    match (is_filled("candidates"), is_filled("choices")) {
        (None, None) => {
            value.get("usageMetadata").is_none() && value.as_object().is_none_or(|o| !o.is_empty())
        }
        (candidates, choices) => candidates == Some(true) || choices == Some(true),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_an_answer() {
        for (body, cause) in [
            (r#"{"candidates":[{"finishReason":"MAX_TOKENS"}]}"#, None),
            (r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{}}"#, None),
            (r#"{"choices":[{"message":{"role":"assistant"}}]}"#, None),
            (r#"{"choices":[],"id":""}"#, Some(Cause::EmptyAnswer)),
            (r#"{"candidates":[]}"#, Some(Cause::EmptyAnswer)),
            (r#"{"usageMetadata":{"promptTokenCount":1}}"#, Some(Cause::EmptyAnswer)),
            ("", Some(Cause::EmptyAnswer)),
            ("{}", Some(Cause::EmptyAnswer)),
            (r#"{"candidates":[{"#, Some(Cause::Truncated)),
            (r#"{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}"#, Some(Cause::Overloaded)),
            (
                r#"[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}]"#,
                Some(Cause::BareRateLimit),
            ),
        ] {
            assert_eq!(
                judge_plain(body.as_bytes()).err().map(|failed| failed.outcome.cause),
                cause,
                "{body}"
            );
        }
    }
}
