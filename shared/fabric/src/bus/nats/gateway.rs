//! A gateway's side.

use std::sync::atomic::Ordering;

use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Message, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use keyfleet_core::message::{Answer, Ask, Change, Hint, Report};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::link::{LinkHealth, check_size};
use super::outbox::Lasts;
use super::wire::{self, Word};
use super::{Nats, traces};
use crate::bus::{GatewayBus, Heard, News, Unreachable};

/// A gateway's side of [`Nats`].
#[derive(Debug, Clone)]
pub struct NatsGateway(pub(super) Nats);

#[async_trait]
impl GatewayBus for NatsGateway {
    async fn report(&self, report: &Report) -> Result<(), Unreachable> {
        let nats = &self.0.0;
        let payload = wire::encode(report)?;
        check_size(nats.bulk.client(), &payload)?;
        let mut headers = traces::headers(&report.traces, &payload, nats.bulk.client());
        // The server stores no second report of this name for two minutes; beyond that the leader compares `seq`.
        headers.insert("Nats-Msg-Id", format!("{}/{}/{}", report.replica, nats.partition, report.seq));
        let ack =
            nats.bulk.request(&nats.subjects.event, Some(headers), payload, nats.report_timeout).await?;
        match serde_json::from_slice(&ack.payload) {
            Ok(Response::Ok(PublishAck { .. })) => Ok(()),
            Ok(Response::Err { error }) => Err(Unreachable::Refused(error.to_string())),
            // Somebody else listens to the subject, and no stream does.
            Err(_) => Err(Unreachable::Silent),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, Unreachable> {
        let nats = &self.0.0;
        let payload = wire::encode(&ask)?;
        check_size(nats.control.client(), &payload)?;
        let answer = nats.control.request(&nats.subjects.lease, None, payload, nats.ask_timeout).await?;
        self.0.read(&answer).ok_or(Unreachable::Silent)
    }

    fn hint(&self, hint: &Hint) {
        let nats = &self.0.0;
        if nats.control.check().is_ok()
            && let Ok(payload) = wire::encode(hint)
        {
            let headers = traces::headers(hint.trace.as_slice(), &payload, nats.control.client());
            let _ = nats.outbox.put(nats.subjects.hint.clone(), headers, payload, Lasts::Briefly);
        }
    }

    async fn listen(&self) -> Result<Box<dyn News>, Unreachable> {
        let nats = &self.0.0;
        nats.control.ready().await?;
        let health = nats.control.health();
        let seen = Seen::of(&health.borrow());
        let deltas = nats.control.subscribe(&nats.subjects.delta).await?;
        let hints = nats.control.subscribe(&nats.subjects.hint).await?;
        let resigned = nats.control.subscribe(&nats.subjects.resigned).await?;
        nats.control.settle(&nats.subjects.nobody).await?;
        Ok(Box::new(NatsNews { nats: self.0.clone(), health, seen, deltas, hints, resigned }))
    }
}

impl Nats {
    /// Counts what cannot be read.
    pub(super) fn read<T: DeserializeOwned>(&self, message: &Message) -> Option<T> {
        let body = wire::decode(&message.payload);
        if body.is_none() {
            self.skip(message);
        }
        body
    }

    /// The same, but where only some elements of the list at `list` cannot be read, the others are.
    pub(super) fn read_known<T: DeserializeOwned, E: DeserializeOwned>(
        &self,
        message: &Message,
        list: &str,
    ) -> Option<T> {
        self.read(message).or_else(|| wire::decode_known::<T, E>(&message.payload, list))
    }

    pub(super) fn read_hint(&self, message: &Message) -> Option<Hint> {
        let hint: Hint = self.read(message)?;
        Some(Hint { trace: traces::of(message).into_iter().next(), ..hint })
    }

    fn skip(&self, message: &Message) {
        let skipped = self.0.skipped.fetch_add(1, Ordering::Relaxed) + 1;
        // The first, and then ever more rarely: a stranger may send any number.
        if skipped.is_power_of_two() {
            tracing::warn!(
                skipped,
                subject = %message.subject,
                bytes = message.payload.len(),
                "what another release or a stranger says is not understood, and left out"
            );
        }
    }
}

/// What the connection went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    resyncs: u64,
    slow_drops: u64,
}

impl Seen {
    fn of(health: &LinkHealth) -> Self {
        Self { resyncs: health.resyncs, slow_drops: health.slow_drops }
    }
}

struct NatsNews {
    nats: Nats,
    health: watch::Receiver<LinkHealth>,
    seen: Seen,
    deltas: Subscriber,
    hints: Subscriber,
    resigned: Subscriber,
}

impl std::fmt::Debug for NatsNews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsNews").field("seen", &self.seen).finish_non_exhaustive()
    }
}

#[async_trait]
impl News for NatsNews {
    async fn next(&mut self) -> Heard {
        loop {
            let heard = tokio::select! {
                changed = self.health.changed() => match changed {
                    Err(_) => Some(Heard::Gone),
                    Ok(()) => self.missed(),
                },
                word = self.deltas.next() => match word {
                    None => Some(Heard::Gone),
                    Some(message) => self.nats.read_known::<Word, Change>(&message, "/body/delta/changes").map(|word| match word {
                        Word::Delta(delta) => Heard::Delta(delta),
                        Word::Beat(beat) => Heard::Beat(beat),
                    }),
                },
                hint = self.hints.next() => match hint {
                    None => Some(Heard::Gone),
                    Some(message) => self.nats.read_hint(&message).map(Heard::Hint),
                },
                resigned = self.resigned.next() => Some(resigned.map_or(Heard::Gone, |_| Heard::Resigned)),
            };
            if let Some(heard) = heard {
                return heard;
            }
        }
    }
}

impl NatsNews {
    fn missed(&mut self) -> Option<Heard> {
        let now = Seen::of(&self.health.borrow());
        if now == self.seen {
            return None;
        }
        self.seen = now;
        Some(Heard::Missed)
    }
}
