//! The bus over NATS: what has to arrive at once goes by core NATS, what must not be lost by `JetStream`.
//!
//! A process has two connections, so that reports in bulk do not delay what is urgent: *control* carries hints,
//! deltas, beats and questions, *bulk* the reports. Nothing here is trusted to arrive: deltas carry the revision that
//! they follow and beats the one reached, reports are counted by whoever sends them, and every reconnection is told.
//! Reports are read with an ephemeral consumer from the leader's own cursor, never with a shared durable one: that
//! would hand a paused leader's share to nobody.
//!
//! A user of these subjects has to be allowed to publish and subscribe to `rl.v1.>` (below the prefix) and
//! `_INBOX.>`, and to publish to `$JS.API.>` where it leads.

mod gateway;
mod leader;
mod link;
mod options;
mod outbox;
mod replies;
mod reports;
mod stream;
mod terms;
mod traces;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub use gateway::NatsGateway;
pub use leader::NatsLeader;
pub use link::LinkHealth;
pub use options::{Login, NatsOptions, NatsTls, OptionsError, StreamLimits};
pub use terms::NatsWitness;

use link::Link;
use outbox::Outbox;
use wire::Subjects;

/// The connections of one process. Cheap to clone; the last clone closes them.
#[derive(Clone)]
pub struct Nats(Arc<Inner>);

struct Inner {
    control: Link,
    bulk: Link,
    outbox: Outbox,
    subjects: Subjects,
    partition: u32,
    ask_timeout: Duration,
    report_timeout: Duration,
    limits: StreamLimits,
    skipped: AtomicU64,
    rebuilds: AtomicU64,
    /// What is known of the stream that this process reads.
    tail: Mutex<Option<Tail>>,
    /// How the stream differs from what would have been created.
    differs: Mutex<Option<String>>,
}

/// How the stream of reports was when a leader of this process last looked at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The position of its last report.
    pub last: u64,
    /// How long the stream had held the report that was read last, by the server's clock and this machine's.
    pub age: Duration,
}

/// How the bus is.
#[derive(Debug, Clone)]
pub struct NatsHealth {
    /// The connection for what is urgent.
    pub control: LinkHealth,
    /// The connection for reports.
    pub bulk: LinkHealth,
    /// The stream that this process reads, if its leader does.
    pub tail: Option<Tail>,
    /// Messages that were of a newer version or nothing of ours, in part or as a whole.
    pub skipped: u64,
    /// Hints, deltas, beats and answers that were dropped on this side.
    pub unsent: u64,
    /// How often reading reports had to begin again.
    pub rebuilds: u64,
    /// How the stream differs from what would have been created, if it does.
    pub stream_differs: Option<String>,
}

impl Nats {
    /// Begins to connect, and goes on until it is dropped; the servers need not be there. Only the options can be
    /// wrong.
    pub async fn connect(options: NatsOptions) -> Result<Self, OptionsError> {
        let prefix = options::prefix(&options)?;
        let (servers, login) = options::servers(&options)?;
        let subjects = Subjects::new(&prefix, options.partition.number);
        let open = async |purpose| {
            let connect = options::connect_options(&options, &login, purpose).await?;
            Link::open(servers.clone(), connect, subjects.nobody.clone()).await
        };
        let (control, bulk) = (open("control").await?, open("bulk").await?);
        let outbox = Outbox::new(control.client().clone());
        Ok(Self(Arc::new(Inner {
            control,
            bulk,
            outbox,
            subjects,
            partition: options.partition.number,
            ask_timeout: options.ask_timeout,
            report_timeout: options.report_timeout,
            limits: options.stream,
            skipped: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            tail: Mutex::default(),
            differs: Mutex::default(),
        })))
    }

    /// A gateway's side.
    pub fn gateway(&self) -> NatsGateway {
        NatsGateway(self.clone())
    }

    /// A leader's side; it does not lead yet.
    pub fn leader(&self) -> NatsLeader {
        NatsLeader::new(self.clone())
    }

    /// What remembers who led last.
    pub fn witness(&self) -> NatsWitness {
        NatsWitness(self.clone())
    }

    /// Waits until both connections are up, but not for long.
    pub async fn ready(&self) -> Result<(), super::Unreachable> {
        self.0.control.ready().await?;
        self.0.bulk.ready().await
    }

    /// How it is now.
    pub fn health(&self) -> NatsHealth {
        let inner = &self.0;
        NatsHealth {
            control: inner.control.health().borrow().clone(),
            bulk: inner.bulk.health().borrow().clone(),
            tail: *inner.tail.lock(),
            skipped: inner.skipped.load(Ordering::Relaxed),
            unsent: inner.outbox.unsent(),
            rebuilds: inner.rebuilds.load(Ordering::Relaxed),
            stream_differs: inner.differs.lock().clone(),
        }
    }
}

impl Inner {
    /// The stream ends here; `age` is that of a report that was read.
    fn saw(&self, last: u64, age: Option<Duration>) {
        let mut tail = self.tail.lock();
        let age = age.or(tail.map(|tail| tail.age)).unwrap_or_default();
        *tail = Some(Tail { last, age });
    }
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats").field("health", &self.health()).finish_non_exhaustive()
    }
}
