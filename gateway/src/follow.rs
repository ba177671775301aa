//! Following the configuration on disk while the gateway runs.

use std::sync::Arc;

use keyfleet_service::config::{self, Config, Inputs, Sources};
use keyfleet_service::reload::{ConfigWatch, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Reads the configuration again when a signal or a change on disk says so. A bad one changes nothing.
pub(crate) async fn follow(
    sources: Sources,
    inputs: Inputs,
    config: watch::Sender<Arc<Config>>,
    reloads: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut watcher = match ConfigWatch::new(inputs) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "changes of the configuration are not noticed: restart to apply them");
            return stop.cancelled().await;
        }
    };
    loop {
        let reason = tokio::select! {
            () = stop.cancelled() => return,
            reason = watcher.changed() => reason,
        };
        let why = if reason == Reason::Signal { "SIGHUP" } else { "the file changed" };
        let next = config::load(&sources).and_then(|next| config::require_keys(&next).map(|()| next));
        let problem = match next {
            Ok(next) => match gateway::check(&Arc::new(next.config.clone())) {
                Ok(()) => {
                    next.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    warn_of_restart(&config.borrow(), &next.config);
                    watcher.follow(next.inputs);
                    config.send_replace(Arc::new(next.config));
                    reloads.send_replace(true);
                    tracing::info!(why, "the configuration was read again and is in force");
                    continue;
                }
                Err(problem) => problem,
            },
            Err(problems) => {
                watcher.follow(problems.inputs().clone());
                problems.to_string()
            }
        };
        reloads.send_replace(false);
        tracing::error!(why, "the configuration is NOT in force, the old one still is:\n{problem}");
    }
}

/// What a process cannot change while it runs.
fn warn_of_restart(old: &Config, new: &Config) {
    let (old, new) = (&old.server, &new.server);
    for (option, differs) in [
        ("server.host", old.host != new.host),
        ("server.port", old.port != new.port),
        ("server.ops_port", old.ops_port != new.ops_port),
        ("server.state_file", old.state_file != new.state_file),
        (
            "server.cors_allowed_origins",
            old.cors_allowed_origins.is_empty() && !new.cors_allowed_origins.is_empty(),
        ),
    ] {
        if differs {
            tracing::warn!("{option} has changed: it takes effect with the next start");
        }
    }
}
