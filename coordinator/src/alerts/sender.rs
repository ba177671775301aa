//! Hands messages to receivers: of each receiver one at a time, and one a second. What waits is in the outbox.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use keyfleet_core::alert::delivery::Attempt;
use keyfleet_core::time::Mono;
use keyfleet_service::clock;
use keyfleet_service::config::Receiver;
use tokio::task::JoinSet;

use super::notice::Notice;
use super::receivers::{Clients, Undelivered, deliver};

/// Between two messages to the same receiver, from the beginning of one to that of the next.
const APART: Duration = Duration::from_secs(1);

/// An attempt that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// Of which message of the outbox.
    pub(crate) number: u64,
    pub(crate) receiver: String,
    pub(crate) attempt: Attempt,
}

/// What is under way. Dropping it gives that up: the next leader sends it again.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    clients: Clients,
    under_way: JoinSet<Done>,
    numbers: HashSet<u64>,
    /// Receivers that are busy, or were lately, and since when.
    began: HashMap<String, Mono>,
    busy: HashSet<String>,
}

impl Sender {
    /// Begins to deliver a message, if its receiver has time.
    pub(crate) fn offer(&mut self, number: u64, receiver: &Receiver, notice: impl FnOnce() -> Notice) {
        let now = clock::mono();
        let name = &receiver.name;
        let rests = self.began.get(name).is_some_and(|began| now.since(*began) < APART);
        if rests || self.busy.contains(name) || !self.numbers.insert(number) {
            return;
        }
        self.began.insert(name.clone(), now);
        self.busy.insert(name.clone());
        let client = self.clients.by(receiver.proxy_url.as_ref());
        let (receiver, notice) = (receiver.clone(), notice());
        self.under_way.spawn(async move {
            let delivered = match client {
                Ok(client) => deliver(&client, &receiver, &notice, clock::utc().as_ms()).await,
                Err(why) => Err(Undelivered::Later { after: None, why }),
            };
            let attempt = match delivered {
                Ok(()) => Attempt::Delivered,
                Err(Undelivered::Later { after, why }) => Attempt::Later { after, why },
                Err(Undelivered::Refused { why }) => Attempt::Refused { why },
                Err(Undelivered::Never { why }) => Attempt::Never { why },
            };
            Done { number, receiver: receiver.name, attempt }
        });
    }

    /// Whether anything is under way.
    pub(crate) fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The next attempt that has ended; never, while none is under way. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> Done {
        loop {
            match self.under_way.join_next().await {
                None => std::future::pending().await,
                Some(Ok(done)) => {
                    self.numbers.remove(&done.number);
                    self.busy.remove(&done.receiver);
                    return done;
                }
                Some(Err(error)) => {
                    // Whose it was is not known. What is still under way may then be sent twice, under the same id.
                    tracing::error!(%error, "an attempt to deliver an alert has died");
                    self.numbers.clear();
                    self.busy.clear();
                }
            }
        }
    }
}
