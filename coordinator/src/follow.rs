//! Following the configuration on disk while the coordinator runs.

use std::sync::Arc;

use keyfleet_service::clock;
use keyfleet_service::config::{Config, Inputs, Sources};
use keyfleet_service::follow::{Reloads, warn_of_restart};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Puts what is read again in force, and says in `reloads` how it went.
pub(crate) async fn follow(
    sources: Sources,
    inputs: Inputs,
    config: watch::Sender<Arc<Config>>,
    reloads: watch::Sender<Reloads>,
    stop: CancellationToken,
) {
    let take = |next: Option<Config>| {
        reloads.send_modify(|reloads| reloads.note(next.is_some(), clock::utc()));
        let Some(next) = next else { return };
        tell_what_waits(&config.borrow(), &next);
        config.send_replace(Arc::new(next));
    };
    keyfleet_service::follow::follow(sources, inputs, stop, crate::check, take).await;
}

/// What a process cannot change while it runs.
fn tell_what_waits(old: &Config, new: &Config) {
    warn_of_restart([
        ("coordinator.host", old.coordinator.host != new.coordinator.host),
        ("coordinator.port", old.coordinator.port != new.coordinator.port),
        ("nats_url and its options", old.nats != new.nats),
        ("redis_url and its options", old.redis != new.redis),
        ("telemetry", !new.telemetry.traces_as(&old.telemetry)),
    ]);
}
