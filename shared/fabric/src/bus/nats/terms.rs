//! The last term that was begun: a stream that holds one message. Whoever writes it says which one it replaces, so
//! that of two that begin at a time one is told.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{HeaderMap, StatusCode};
use async_trait::async_trait;
use bytes::Bytes;
use keyfleet_core::trust::TermId;

use super::link::ROUND_TRIP;
use super::replies::Lack;
use super::{Inner, Nats, stream, wire};
use crate::bus::Unreachable;
use crate::bus::witness::Witness;

/// How often somebody else may be faster.
const TRIES: u32 = 4;

/// A [`Witness`] in `JetStream`.
#[derive(Debug, Clone)]
pub struct NatsWitness(pub(super) Nats);

#[async_trait]
impl Witness for NatsWitness {
    async fn begin(&self, term: &TermId) -> Result<Option<TermId>, Unreachable> {
        let inner = &self.0.0;
        for _ in 0..TRIES {
            let (before, sequence) = last(inner).await?;
            let is_over = before.as_ref().is_some_and(|before| before.epoch >= term.epoch);
            if is_over || write(inner, term, &sequence).await? {
                return Ok(before);
            }
        }
        Err(Unreachable::Silent)
    }
}

/// The last term, and the number of the message that tells of it. It may come from a server that is behind: then
/// writing fails.
async fn last(inner: &Inner) -> Result<(Option<TermId>, String), Unreachable> {
    let nothing = (None, "0".to_owned());
    inner.bulk.check()?;
    let get = format!("$JS.API.DIRECT.GET.{}.{}", inner.subjects.terms, inner.subjects.term);
    let message = match inner.bulk.exchange(&get, None, Bytes::new(), 2 * ROUND_TRIP).await {
        Ok(message) => message,
        Err(Lack::Nobody) => {
            stream::ensure_terms(inner).await?;
            return Ok(nothing);
        }
        Err(lack) => return Err(lack.into()),
    };
    if message.status == Some(StatusCode::NOT_FOUND) {
        return Ok(nothing);
    }
    let sequence = message.headers.as_ref().and_then(|headers| headers.get("Nats-Sequence"));
    let sequence = sequence.ok_or(Unreachable::Silent)?.as_str().to_owned();
    Ok((wire::decode(&message.payload), sequence))
}

/// False if another message is the last one.
async fn write(inner: &Inner, term: &TermId, replaces: &str) -> Result<bool, Unreachable> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", replaces);
    let payload = wire::encode(term)?;
    let ack = inner.bulk.request(&inner.subjects.term, Some(headers), payload, inner.report_timeout).await?;
    match serde_json::from_slice(&ack.payload) {
        Ok(Response::Ok(PublishAck { .. })) => Ok(true),
        Ok(Response::Err { error }) if error.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE => {
            Ok(false)
        }
        Ok(Response::Err { error }) => Err(Unreachable::Refused(error.to_string())),
        Err(_) => Err(Unreachable::Silent),
    }
}
