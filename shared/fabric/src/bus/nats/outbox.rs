//! What is published without an answer. Whoever publishes never waits: the client would keep some thousand messages
//! while it is cut off, send them when they are old, and block beyond that. So they queue here, and only as many go to
//! the client as it has just proved to take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::link::connected;
use crate::bus::Unreachable;

/// Messages that may wait.
const QUEUE: usize = 1_024;
/// How many go to the client before it has written them out.
const BATCH: usize = 64;
/// Hints, beats and answers that waited longer say nothing true any more.
const FRESH: Duration = Duration::from_secs(1);

/// What becomes old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// Nothing.
    Forever,
    /// It holds for a second.
    Briefly,
}

struct Letter {
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
    lasts: Lasts,
    since: Instant,
}

impl Letter {
    fn stale(&self, now: Instant) -> bool {
        self.lasts == Lasts::Briefly && now.saturating_duration_since(self.since) > FRESH
    }

    async fn post(self, client: &Client) -> Result<(), PublishError> {
        if self.headers.is_empty() {
            return client.publish(self.subject, self.payload).await;
        }
        client.publish_with_headers(self.subject, self.headers, self.payload).await
    }
}

pub(super) struct Outbox {
    queue: mpsc::Sender<Letter>,
    unsent: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Outbox {
    pub(super) fn new(client: Client) -> Self {
        let (queue, letters) = mpsc::channel(QUEUE);
        let unsent = Arc::new(AtomicU64::new(0));
        let task = AbortOnDropHandle::new(tokio::spawn(send(client, letters, Arc::clone(&unsent))));
        Self { queue, unsent, _task: task }
    }

    pub(super) fn put(
        &self,
        subject: impl Into<Subject>,
        headers: HeaderMap,
        payload: Bytes,
        lasts: Lasts,
    ) -> Result<(), Unreachable> {
        let letter = Letter { subject: subject.into(), headers, payload, lasts, since: Instant::now() };
        self.queue.try_send(letter).map_err(|error| {
            self.unsent.fetch_add(1, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => Unreachable::Full,
                mpsc::error::TrySendError::Closed(_) => Unreachable::Gone,
            }
        })
    }

    /// How many were dropped because they were too many or too old, or the connection was lost meanwhile.
    pub(super) fn unsent(&self) -> u64 {
        self.unsent.load(Ordering::Relaxed)
    }
}

async fn send(client: Client, mut letters: mpsc::Receiver<Letter>, unsent: Arc<AtomicU64>) {
    let mut batch = Vec::with_capacity(BATCH);
    while letters.recv_many(&mut batch, BATCH).await > 0 {
        for letter in batch.drain(..) {
            let stale = letter.stale(Instant::now());
            if stale || !connected(&client) || letter.post(&client).await.is_err() {
                unsent.fetch_add(1, Ordering::Relaxed);
            }
        }
        if client.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hints_become_stale() {
        let letter = |lasts| Letter {
            subject: "s".into(),
            headers: HeaderMap::new(),
            payload: Bytes::new(),
            lasts,
            since: Instant::now(),
        };
        let (hint, delta) = (letter(Lasts::Briefly), letter(Lasts::Forever));
        assert!(!hint.stale(hint.since + FRESH));
        assert!(hint.stale(hint.since + FRESH + Duration::from_millis(1)));
        assert!(!delta.stale(delta.since + 100 * FRESH));
    }
}
