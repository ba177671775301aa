//! One connection: its state, and questions whose answers come back on it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, ServerAddr, Subscriber};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::options::OptionsError;
use super::replies::{Lack, Replies};
use crate::bus::Unreachable;

/// For how long the server may take to answer that it is there.
pub(super) const ROUND_TRIP: Duration = Duration::from_secs(1);
/// How often the state is compared with the client's own, since the client may drop an event when it has many.
const LOOK: Duration = Duration::from_secs(1);

/// How one connection is.
#[derive(Debug, Clone)]
pub struct LinkHealth {
    /// The server answers.
    pub up: bool,
    /// Since when that is so.
    pub since: Instant,
    /// How often the connection was made.
    pub connects: u64,
    /// After how many of them everything that was subscribed is heard again.
    pub resyncs: u64,
    /// Messages that were lost because their reader was too slow.
    pub slow_drops: u64,
    /// What the server or the client said last about a failure.
    pub last_error: Option<String>,
}

impl LinkHealth {
    fn new() -> Self {
        Self { up: false, since: Instant::now(), connects: 0, resyncs: 0, slow_drops: 0, last_error: None }
    }

    fn set_up(&mut self, up: bool) {
        if self.up != up {
            self.up = up;
            self.since = Instant::now();
        }
    }
}

pub(super) struct Link {
    client: Client,
    health: watch::Receiver<LinkHealth>,
    replies: Arc<Replies>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Link {
    /// Returns at once; the connection is made, and made again, in the background.
    pub(super) async fn open(
        servers: Vec<ServerAddr>,
        options: ConnectOptions,
        nobody: String,
    ) -> Result<Self, OptionsError> {
        let (tell, health) = watch::channel(LinkHealth::new());
        let tell = Arc::new(tell);
        let events = Arc::clone(&tell);
        let client = options
            .event_callback(move |event| {
                note(&events, &event);
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|error| OptionsError::Client(error.kind()))?;
        let (replies, deliver) = Replies::open(&client).await?;
        let deliver = AbortOnDropHandle::new(tokio::spawn(deliver));
        let watched = Watched { client: client.clone(), replies: Arc::clone(&replies), nobody, tell };
        let watch = AbortOnDropHandle::new(tokio::spawn(watched.run()));
        Ok(Self { client, health, replies, _tasks: [deliver, watch] })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn health(&self) -> watch::Receiver<LinkHealth> {
        self.health.clone()
    }

    /// Refuses where the client would keep the message for later.
    pub(super) fn check(&self) -> Result<(), Unreachable> {
        connected(&self.client).then_some(()).ok_or_else(|| self.cut())
    }

    fn cut(&self) -> Unreachable {
        let health = self.health.borrow();
        Unreachable::Cut(health.last_error.clone().unwrap_or_else(|| "no connection".to_owned()))
    }

    /// Waits for the server, but not for long.
    pub(super) async fn ready(&self) -> Result<(), Unreachable> {
        let mut health = self.health.clone();
        match timeout(2 * ROUND_TRIP, health.wait_for(|health| health.up)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.cut()),
        }
    }

    /// Subscribes; the server knows of it after the next [`settle`](Self::settle).
    pub(super) async fn subscribe(&self, subject: &str) -> Result<Subscriber, Unreachable> {
        self.check()?;
        match timeout(ROUND_TRIP, self.client.subscribe(subject.to_owned())).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(_)) => Err(Unreachable::Gone),
            // The client blocks when its own queue is full.
            Err(_) => Err(Unreachable::Full),
        }
    }

    /// Asks, and waits for the first answer. Nobody there is [`Unreachable::Silent`], at once.
    pub(super) async fn request(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        within: Duration,
    ) -> Result<Message, Unreachable> {
        self.check()?;
        Ok(self.exchange(subject, headers, payload, within).await?)
    }

    /// The same, with what exactly is lacking.
    pub(super) async fn exchange(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        within: Duration,
    ) -> Result<Message, Lack> {
        self.replies.request(&self.client, subject, headers, payload, within).await
    }

    /// Returns when the server has taken in everything that was sent before.
    pub(super) async fn settle(&self, nobody: &str) -> Result<(), Unreachable> {
        self.check()?;
        settle(&self.client, &self.replies, nobody).await
    }
}

pub(super) fn connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// Which payloads the server would refuse.
pub(super) fn check_size(client: &Client, payload: &Bytes) -> Result<(), Unreachable> {
    let (size, limit) = (payload.len(), client.max_payload());
    if size > limit {
        return Err(Unreachable::Refused(format!(
            "{size} bytes are more than the server's max_payload of {limit}"
        )));
    }
    Ok(())
}

fn note(tell: &watch::Sender<LinkHealth>, event: &Event) {
    tell.send_modify(|health| match event {
        Event::Disconnected | Event::Closed => health.set_up(false),
        Event::SlowConsumer(_) => health.slow_drops += 1,
        Event::ServerError(error) => health.last_error = Some(error.to_string()),
        Event::ClientError(error) => health.last_error = Some(error.to_string()),
        Event::Connected | Event::LameDuckMode | Event::Draining => {}
    });
}

/// Finds out when the server answers again after a connection was made: only then is every subscription known to it.
struct Watched {
    client: Client,
    replies: Arc<Replies>,
    nobody: String,
    tell: Arc<watch::Sender<LinkHealth>>,
}

impl Watched {
    async fn run(self) {
        let mut events = self.tell.subscribe();
        let mut settled = 0;
        loop {
            events.mark_unchanged();
            let connects = self.client.statistics().connects.load(Ordering::Relaxed);
            if connected(&self.client) {
                if connects != settled && settle(&self.client, &self.replies, &self.nobody).await.is_ok() {
                    settled = connects;
                    self.tell.send_modify(|health| {
                        health.set_up(true);
                        health.connects = connects;
                        health.resyncs += 1;
                        health.last_error = None;
                    });
                }
            } else if self.tell.borrow().up {
                self.tell.send_modify(|health| health.set_up(false));
            }
            let behind = connected(&self.client)
                && settled != self.client.statistics().connects.load(Ordering::Relaxed);
            let pause = if behind { LOOK / 20 } else { LOOK };
            let _ = timeout(pause, events.changed()).await;
        }
    }
}

async fn settle(client: &Client, replies: &Arc<Replies>, nobody: &str) -> Result<(), Unreachable> {
    match replies.request(client, nobody, None, Bytes::new(), ROUND_TRIP).await {
        Ok(_) | Err(Lack::Nobody) => Ok(()),
        Err(lack) => Err(lack.into()),
    }
}
