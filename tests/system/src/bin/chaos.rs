//! A long run of a cluster whose parts are killed, with a verdict.

use std::process::ExitCode;
use std::time::Duration;

use keyfleet_tests::Chaos;

const USAGE: &str = "usage: chaos [--minutes N] [--seed S] [--replicas R] [--pause] [--servers] [--calm]";

fn main() -> ExitCode {
    let chaos = match arguments(std::env::args().skip(1)) {
        Ok(chaos) => chaos,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    // Ending the wait drops the cluster, which kills its processes.
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = chaos.run() => Some(outcome),
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    let Some(outcome) = outcome else { return ExitCode::from(130) };
    print!("{outcome}");
    if outcome.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Chaos, String> {
    let mut chaos = Chaos::new(Duration::from_mins(1), 1);
    while let Some(name) = given.next() {
        let mut number = || {
            let text = given.next().ok_or(format!("{name} needs a number"))?;
            text.parse::<u32>().map_err(|_| format!("{name} {text}: not a number"))
        };
        match name.as_str() {
            "--minutes" => chaos.length = Duration::from_mins(u64::from(number()?.max(1))),
            "--seed" => chaos.seed = number()?.into(),
            "--replicas" => chaos.replicas = number()?.clamp(1, 100) as usize,
            "--pause" => chaos.pause = true,
            "--servers" => chaos.servers = true,
            "--calm" => chaos.calm = true,
            _ => return Err(format!("{name}: unknown")),
        }
    }
    Ok(chaos)
}
