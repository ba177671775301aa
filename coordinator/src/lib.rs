//! The coordinator: one task that owns the [`Ledger`](keyfleet_core::ledger::Ledger), feeds it what gateways
//! report, and carries out what it decides; and a prober that asks the upstream whether keys work.
//!
//! Decisions are in `keyfleet_core::ledger`; [`driver`](self) only moves messages, time and the state file.

mod driver;
mod probe;

use std::sync::Arc;

use keyfleet_core::ledger::{Member, Roster};
use keyfleet_fabric::file::StateFile;
use keyfleet_fabric::local::CoordinatorEnd;
use keyfleet_service::config::{Config, fingerprint};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Runs until `shutdown`; the state is on disk when it returns.
pub async fn run(
    config: watch::Receiver<Arc<Config>>,
    gateways: CoordinatorEnd,
    state: StateFile,
    shutdown: CancellationToken,
) {
    let (prober, probes) = probe::start(config.clone(), shutdown.clone());
    driver::Driver::new(config, gateways, state, prober).run(probes, shutdown).await;
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
    }
}
