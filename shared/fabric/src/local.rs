//! The fabric of one process: bounded channels, no server.
//!
//! It is no stronger than a network: a report may be refused when the queue is full, a slow reader of deltas may
//! miss some and has to fetch a snapshot, and either side may be gone.

use std::sync::Arc;

use keyfleet_core::id::KeyId;
use keyfleet_core::message::{Delta, Report, Snapshot};
use tokio::sync::{broadcast, mpsc, oneshot};

/// Reports that may wait for the coordinator; beyond it they are refused, and the sender keeps them.
const REPORTS: usize = 1_024;
/// Deltas that a gateway may lag behind before it has to resync.
const DELTAS: usize = 1_024;

/// What reaches the coordinator.
#[derive(Debug)]
pub enum Request {
    /// What a replica saw.
    Report(Report),
    /// Everything that holds, please.
    Snapshot(oneshot::Sender<Snapshot>),
    /// An operator wants this key looked at now.
    Recheck(KeyId),
}

/// The gateway's end.
#[derive(Debug, Clone)]
pub struct GatewayEnd {
    requests: mpsc::Sender<Request>,
    deltas: broadcast::Sender<Arc<Delta>>,
}

/// The coordinator's end.
#[derive(Debug)]
pub struct CoordinatorEnd {
    requests: mpsc::Receiver<Request>,
    deltas: broadcast::Sender<Arc<Delta>>,
}

/// A gateway's subscription to decisions.
#[derive(Debug)]
pub struct Deltas(broadcast::Receiver<Arc<Delta>>);

/// Why a message did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The queue is full: try again later.
    #[error("the coordinator's queue is full")]
    Full,
    /// The other side is gone.
    #[error("the coordinator is gone")]
    Gone,
}

/// Both ends of a new fabric.
pub fn fabric() -> (GatewayEnd, CoordinatorEnd) {
    let (send, requests) = mpsc::channel(REPORTS);
    let (deltas, _) = broadcast::channel(DELTAS);
    (GatewayEnd { requests: send, deltas: deltas.clone() }, CoordinatorEnd { requests, deltas })
}

impl GatewayEnd {
    /// Hands a report over; gives it back if there is no room.
    pub fn report(&self, report: Report) -> Result<(), (Unreachable, Report)> {
        match self.requests.try_reserve() {
            Ok(place) => {
                place.send(Request::Report(report));
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => Err((Unreachable::Full, report)),
            Err(mpsc::error::TrySendError::Closed(())) => Err((Unreachable::Gone, report)),
        }
    }

    /// Subscribes to decisions from now on. Subscribe first, then fetch the snapshot.
    pub fn deltas(&self) -> Deltas {
        Deltas(self.deltas.subscribe())
    }

    /// Everything that holds.
    pub async fn snapshot(&self) -> Result<Snapshot, Unreachable> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Snapshot(reply)).await.map_err(|_| Unreachable::Gone)?;
        answer.await.map_err(|_| Unreachable::Gone)
    }

    /// Asks for a key to be looked at.
    pub fn recheck(&self, key: KeyId) -> Result<(), Unreachable> {
        self.requests.try_send(Request::Recheck(key)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unreachable::Full,
            mpsc::error::TrySendError::Closed(_) => Unreachable::Gone,
        })
    }
}

impl CoordinatorEnd {
    /// The next message; `None` when every gateway is gone.
    pub async fn next(&mut self) -> Option<Request> {
        self.requests.recv().await
    }

    /// What is waiting already, without waiting for more.
    pub fn try_next(&mut self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    /// Spreads decisions. Nobody listening is no error.
    pub fn publish(&self, delta: Delta) {
        let _ = self.deltas.send(Arc::new(delta));
    }
}

/// What a subscription yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The next decisions that arrived.
    Delta(Arc<Delta>),
    /// Some were lost: fetch a snapshot.
    Missed,
    /// The coordinator is gone.
    Gone,
}

impl Deltas {
    /// Waits for news.
    pub async fn next(&mut self) -> News {
        match self.0.recv().await {
            Ok(delta) => News::Delta(delta),
            Err(broadcast::error::RecvError::Lagged(_)) => News::Missed,
            Err(broadcast::error::RecvError::Closed) => News::Gone,
        }
    }
}
