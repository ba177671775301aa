//! A leader's side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{HeaderMap, Message, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use keyfleet_core::message::{Beat, Delta};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::link::{ROUND_TRIP, check_size};
use super::outbox::Lasts;
use super::reports::{Reader, begin};
use super::wire::{self, Word};
use super::{Nats, stream};
use crate::bus::{Asker, LeaderBus, Position, Told, Unreachable};

/// Reports that were read and wait for the leader.
const READ: usize = 64;

/// A leader's side of [`Nats`].
pub struct NatsLeader {
    nats: Nats,
    leading: Option<Leading>,
}

struct Leading {
    asks: Subscriber,
    hints: Subscriber,
    reports: mpsc::Receiver<Told>,
    /// Whether answers still go out.
    answers: Arc<AtomicBool>,
    _reader: AbortOnDropHandle<()>,
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.answers.store(false, Ordering::Release);
    }
}

impl NatsLeader {
    pub(super) fn new(nats: Nats) -> Self {
        Self { nats, leading: None }
    }

    fn asked(&self, message: &Message, answers: &Arc<AtomicBool>) -> Option<Told> {
        let reply = message.reply.clone()?;
        let ask = self.nats.read(message)?;
        let (nats, answers) = (self.nats.clone(), Arc::clone(answers));
        let asker = Asker::new(move |answer| {
            let inner = &nats.0;
            if answers.load(Ordering::Acquire)
                && inner.control.check().is_ok()
                && let Ok(payload) = wire::encode(&answer)
            {
                let _ = inner.outbox.put(reply, HeaderMap::new(), payload, Lasts::Briefly);
            }
        });
        Some(Told::Ask(ask, asker))
    }

    fn spread(&self, word: &Word, lasts: Lasts) -> Result<(), Unreachable> {
        let inner = &self.nats.0;
        inner.control.check()?;
        let payload = wire::encode(word)?;
        check_size(inner.control.client(), &payload)?;
        inner.outbox.put(inner.subjects.delta.clone(), HeaderMap::new(), payload, lasts)
    }
}

#[async_trait]
impl LeaderBus for NatsLeader {
    async fn lead(&mut self, stream: &str, cursor: u64) -> Result<Position, Unreachable> {
        self.leading = None;
        self.nats.ready().await?;
        let inner = &self.nats.0;
        let resyncs = inner.bulk.health().borrow().resyncs;
        let position = stream::position(&stream::ensure(inner).await?);
        let asks = inner.control.subscribe(&inner.subjects.lease).await?;
        let hints = inner.control.subscribe(&inner.subjects.hint).await?;
        inner.control.settle(&inner.subjects.nobody).await?;
        inner.saw(position.last, None);
        let (tell, reports) = mpsc::channel(READ);
        let reader = Reader {
            nats: self.nats.clone(),
            stream: position.stream.clone(),
            position: begin(&position, stream, cursor),
            resyncs,
            tell,
        };
        let reader = AbortOnDropHandle::new(tokio::spawn(reader.run()));
        let answers = Arc::new(AtomicBool::new(true));
        self.leading = Some(Leading { asks, hints, reports, answers, _reader: reader });
        Ok(position)
    }

    async fn next(&mut self) -> Told {
        loop {
            let Some(leading) = &mut self.leading else { return std::future::pending().await };
            let (message, is_ask) = tokio::select! {
                Some(told) = leading.reports.recv() => return told,
                message = leading.asks.next() => (message, true),
                message = leading.hints.next() => (message, false),
            };
            let Some(message) = message else { return Told::Gone };
            let told = if is_ask {
                let answers = Arc::clone(&leading.answers);
                self.asked(&message, &answers)
            } else {
                self.nats.read_hint(&message).map(Told::Hint)
            };
            if let Some(told) = told {
                return told;
            }
        }
    }

    async fn publish(&self, delta: &Delta) -> Result<(), Unreachable> {
        self.spread(&Word::Delta(Arc::new(delta.clone())), Lasts::Forever)
    }

    async fn beat(&self, beat: Beat) -> Result<(), Unreachable> {
        self.spread(&Word::Beat(beat), Lasts::Briefly)
    }

    async fn resign(&mut self) {
        let Some(mut leading) = self.leading.take() else { return };
        leading.answers.store(false, Ordering::Release);
        let control = &self.nats.0.control;
        let subjects = &self.nats.0.subjects;
        let said = async {
            leading.asks.unsubscribe().await.ok()?;
            leading.hints.unsubscribe().await.ok()?;
            let notice = wire::encode(&()).ok()?;
            control.client().publish(subjects.resigned.clone(), notice).await.ok()?;
            control.settle(&subjects.nobody).await.ok()
        };
        // Whoever does not hear it waits until the lock expires.
        if control.check().is_ok() {
            let _ = timeout(ROUND_TRIP, said).await;
        }
    }
}

impl std::fmt::Debug for NatsLeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsLeader").field("leads", &self.leading.is_some()).finish_non_exhaustive()
    }
}
