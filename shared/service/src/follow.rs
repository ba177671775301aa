//! Following the configuration on disk while a program runs.

use keyfleet_core::time::Utc;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, Inputs, Loaded, Sources};
use crate::exposition::{Sheet, Written, counter};
use crate::reload::{ConfigWatch, Reason};
use crate::supervisor;

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
        supervisor::reloading();
        let problem = match config::load(&sources) {
            Ok(next) => {
                watcher.follow(next.inputs.clone());
                match check(&next) {
                    Ok(()) => {
                        next.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                        take(Some(next.config));
                        supervisor::reloaded(true);
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
        supervisor::reloaded(false);
        tracing::error!(why, "the configuration is NOT in force, the old one still is:\n{problem}");
    }
}

/// How reading the configuration again went so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloads {
    good: u64,
    bad: u64,
    /// What is on disk is in force.
    in_force: bool,
    last_good: Utc,
}

impl Reloads {
    /// The first one is in force, from now on.
    pub const fn new(now: Utc) -> Self {
        Self { good: 0, bad: 0, in_force: true, last_good: now }
    }

    /// It was read again, and is in force or not.
    pub const fn note(&mut self, good: bool, now: Utc) {
        self.in_force = good;
        if good {
            self.good += 1;
            self.last_good = now;
        } else {
            self.bad += 1;
        }
    }

    /// Whether what is on disk is in force: it is not while it has a mistake.
    pub const fn in_force(&self) -> bool {
        self.in_force
    }

    /// Tells a scraper.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 have 41 bits")]
    pub fn tell(&self, sheet: &mut Sheet<'_>) -> Written {
        let results = [("success", self.good), ("failure", self.bad)];
        let results = results.map(|(result, n)| ([("result", result)], counter(n)));
        sheet.family("config_reloads", "Times that the configuration was read again", results)?;
        let help = "Whether the file on disk is the configuration in force";
        sheet.gauge("config_last_reload_successful", help, u64::from(self.in_force))?;
        let help = "When the configuration in force was read, as Unix time";
        let seconds = self.last_good.as_ms() as f64 / 1_000.0;
        sheet.fraction("config_last_reload_success_timestamp_seconds", help, seconds)
    }
}

/// Tells which of these options, each with whether it has changed, only the next start takes up.
pub fn warn_of_restart<'a>(options: impl IntoIterator<Item = (&'a str, bool)>) {
    for (option, _) in options.into_iter().filter(|(_, differs)| *differs) {
        tracing::warn!("{option} has changed: it takes effect with the next start");
    }
}
