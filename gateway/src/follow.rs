//! Following the configuration on disk while the gateway runs.

use std::sync::Arc;

use keyfleet_service::clock;
use keyfleet_service::config::{self, Config, Inputs, Sources};
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
    let check = |next: &config::Loaded| {
        config::require_keys(next).map_err(|problems| problems.to_string())?;
        gateway::check(&Arc::new(next.config.clone()))
    };
    let take = |next: Option<Config>| {
        let ok = next.is_some();
        if let Some(next) = next {
            tell_what_waits(&config.borrow(), &next);
            config.send_replace(Arc::new(next));
        }
        reloads.send_modify(|reloads| reloads.note(ok, clock::utc()));
    };
    keyfleet_service::follow::follow(sources, inputs, stop, check, take).await;
}

/// What a process cannot change while it runs.
fn tell_what_waits(old: &Config, new: &Config) {
    let fabric = [
        ("telemetry (other than propagate_upstream)", !new.telemetry.traces_as(&old.telemetry)),
        ("nats_url and its options", old.nats != new.nats),
        ("redis_url and its options", old.redis != new.redis),
    ];
    let (old, new) = (&old.server, &new.server);
    let server = [
        ("server.host", old.host != new.host),
        ("server.port", old.port != new.port),
        ("server.ops_port", old.ops_port != new.ops_port),
        ("server.state_file", old.state_file != new.state_file),
        (
            "server.cors_allowed_origins",
            old.cors_allowed_origins.is_empty() && !new.cors_allowed_origins.is_empty(),
        ),
    ];
    warn_of_restart(server.into_iter().chain(fabric));
}
