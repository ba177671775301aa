//! How gateways and the coordinator reach each other.

use async_trait::async_trait;
use keyfleet_core::message::{Answer, Ask, Beat, Delta, Hint, Report};
use std::sync::Arc;

pub mod local;
pub mod nats;
pub mod witness;

/// A gateway's side.
#[async_trait]
pub trait GatewayBus: Send + Sync + std::fmt::Debug {
    /// Hands a report over; done when it is stored where a crash does not lose it. After an error it may have been
    /// stored or not: the same report, unchanged, is to be sent until it is; nothing is counted twice.
    async fn report(&self, report: &Report) -> Result<(), Unreachable>;

    /// Asks the leader. Its answer comes within a bounded time, or an error.
    async fn ask(&self, ask: Ask) -> Result<Answer, Unreachable>;

    /// Tells every gateway and the leader, at once or never: it is dropped where it would have to wait.
    fn hint(&self, hint: &Hint);

    /// Hears of decisions from now on. When this returns, none that is published later is missed silently.
    async fn listen(&self) -> Result<Box<dyn News>, Unreachable>;
}

/// A gateway's ear.
#[async_trait]
pub trait News: Send + std::fmt::Debug {
    /// The next news. Dropping the future loses none.
    async fn next(&mut self) -> Heard;
}

/// What a gateway hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Decisions.
    Delta(Arc<Delta>),
    /// Where the leader stands.
    Beat(Beat),
    /// What another gateway found; its own come back too and are ignored by whoever reads this.
    Hint(Hint),
    /// Some may have been lost (a reconnection, or this reader was too slow): compare with the store.
    Missed,
    /// A leader resigned: its place is free.
    Resigned,
    /// The other side is gone for good.
    Gone,
}

/// The leader's side.
#[async_trait]
pub trait LeaderBus: Send + std::fmt::Debug {
    /// Begins to hear reports after `cursor` of the stream called `stream`, asks and hints. Where the stream stands now
    /// is returned, and three things in it mean that reports were lost: another name (all of the new stream are heard),
    /// a `before` beyond the cursor (heard from there), and a `last` below it (heard from there; the stream forgot its
    /// end, and its positions are used again).
    async fn lead(&mut self, stream: &str, cursor: u64) -> Result<Position, Unreachable>;

    /// The next message; none before [`lead`](Self::lead) and after [`resign`](Self::resign). Dropping the future loses
    /// none.
    async fn next(&mut self) -> Told;

    /// Spreads decisions, at once or never.
    async fn publish(&self, delta: &Delta) -> Result<(), Unreachable>;

    /// Says where the leader stands, at once or never.
    async fn beat(&self, beat: Beat) -> Result<(), Unreachable>;

    /// Stops leading; says so, so that another need not wait. Answers that are still given go nowhere.
    async fn resign(&mut self);
}

/// Where a stream of reports stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// What tells this stream from one that was made anew under the same name.
    pub stream: String,
    /// Reports up to this position are not there any more.
    pub before: u64,
    /// The position of the last one.
    pub last: u64,
}

/// What a leader hears.
#[derive(Debug)]
pub enum Told {
    /// What a replica saw.
    Report {
        /// The report.
        report: Report,
        /// Its place in the stream; the next one's is higher.
        position: u64,
    },
    /// What stands there cannot be read: a newer release wrote it, or a stranger. It is passed over.
    Unread {
        /// Its place in the stream.
        position: u64,
    },
    /// A question.
    Ask(Ask, Asker),
    /// What a gateway found, ahead of its report.
    Hint(Hint),
    /// The connection was lost and is back, or the stream is another one. Reports go on after the last one that was
    /// told, as if [`lead`](LeaderBus::lead) had been called with it and had returned this; until then asks and hints
    /// went on.
    Reconnected(Position),
    /// The other side is gone for good.
    Gone,
}

/// Takes the answer to one question to whoever asked. Dropping it leaves the question to time out.
pub struct Asker(Box<dyn FnOnce(Answer) + Send>);

impl Asker {
    /// Answers go this way; it must not block.
    pub fn new(way: impl FnOnce(Answer) + Send + 'static) -> Self {
        Self(Box::new(way))
    }

    /// Answers.
    pub fn answer(self, answer: Answer) {
        (self.0)(answer);
    }
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asker")
    }
}

/// Why a message did not get through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The queue is full: try again later.
    #[error("the queue is full")]
    Full,
    /// Nobody answered in time.
    #[error("nobody answers")]
    Silent,
    /// There is no connection.
    #[error("not connected: {0}")]
    Cut(String),
    /// The server refuses it, as it would refuse it again: an operator has to look.
    #[error("refused: {0}")]
    Refused(String),
    /// The other side is gone for good.
    #[error("the other side is gone")]
    Gone,
}
