//! Who leads: claims the partition, and while it is held, runs the [`Driver`](crate::driver::Driver).

use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::state::Meta;
use keyfleet_core::time::Mono;
use keyfleet_fabric::store::{Claim, Lead, StateStore, StoreError};
use keyfleet_service::clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::{Post, Pulse, Role};

/// For how long a claim holds unless it is renewed.
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// How often it is renewed.
pub(crate) const RENEW: Duration = Duration::from_millis(250);
/// A leader that could not renew for so long stops, well before somebody else may begin.
pub(crate) const STOP_AFTER: Duration = Duration::from_millis(700);
/// How often one that does not lead tries.
const TRY: Duration = Duration::from_millis(100);
/// How often it says that it cannot reach the store.
const COMPLAIN: Duration = Duration::from_secs(30);

/// A claim to lead, and what is known of those who led before.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) store: Arc<dyn StateStore>,
    /// One start of this process.
    pub(crate) holder: ReplicaId,
    /// The highest epoch that was heard of.
    pub(crate) above: u64,
    /// The commit that the store last acknowledged to this process, and its epoch.
    pub(crate) acknowledged: (u64, u64),
    pulse: Arc<watch::Sender<Pulse>>,
    complained: Option<Mono>,
}

/// A term that begins.
#[derive(Debug)]
pub(crate) struct Won {
    pub(crate) meta: Meta,
    /// When the claim was made: it holds from then on.
    pub(crate) claimed: Mono,
}

impl Candidate {
    /// One that leaves in its claim where the API of its post is reached.
    pub(crate) fn new(store: Arc<dyn StateStore>, post: &Post) -> Self {
        let random = uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid();
        let holder = match &post.address {
            Some(address) => format!("{address}/{random}"),
            None => random.to_string(),
        };
        let holder = ReplicaId::new(holder);
        Self { store, holder, above: 0, acknowledged: (0, 0), pulse: post.pulse(), complained: None }
    }

    /// Waits until this process leads; nothing if `stop` comes first.
    pub(crate) async fn win(&mut self, stop: &CancellationToken) -> Option<Won> {
        loop {
            let claimed = clock::mono();
            let claim =
                Claim { holder: self.holder.clone(), ttl: TTL, epoch: 0, above: self.above, clock: None };
            let lead = self.store.lead(&claim).await;
            self.show(&lead);
            match lead {
                Ok(Lead::Mine(meta)) => return Some(Won { meta, claimed }),
                Ok(Lead::Theirs { epoch, .. }) => self.above = self.above.max(epoch),
                Ok(Lead::Nobody) => {}
                Err(error) => self.complain(&error),
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(TRY) => {}
            }
        }
    }

    /// Gives the lead up, so that another need not wait.
    pub(crate) async fn resign(&self, epoch: u64) {
        let claim = Claim { holder: self.holder.clone(), ttl: Duration::ZERO, epoch, above: 0, clock: None };
        if let Err(error) = self.store.lead(&claim).await {
            tracing::debug!(%error, "the lead could not be given up: it lapses");
        }
    }

    /// Shows who leads. While the store does not answer, nobody is known to.
    fn show(&self, lead: &Result<Lead, StoreError>) {
        self.pulse.send_if_modified(|pulse| {
            let before = pulse.clone();
            pulse.store_up = lead.is_ok();
            pulse.role = match lead {
                Ok(Lead::Theirs { holder, epoch, .. }) => {
                    pulse.epoch = *epoch;
                    Role::Standby(holder.clone())
                }
                _ => Role::Unknown,
            };
            *pulse != before
        });
    }

    fn complain(&mut self, error: &StoreError) {
        let now = clock::mono();
        if self.complained.is_none_or(|at| now.since(at) >= COMPLAIN) {
            self.complained = Some(now);
            tracing::warn!(%error, "nobody can lead: no new leases and no new decisions until the store answers");
        }
    }
}
