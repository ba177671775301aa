//! Sends requests and times the answers: `load closed` keeps a number of connections busy, `load open` keeps a rate
//! whatever the answers do. One run, bounded in count and time; one report, as JSON on standard output.

mod closed;
mod connection;
mod open;
mod tally;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::time::Instant;

use crate::connection::Target;

/// Sends requests and times the answers.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    pace: Pace,
}

#[derive(Debug, Subcommand)]
enum Pace {
    /// Each connection sends its next request when the last one has been answered
    Closed {
        #[command(flatten)]
        what: What,
        /// Connections, each with one request at a time
        #[arg(long, default_value_t = 64)]
        connections: u32,
        /// The connections begin evenly within this time
        #[arg(long, default_value_t = 0)]
        ramp_ms: u64,
    },
    /// Requests leave at a fixed rate, whether or not earlier ones have been answered
    Open {
        #[command(flatten)]
        what: What,
        /// Requests per second
        #[arg(long)]
        rate: u32,
    },
}

#[derive(Debug, Args)]
struct What {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// The token of a client, or the key of the upstream
    #[arg(long)]
    bearer: String,
    /// How many requests in all
    #[arg(long)]
    requests: u32,
    /// The length of each request's body, as near as JSON allows
    #[arg(long, default_value_t = 1_000)]
    body_bytes: usize,
    /// Ask for streams
    #[arg(long)]
    stream: bool,
    /// What has not been answered by then has failed
    #[arg(long, default_value_t = 120)]
    limit_secs: u64,
}

impl What {
    fn target(&self) -> io::Result<Target> {
        let body = connection::body(self.body_bytes, self.stream);
        Target::new(self.to, &self.bearer, body, Instant::now() + Duration::from_secs(self.limit_secs))
    }
}

/// One thread: the other cores belong to what is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let began = Instant::now();
    let tally = match Cli::parse().pace {
        Pace::Closed { what, connections, ramp_ms } => {
            let ramp = Duration::from_millis(ramp_ms);
            closed::run(what.target()?, what.requests, connections, ramp).await
        }
        Pace::Open { what, rate } => open::run(what.target()?, what.requests, rate).await?,
    };
    let report = serde_json::to_string(&tally.report(began.elapsed()))?;
    writeln!(io::stdout(), "{report}")
}
