//! Following the configuration on disk while a program runs.

use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, Inputs, Loaded, Sources};
use crate::reload::{ConfigWatch, Reason};

/// Reads the configuration again when a signal or a change on disk says so, until `stop`. A good one, by `check` too, is
/// handed to `take`; a bad one changes nothing, and `take` gets `None`.
pub async fn follow(
    sources: Sources,
    inputs: Inputs,
    stop: CancellationToken,
    check: impl Fn(&Loaded) -> Result<(), String>,
    mut take: impl FnMut(Option<Config>),
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
        let problem = match config::load(&sources) {
            Ok(next) => {
                watcher.follow(next.inputs.clone());
                match check(&next) {
                    Ok(()) => {
                        next.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                        take(Some(next.config));
                        tracing::info!(why, "the configuration was read again and is in force");
                        continue;
                    }
                    Err(problem) => problem,
                }
            }
            Err(problems) => {
                watcher.follow(problems.inputs().clone());
                problems.to_string()
            }
        };
        take(None);
        tracing::error!(why, "the configuration is NOT in force, the old one still is:\n{problem}");
    }
}

/// Tells which of these options, each with whether it has changed, only the next start takes up.
pub fn warn_of_restart<'a>(options: impl IntoIterator<Item = (&'a str, bool)>) {
    for (option, _) in options.into_iter().filter(|(_, differs)| *differs) {
        tracing::warn!("{option} has changed: it takes effect with the next start");
    }
}
