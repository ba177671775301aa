//! Who leads: claims the partition, and while it is held, runs the [`Driver`](crate::driver::Driver).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::state::Meta;
use keyfleet_core::time::Mono;
use keyfleet_core::trust::{Mark, TermId};
use keyfleet_fabric::store::{Claim, Lead, StateStore, StoreError};
use keyfleet_service::clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::{self, Post, Pulse, Role};

/// For how long a claim holds unless it is renewed.
pub(crate) const TTL: Duration = Duration::from_secs(1);
/// How often it is renewed.
pub(crate) const RENEW: Duration = Duration::from_millis(250);
/// A leader that could not renew for so long stops, well before somebody else may begin.
pub(crate) const STOP_AFTER: Duration = Duration::from_millis(700);
/// How often one that does not lead tries.
const TRY: Duration = Duration::from_millis(100);
/// A store that was away, and that another server answers for since, is left to the last leader for so long. It is
/// longer than a client takes to connect again.
const HEAD_START: Duration = Duration::from_millis(1_500);
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
    /// The last term of this process that was judged; see [`Found::judged`](keyfleet_core::trust::Found::judged).
    pub(crate) judged: Option<TermId>,
    /// The last commit that the store acknowledged to this process, or that it saw there since.
    pub(crate) known: Mark,
    /// This process was the last to lead, as far as it knows.
    led_last: bool,
    /// The server that answered for the store while another led there.
    server: Option<String>,
    /// The store was away: until then, it is left to the last leader, who can vouch for what it holds.
    yields_until: Option<Mono>,
    pulse: Arc<watch::Sender<Pulse>>,
    complained: Option<Mono>,
}

/// Renews a claim for as long as it is polled. Whoever has lost it finds out when it writes.
pub(crate) async fn hold(store: Arc<dyn StateStore>, claim: Claim) -> Infallible {
    loop {
        tokio::time::sleep(RENEW).await;
        if let Err(error) = store.lead(&claim).await {
            tracing::debug!(%error, "the lead could not be renewed");
        }
    }
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
        Self {
            store,
            holder,
            above: 0,
            judged: None,
            known: Mark::default(),
            led_last: false,
            server: None,
            yields_until: None,
            pulse: post.pulse(),
            complained: None,
        }
    }

    /// Waits until this process leads; nothing if `stop` comes first.
    pub(crate) async fn win(&mut self, stop: &CancellationToken) -> Option<Won> {
        while !stop.is_cancelled() {
            let claimed = clock::mono();
            let yields = self.yields_until.is_some_and(|until| claimed < until);
            let claim = Claim {
                holder: self.holder.clone(),
                // With no time to live, it only looks.
                ttl: if yields { Duration::ZERO } else { TTL },
                epoch: 0,
                above: self.above,
                clock: None,
            };
            let lead = self.store.lead(&claim).await;
            self.show(&lead);
            match lead {
                Ok(Lead::Mine(meta)) => return Some(Won { meta, claimed }),
                Ok(Lead::Theirs { epoch, .. }) => {
                    self.above = self.above.max(epoch);
                    if self.led_last || self.yields_until.is_some() || self.server.is_none() {
                        self.server = self.store.identity().await.ok();
                    }
                    self.led_last = false;
                    self.yields_until = None;
                }
                Ok(Lead::Nobody) if self.yields_until == Some(Mono::FOREVER) => {
                    // The same server can vouch for what it holds, whoever leads next.
                    let answers = self.store.identity().await.ok();
                    let is_same = answers.is_some() && answers == self.server;
                    self.yields_until = (!is_same).then(|| clock::mono().plus(HEAD_START));
                }
                Ok(Lead::Nobody) => {}
                Err(error) => {
                    self.yields_until = (!self.led_last).then_some(Mono::FOREVER);
                    self.complain(&error);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(TRY) => {}
            }
        }
        None
    }

    /// What renews the claim to an epoch that was won.
    pub(crate) fn claim(&self, epoch: u64) -> Claim {
        Claim { holder: self.holder.clone(), ttl: TTL, epoch, above: 0, clock: None }
    }

    /// The name of a term of this process.
    pub(crate) fn term(&self, epoch: u64) -> TermId {
        TermId { epoch, holder: self.holder.clone() }
    }

    /// The store has acknowledged a commit.
    pub(crate) fn acknowledged(&mut self, commit: Mark) {
        self.known = commit;
        self.led_last = true;
    }

    /// Gives the lead up, so that another need not wait.
    pub(crate) async fn resign(&self, epoch: u64) {
        let claim = Claim { holder: self.holder.clone(), ttl: Duration::ZERO, epoch, above: 0, clock: None };
        if let Err(error) = self.store.lead(&claim).await {
            tracing::debug!(%error, "the lead could not be given up: it lapses");
        }
    }

    /// Shows who leads, and says so when it is another one. While the store does not answer, nobody is known to.
    fn show(&self, lead: &Result<Lead, StoreError>) {
        let is_news = self.pulse.send_if_modified(|pulse| {
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
        if is_news && let Ok(Lead::Theirs { holder, epoch, .. }) = lead {
            let leader = status::address(holder).unwrap_or_else(|| holder.as_str());
            tracing::info!(leader, epoch, "standing by: another coordinator leads");
        }
    }

    fn complain(&mut self, error: &StoreError) {
        let now = clock::mono();
        if self.complained.is_none_or(|at| now.since(at) >= COMPLAIN) {
            self.complained = Some(now);
            tracing::warn!(%error, "nobody can lead: no new leases and no new decisions until the store answers");
        }
    }
}

#[cfg(test)]
mod tests;
