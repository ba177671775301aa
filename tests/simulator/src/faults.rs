//! What a rule does to an answer that would have been good.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};

use crate::brotli::Encoder;
use crate::chance::Chance;
use crate::compat;
use crate::errors::{Dialect, Failure};
use crate::family::Mention;
use crate::reply::{FOREVER, Reply, Step, length};
use crate::route::Surface;
use crate::rule::Action;

/// Beyond this, bytes go out together even when each should go alone.
const SINGLE_BYTES: usize = 65_536;

/// The answer of an action that needs nothing of the real one, if it is such an action.
pub(crate) fn instead(
    action: &Action,
    of: Mention<'_>,
    dialect: Dialect,
    chance: &mut Chance,
) -> Option<Reply> {
    match action {
        Action::Status { status, body, headers, content_type } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut reply = Reply::new(status, "application/json; charset=UTF-8", Bytes::from(body.clone()));
            let named = content_type.iter().map(|value| ("content-type", value.as_str()));
            for (name, value) in headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).chain(named) {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
                {
                    reply.headers.insert(name, value);
                }
            }
            Some(reply)
        }
        Action::Family(family) => Some(Reply::failure(&family.failure(of, chance), dialect)),
        Action::EmptyStream => {
            let mut reply = Reply::new(StatusCode::OK, "text/event-stream", Bytes::new());
            reply.sized = false;
            Some(reply)
        }
        Action::Empty200 => Some(Reply::new(StatusCode::OK, "application/json; charset=UTF-8", Bytes::new())),
        _ => None,
    }
}

/// What a request speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tongue {
    pub(crate) surface: Surface,
    pub(crate) dialect: Dialect,
    /// Whether it accepts Brotli.
    pub(crate) brotli: bool,
}

/// Shapes a good answer.
pub(crate) fn shape(
    action: &Action,
    reply: &mut Reply,
    of: Mention<'_>,
    tongue: Tongue,
    chance: &mut Chance,
) {
    let surface = tongue.surface;
    match action {
        Action::StallBeforeHeaders { ms } => reply.delay = ms.map_or(FOREVER, Duration::from_millis),
        Action::StallMidStream { after_chunks, ms } => {
            announce_length(reply);
            let at = after(&reply.steps, *after_chunks);
            let mut tail = reply.steps.split_off(at);
            reply.steps.push_back(Step::Wait(ms.map_or(FOREVER, Duration::from_millis)));
            if ms.is_some() {
                reply.steps.append(&mut tail);
            } else {
                break_off(reply);
            }
        }
        Action::TruncateAt { bytes } => truncate(reply, *bytes),
        Action::ErrorEvent { after_chunks, family, wrapped } if !reply.sized => {
            let text = event(&family.failure(of, chance), tongue, *wrapped);
            replace_tail(reply, *after_chunks, text);
        }
        Action::RawTail { after_chunks, family } if !reply.sized => {
            let failure = family.failure(of, chance);
            let wrap = if surface == Surface::Compat { Dialect::Array } else { Dialect::Object };
            let text = String::from_utf8_lossy(&failure.render(wrap)).into_owned();
            replace_tail(reply, *after_chunks, text);
        }
        Action::Gzip => gzip(reply),
        Action::Brotli if tongue.brotli => brotli(reply),
        Action::BytePerChunk => single_bytes(reply),
        Action::DuplicateDone if surface == Surface::Compat && !reply.sized => {
            reply.steps.push_back(Step::Data(Bytes::from_static(compat::DONE)));
        }
        _ => {}
    }
}

/// An error as an event of a stream.
pub(crate) fn event(failure: &Failure, tongue: Tongue, wrapped: bool) -> String {
    match (tongue.dialect, tongue.surface) {
        (Dialect::Interactions, _) => {
            format!("event: error\ndata: {}\n\n", failure.render_interaction_event())
        }
        (_, Surface::Compat) => format!("data: {}\n\n", failure.render_inline(wrapped)),
        _ => format!("data: {}\r\n\r\n", failure.render_inline(wrapped)),
    }
}

/// The position behind the `count`th write.
fn after(steps: &VecDeque<Step>, count: usize) -> usize {
    let mut seen = 0;
    let place = steps.iter().position(|step| {
        let full = seen == count;
        seen += usize::from(matches!(step, Step::Data(_)));
        full
    });
    place.unwrap_or(steps.len())
}

fn replace_tail(reply: &mut Reply, after_chunks: usize, text: String) {
    let at = after(&reply.steps, after_chunks);
    reply.steps.truncate(at);
    reply.steps.push_back(Step::Flush);
    reply.steps.push_back(Step::Data(Bytes::from(text)));
}

pub(crate) fn break_off(reply: &mut Reply) {
    reply.steps.push_back(Step::Flush);
    reply.steps.push_back(Step::Abort);
}

/// Announces the length of the whole body, whatever becomes of it.
fn announce_length(reply: &mut Reply) {
    if reply.sized {
        reply.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length(&reply.steps)));
    }
}

fn truncate(reply: &mut Reply, mut bytes: usize) {
    announce_length(reply);
    let mut kept = VecDeque::new();
    for step in reply.steps.drain(..) {
        match step {
            Step::Data(data) if data.len() >= bytes => {
                kept.push_back(Step::Data(data.slice(..bytes)));
                break;
            }
            Step::Data(data) => {
                bytes -= data.len();
                kept.push_back(Step::Data(data));
            }
            other => kept.push_back(other),
        }
    }
    reply.steps = kept;
    break_off(reply);
}

/// Compresses write by write, so that a stream can still be read as it comes.
fn gzip(reply: &mut Reply) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let last = reply.steps.iter().rposition(|step| matches!(step, Step::Data(_)));
    for (at, step) in reply.steps.iter_mut().enumerate() {
        let Step::Data(data) = step else { continue };
        // Writing to memory cannot fail.
        let _ = encoder.write_all(data);
        let _ = if Some(at) == last { encoder.try_finish() } else { encoder.flush() };
        *data = Bytes::from(std::mem::take(encoder.get_mut()));
    }
    reply.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
}

/// The same with Brotli.
fn brotli(reply: &mut Reply) {
    let mut encoder = Encoder::default();
    let last = reply.steps.iter().rposition(|step| matches!(step, Step::Data(_)));
    for (at, step) in reply.steps.iter_mut().enumerate() {
        let Step::Data(data) = step else { continue };
        *data = Bytes::from(encoder.write(data, Some(at) == last));
    }
    reply.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
}

fn single_bytes(reply: &mut Reply) {
    let mut out = VecDeque::new();
    for step in reply.steps.drain(..) {
        match step {
            Step::Data(data) => {
                let alone = data.len().min(SINGLE_BYTES.saturating_sub(out.len() / 2));
                for at in 0..alone {
                    out.push_back(Step::Data(data.slice(at..=at)));
                    out.push_back(Step::Flush);
                }
                if alone < data.len() {
                    out.push_back(Step::Data(data.slice(alone..)));
                }
            }
            other => out.push_back(other),
        }
    }
    reply.steps = out;
}
