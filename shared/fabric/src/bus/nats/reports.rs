//! Reads the reports for a leader, from its cursor on.
//!
//! An ephemeral consumer without acks hands them out in order; a gap in what it hands out, silence while there is
//! more, or any error begins anew after the last report that was read. The stream's identity is looked at each time:
//! positions mean nothing in another stream. Where that is in doubt, the stream is looked up again as for a new leader,
//! which hears where it stands.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt as _;
use keyfleet_core::message::{Record, Report};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::link::{LinkHealth, ROUND_TRIP};
use super::{Nats, stream, traces};
use crate::bus::{Position, Told, Unreachable};

/// Reports that are asked for at once.
const BATCH: usize = 128;
/// Silence after which the stream is looked at.
const QUIET: Duration = Duration::from_secs(2);
/// Waits between attempts to read: from this, doubled, up to [`QUIET`].
const AGAIN: Duration = Duration::from_millis(50);
/// The server forgets a consumer that nobody reads from for so long.
const FORGET: Duration = Duration::from_secs(30);

pub(super) struct Reader {
    pub(super) nats: Nats,
    /// The stream's identity.
    pub(super) stream: String,
    /// Of the last report that was read.
    pub(super) position: u64,
    /// How often the connection had come back when the position was found out.
    pub(super) resyncs: u64,
    pub(super) tell: mpsc::Sender<Told>,
}

/// Why reading ended.
enum End {
    /// Reading may go on after the last position.
    Again,
    /// Whether it may has to be found out.
    Unsure,
    /// Nobody listens.
    Over,
}

impl Reader {
    pub(super) async fn run(mut self) {
        let mut health = self.nats.0.bulk.health();
        let mut pause = AGAIN;
        loop {
            let before = self.position;
            match self.read(&mut health).await {
                End::Over => return,
                End::Unsure => match self.find().await {
                    Ok(position) => {
                        if self.tell.send(Told::Reconnected(position)).await.is_err() {
                            return;
                        }
                        pause = AGAIN;
                        continue;
                    }
                    Err(error) => tracing::debug!(%error, "reports cannot be read"),
                },
                End::Again => {}
            }
            self.nats.0.rebuilds.fetch_add(1, Ordering::Relaxed);
            pause = if self.position > before { AGAIN } else { (pause * 2).min(QUIET) };
            sleep(pause).await;
        }
    }

    /// Finds the stream, or makes it, and where reading goes on in it.
    async fn find(&mut self) -> Result<Position, Unreachable> {
        let inner = &self.nats.0;
        let resyncs = inner.bulk.health().borrow().resyncs;
        let position = stream::position(&stream::ensure(inner).await?);
        inner.saw(position.last, None);
        self.position = begin(&position, &self.stream, self.position);
        self.stream.clone_from(&position.stream);
        self.resyncs = resyncs;
        Ok(position)
    }

    async fn read(&mut self, health: &mut watch::Receiver<LinkHealth>) -> End {
        match self.last().await {
            Ok(Some(_)) => {}
            Ok(None) => return End::Unsure,
            Err(end) => return end,
        }
        let Ok(Some(mut messages)) = timeout(4 * ROUND_TRIP, self.consume()).await else {
            return self.unless_reconnected(health);
        };
        let mut delivered = 0;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(Ok(message)) = message else { return self.unless_reconnected(health) };
                    heard = Instant::now();
                    delivered += 1;
                    if let Err(end) = self.pass_on(&message, delivered).await {
                        return end;
                    }
                }
                changed = health.changed() => {
                    if changed.is_err() {
                        return End::Over;
                    }
                    if health.borrow_and_update().resyncs != self.resyncs {
                        return End::Unsure;
                    }
                }
                () = sleep_until(heard + QUIET) => {
                    match self.last().await {
                        Ok(Some(last)) if last == self.position => heard = Instant::now(),
                        Ok(Some(_)) => return End::Again,
                        Ok(None) => return End::Unsure,
                        Err(end) => return end,
                    }
                }
            }
        }
    }

    fn unless_reconnected(&self, health: &watch::Receiver<LinkHealth>) -> End {
        if health.borrow().resyncs == self.resyncs { End::Again } else { End::Unsure }
    }

    /// The position of the stream's last report; `None` if it is another stream, or has forgotten what was read, or
    /// what was to be read next.
    async fn last(&self) -> Result<Option<u64>, End> {
        let inner = &self.nats.0;
        let Ok(info) = stream::look(&inner.bulk, &inner.subjects.stream).await else {
            return Err(self.unless_reconnected(&inner.bulk.health()));
        };
        let Some(now) = info.as_ref().map(stream::position).filter(|now| now.stream == self.stream) else {
            return Ok(None);
        };
        inner.saw(now.last, None);
        let is_whole = now.last >= self.position && now.before <= self.position;
        Ok(is_whole.then_some(now.last))
    }

    async fn consume(&self) -> Option<pull::Stream> {
        let inner = &self.nats.0;
        let mut context = jetstream::new(inner.bulk.client().clone());
        context.set_timeout(2 * ROUND_TRIP);
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.position + 1 },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGET,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer: jetstream::consumer::PullConsumer =
            context.create_consumer_on_stream(config, inner.subjects.stream.as_str()).await.ok()?;
        consumer.stream().max_messages_per_batch(BATCH).heartbeat(ROUND_TRIP).messages().await.ok()
    }

    async fn pass_on(&mut self, message: &Message, delivered: u64) -> Result<(), End> {
        let Ok(info) = message.info() else { return Err(End::Again) };
        let position = info.stream_sequence;
        if info.consumer_sequence != delivered || position <= self.position {
            return Err(End::Again);
        }
        self.position = position;
        let stored = Duration::from_nanos(u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(0));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.nats.0.saw(position + info.pending, Some(now.saturating_sub(stored)));
        let told = match self.nats.read_known::<Report, Record>(message, "/body/records") {
            Some(report) => {
                let report = Report { traces: traces::of(message), ..report };
                Told::Report { report, position }
            }
            None => Told::Unread { position },
        };
        self.tell.send(told).await.map_err(|_| End::Over)
    }
}

/// After which position reading goes on, where it ended at `cursor` of the stream called `stream`.
pub(super) fn begin(now: &Position, stream: &str, cursor: u64) -> u64 {
    let cursor = if stream == now.stream { cursor.min(now.last) } else { 0 };
    cursor.max(now.before)
}
