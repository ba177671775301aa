//! Questions and their answers. The client has requests of its own, but keeps those that are never answered for good;
//! here one is forgotten with its time-out.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, HeaderMap, Message, StatusCode, SubscribeError};
use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::options::OptionsError;
use crate::bus::Unreachable;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// The server knows of nobody who listens.
    Nobody,
    /// Nobody answered in time.
    Late,
    /// The client is closed.
    Closed,
}

impl From<Lack> for Unreachable {
    fn from(lack: Lack) -> Self {
        match lack {
            Lack::Nobody | Lack::Late => Self::Silent,
            Lack::Closed => Self::Gone,
        }
    }
}

/// Those who wait for an answer, by the last word of the subject that it comes to.
pub(super) struct Replies {
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>>>,
}

impl Replies {
    /// With what delivers the answers; it ends with the client.
    pub(super) async fn open(
        client: &Client,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static), OptionsError> {
        let inbox = client.new_inbox();
        let closed = |_: SubscribeError| OptionsError::Client(ConnectErrorKind::Io);
        let mut answers = client.subscribe(format!("{inbox}.*")).await.map_err(closed)?;
        let replies = Arc::new(Self { inbox, next: AtomicU64::new(0), waiting: Mutex::default() });
        let deliver = Arc::clone(&replies);
        Ok((replies, async move {
            while let Some(answer) = answers.next().await {
                deliver.deliver(answer);
            }
        }))
    }

    fn deliver(&self, answer: Message) {
        let number = answer.subject.rsplit('.').next().and_then(|last| last.parse::<u64>().ok());
        if let Some(waiting) = number.and_then(|number| self.waiting.lock().remove(&number)) {
            let _ = waiting.send(answer);
        }
    }

    pub(super) async fn request(
        &self,
        client: &Client,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        within: Duration,
    ) -> Result<Message, Lack> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, answer) = oneshot::channel();
        self.waiting.lock().insert(number, send);
        let _forget = Forget { replies: self, number };
        let (subject, reply) = (subject.to_owned(), format!("{}.{number}", self.inbox));
        let exchange = async {
            // The client blocks here when its own queue is full.
            let sent = match headers {
                Some(headers) => {
                    client.publish_with_reply_and_headers(subject, reply, headers, payload).await
                }
                None => client.publish_with_reply(subject, reply, payload).await,
            };
            sent.map_err(|_| Lack::Closed)?;
            answer.await.map_err(|_| Lack::Closed)
        };
        let answer = timeout(within, exchange).await.unwrap_or(Err(Lack::Late))?;
        if answer.status == Some(StatusCode::NO_RESPONDERS) { Err(Lack::Nobody) } else { Ok(answer) }
    }
}

struct Forget<'a> {
    replies: &'a Replies,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.replies.waiting.lock().remove(&self.number);
    }
}
