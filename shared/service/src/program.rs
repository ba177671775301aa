//! The frame of every program that serves: logs first, a runtime, and the last words before the end.

use std::io;
use std::process::ExitCode;

use crate::config::{EXIT_CODE, Loaded};
use crate::logging::{self, LogFormat};
use crate::{supervisor, telemetry};

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, if `KEYFLEET_REVISION` said so during the build; by hand it says so of none.
pub const REVISION: &str = match option_env!("KEYFLEET_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

/// What the command `version` says, on one line.
pub fn version(name: &str, json: bool) -> String {
    if json {
        return serde_json::json!({"name": name, "version": VERSION, "revision": REVISION}).to_string();
    }
    format!("{name} {VERSION} ({REVISION})")
}

/// Runs the program called `name` until `run` ends, which gets what was loaded.
pub fn serve<F>(name: &str, loaded: Loaded, run: impl FnOnce(Loaded) -> F) -> ExitCode
where
    F: Future<Output = io::Result<()>>,
{
    let said = telemetry::init(name, &loaded.config.telemetry);
    if let Err(error) = logging::init(LogFormat::Auto) {
        eprintln!("{error}");
        return ExitCode::from(EXIT_CODE);
    }
    for warning in &said {
        tracing::warn!("{warning}");
    }
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| {
        let ended = runtime.block_on(async {
            tokio::spawn(supervisor::watchdog());
            let ended = run(loaded).await;
            telemetry::flush().await;
            ended
        });
        // A thread that still waits, for a name server perhaps, is not waited for.
        runtime.shutdown_background();
        ended
    });
    let code = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the {name} cannot run");
            ExitCode::FAILURE
        }
    };
    logging::flush();
    code
}
