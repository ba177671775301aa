//! Long runs of a whole deployment, each with a table and a verdict. See `scripts/chaos`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use futures_util::{StreamExt as _, stream};
use keyfleet_tests::chaos::{self, Chaos, Kind};
use keyfleet_tests::trial::cost::Cost;
use keyfleet_tests::trial::outage::Outage;
use keyfleet_tests::trial::spread::Spread;
use keyfleet_tests::{Part, chaos::Limits};

/// A cluster under load while its parts are killed, and other measurements of it
#[derive(Debug, Parser)]
#[command(name = "scripts/chaos")]
struct Cli {
    #[command(flatten)]
    other: Other,
    /// How long it lasts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Gateways
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    replicas: Option<u32>,
    /// Requests per second, of all clients
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    #[command(flatten)]
    killing: Killing,
}

/// Instead of killing
#[derive(Debug, Args)]
#[group(multiple = false)]
struct Other {
    /// NATS, Redis or both are away all the time
    #[arg(long)]
    outage: Option<Away>,
    /// How fast a 429 at one gateway is known to all: so many times
    #[arg(long, value_name = "BLOCKS", num_args = 0..=1, default_missing_value = "300")]
    spread: Option<u32>,
    /// What coordination costs, with 1, 5 and 20 gateways
    #[arg(long)]
    cost: bool,
}

#[derive(Debug, Args)]
struct Killing {
    /// Of the schedule and the clients
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Several, each with a cluster of its own: one line of the table for each
    #[arg(long, value_delimiter = ',', conflicts_with = "seed")]
    seeds: Vec<u64>,
    /// So many of them at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// What is killed
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["gateway", "coordinator"])]
    kill: Vec<Victim>,
    /// NATS and Redis are killed too
    #[arg(long)]
    servers: bool,
    /// SIGSTOP and SIGCONT instead of kill -9
    #[arg(long)]
    pause: bool,
    /// Nothing is killed
    #[arg(long)]
    calm: bool,
    /// Seconds from one kill to the next
    #[arg(long, default_value_t = 5.0)]
    every: f64,
    /// Clients
    #[arg(long, default_value_t = 100)]
    clients: u32,
    /// Projects, with one key each
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    projects: u32,
    /// Requests per minute of a project
    #[arg(long, default_value_t = 10)]
    rpm: u64,
    /// Input tokens per minute of a project
    #[arg(long)]
    tpm: Option<u64>,
    /// Requests per day of a project
    #[arg(long)]
    rpd: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Victim {
    Gateway,
    Coordinator,
    Nats,
    Redis,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Away {
    Nats,
    Redis,
    Both,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    // Ending the wait drops the clusters, which kills their processes.
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(&cli) => Some(outcome),
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    let Some((table, holds)) = outcome else { return ExitCode::from(130) };
    print!("{table}");
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(cli: &Cli) -> (String, bool) {
    let length = Duration::from_mins(cli.minutes.into());
    let replicas = cli.replicas.map(|replicas| replicas as usize);
    match &cli.other {
        Other { outage: Some(away), .. } => {
            let parts = match away {
                Away::Nats => vec![Part::Nats],
                Away::Redis => vec![Part::Redis],
                Away::Both => vec![Part::Nats, Part::Redis],
            };
            let outcome = Outage { parts, length }.run().await;
            (outcome.table(), outcome.holds())
        }
        Other { spread: Some(blocks), .. } => {
            let (replicas, blocks) = (replicas.unwrap_or(20), (*blocks).max(1) as usize);
            let outcome = Spread { replicas, blocks, rate: cli.rate.unwrap_or(400) }.run().await;
            (outcome.table(), outcome.holds())
        }
        Other { cost: true, .. } => {
            let replicas = replicas.map_or_else(|| vec![1, 5, 20], |replicas| vec![replicas]);
            let cost = Cost { replicas, rate: cli.rate.unwrap_or(100), length: length / 2 };
            (cost.run().await, true)
        }
        _ => kill(cli, length).await,
    }
}

async fn kill(cli: &Cli, length: Duration) -> (String, bool) {
    let Killing { seed, seeds, parallel, .. } = &cli.killing;
    let seeds = if seeds.is_empty() { vec![*seed] } else { seeds.clone() };
    let runs = seeds.iter().map(|seed| chaos(cli, length, *seed).run());
    // Each as a task of its own: they must not wait for one another's files.
    let outcomes: Vec<_> =
        stream::iter(runs).map(tokio::spawn).buffered((*parallel).max(1) as usize).collect().await;
    let ended = outcomes.iter().all(Result::is_ok);
    let outcomes: Vec<_> = outcomes.into_iter().filter_map(Result::ok).collect();
    let mut table = chaos::table(&outcomes);
    if !ended {
        table.push_str("\nNot every run came to its end.\n");
    }
    (table, ended && outcomes.iter().all(chaos::Outcome::holds))
}

fn chaos(cli: &Cli, length: Duration, seed: u64) -> Chaos {
    let usual = Chaos::new(length, seed);
    let killing = &cli.killing;
    let mut victims: Vec<_> = match killing {
        Killing { calm: true, .. } => Vec::new(),
        Killing { servers: true, .. } => Kind::ALL.to_vec(),
        Killing { kill, .. } => kill.iter().map(|victim| kind(*victim)).collect(),
    };
    victims.sort_unstable();
    victims.dedup();
    let every = Duration::try_from_secs_f64(killing.every).unwrap_or(usual.every);
    Chaos {
        replicas: cli.replicas.map_or(usual.replicas, |replicas| replicas as usize),
        rate: cli.rate.map_or(usual.rate, f64::from),
        victims,
        pause: killing.pause,
        every,
        away: usual.away.min(every / 2),
        clients: killing.clients,
        projects: killing.projects as usize,
        limits: Limits { rpm: killing.rpm, tpm: killing.tpm, rpd: killing.rpd },
        ..usual
    }
}

fn kind(victim: Victim) -> Kind {
    match victim {
        Victim::Gateway => Kind::Gateway,
        Victim::Coordinator => Kind::Coordinator,
        Victim::Nats => Kind::Nats,
        Victim::Redis => Kind::Redis,
    }
}
