//! The coordinator: folds what gateways report into decisions that hold for all of them, and grants leases on quota.
//!
//! Any number may run; the one that holds the claim in the store leads ([`leadership`](self)). For a term, its driver
//! feeds the [`Ledger`](keyfleet_core::ledger::Ledger) what arrives, commits what that changes under the claim's
//! fence, and only then spreads decisions and hands out leases. A prober asks the upstream whether keys work.
//!
//! What it shows of itself, and what operators ask of it, goes over the desk of [`status`]; the program serves that as
//! HTTP. For a scraper there are [`metrics`].
//!
//! Decisions are in `keyfleet_core`; here are only messages, clocks and the store. What all of it costs, and at what size
//! it would cost too much, is told in [`cost`].

#[doc = include_str!("cost.md")]
pub mod cost {}
pub mod alerts;
mod driver;
mod leadership;
pub mod metrics;
mod probe;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::ledger::{Member, Roster, Saved};
use keyfleet_fabric::bus::LeaderBus;
use keyfleet_fabric::bus::witness::Witness;
use keyfleet_fabric::store::StateStore;
use keyfleet_service::config::{Config, fingerprint};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::driver::{Driver, End};
use crate::leadership::Candidate;
use crate::status::{Post, Role};

/// One that has the claim and cannot lead, since it does not reach NATS perhaps, leaves it to others for so long.
const PAUSE: Duration = Duration::from_millis(500);

/// What a coordinator works with.
#[derive(Debug)]
pub struct Fabric {
    /// The way to gateways.
    pub bus: Box<dyn LeaderBus>,
    /// What remembers who led last.
    pub witness: Arc<dyn Witness>,
    /// What outlives this process.
    pub store: Arc<dyn StateStore>,
    /// What a state file of the first format held.
    pub old: Option<Saved>,
    /// What is stored may lack something that happened.
    pub suspect: bool,
}

/// Runs until `shutdown`; everything is stored when it returns. A return before that is a death that its supervisor
/// has to act on: every gateway or the prober is gone. Whoever has the other side of `post` can ask.
pub async fn run(
    config: watch::Receiver<Arc<Config>>,
    fabric: Fabric,
    post: Post,
    shutdown: CancellationToken,
) {
    let (prober, verdicts) = probe::start(config.clone(), shutdown.clone());
    post.note(|pulse| alerts::begin_counting(pulse, &config.borrow()));
    let Fabric { bus, witness, store, old, suspect } = fabric;
    let candidate = Candidate::new(store, &post);
    let left = Arc::new(watch::Sender::new(alerts::stranded::Left::default()));
    let stranded = alerts::stranded::tell(config.clone(), post.pulse(), left.clone());
    let mut driver = Driver { config, bus, witness, candidate, prober, verdicts, post, left, old, suspect };
    tokio::select! {
        () = lead(&mut driver, &shutdown) => {}
        never = stranded => match never {},
    }
}

async fn lead(driver: &mut Driver, shutdown: &CancellationToken) {
    while let Some(won) = driver.candidate.win(shutdown).await {
        let beating = alerts::heartbeat::beat(driver.config.clone());
        let end = tokio::select! {
            end = driver.reign(won, shutdown) => end,
            never = beating => match never {},
        };
        driver.post.note(|pulse| pulse.role = Role::Unknown);
        match end {
            End::Lost => {}
            End::Unable => drop(tokio::time::timeout(PAUSE, shutdown.cancelled()).await),
            End::Stopped | End::Dead => return,
        }
    }
}

/// The part of a configuration that the ledger decides by.
fn roster(config: &Config) -> Roster {
    let keys = config.groups.iter().flat_map(|group| &group.keys);
    let projects = config.projects.iter();
    Roster {
        keys: keys
            .map(|key| Member {
                key: key.id.clone(),
                project: key.project.clone(),
                fingerprint: fingerprint(key.secret.expose()),
            })
            .collect(),
        billing_accounts: projects
            .filter_map(|(id, project)| Some((id.clone(), project.billing_account.clone()?)))
            .collect(),
        policy: config.failure.blocks(),
        limits: config.rules(),
    }
}
