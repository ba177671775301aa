//! The benchmark: the gateway beside nginx and a bare proxy of axum and reqwest, in one interleaved run on one machine,
//! with the simulator as the upstream of all. Prints one table, and fails if a gate does.

mod contender;
mod instructions;
mod lab;
mod latency;
mod machine;
mod process;
mod quota;
mod rounds;
mod start;
mod streams;
mod table;
mod throughput;
mod upstream;
mod wire;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab::Lab;
use crate::table::Row;

/// Compares the gateway with nginx and a bare proxy.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Args {
    /// All but the last of them, unless some are named
    #[arg(value_enum, ignore_case = true)]
    scenarios: Vec<Scenario>,
    /// About a minute, with rougher figures
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// 1 KB request, small answer
    S1,
    /// 100 KB request, small answer
    S2,
    /// A stream of 100 chunks back to back
    S3,
    /// 2,000 slow streams at once
    S4,
    /// Added latency at 200 requests per second
    Latency,
    /// Start to first answer, and memory
    Start,
    /// Ten keys of 20 requests per five seconds
    Quota,
    /// What quotas and traces cost a request, in instructions
    Instructions,
}

impl Scenario {
    /// What needs neither much time nor another program.
    const USUAL: [Self; 7] =
        [Self::S1, Self::S2, Self::S3, Self::S4, Self::Latency, Self::Start, Self::Quota];
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    // Dropping the run ends every process that it has started.
    let ended = tokio::select! {
        ended = run(&args) => ended,
        stopped = stopped() => stopped.and(Err(io::ErrorKind::Interrupted.into())),
    };
    match ended {
        Ok(rows) if rows.iter().all(Row::passes) => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("a gate fails");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: &Args) -> io::Result<Vec<Row>> {
    let lab = Lab::new(args.quick)?;
    let began = machine::Time::now()?;
    let chosen = if args.scenarios.is_empty() { &Scenario::USUAL[..] } else { &args.scenarios };
    let mut rows = Vec::new();
    for scenario in chosen {
        rows.extend(match scenario {
            Scenario::S1 => throughput::s1(&lab).await,
            Scenario::S2 => throughput::s2(&lab).await,
            Scenario::S3 => throughput::s3(&lab).await,
            Scenario::S4 => streams::s4(&lab).await,
            Scenario::Latency => latency::latency(&lab).await,
            Scenario::Start => start::start(&lab).await,
            Scenario::Quota => quota::quota(&lab).await,
            Scenario::Instructions => instructions::instructions(&lab).await,
        }?);
    }
    let note = machine::Time::now()?.note_since(&began);
    io::stdout().write_all(format!("{}\n{note}\n", table::print(&rows)).as_bytes())?;
    Ok(rows)
}

async fn stopped() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result,
    }
}
