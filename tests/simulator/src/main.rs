//! The simulator as a process: for demos, benchmarks and tests in other languages.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use keyfleet_simulator::{Latency, Simulator, World};

/// A faithful Gemini API on this machine.
#[derive(Debug, Parser)]
#[command(name = "simulator", version)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:4807")]
    listen: SocketAddr,
    /// The world as a JSON file.
    #[arg(long, conflicts_with = "demo")]
    world: Option<PathBuf>,
    /// A small realistic pool: five projects, two keys in one of them, one dead key, free-tier limits.
    #[arg(long)]
    demo: bool,
    /// Speak HTTPS, and HTTP/2 to those who offer it; the certificate, made at start, is written to this file.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Print a configuration with which a gateway uses this world, and end.
    #[arg(long)]
    print_config: bool,
    /// Overrides the latency of the world.
    #[arg(long)]
    latency: Option<Profile>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    Zero,
    Realistic,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    let world = world(&args)?;
    if args.print_config {
        let scheme = if world.tls { "https" } else { "http" };
        let target = format!("{scheme}://{}/v1beta/openai/", args.listen);
        return write!(io::stdout(), "{}", world.gateway_config(&target));
    }
    let simulator = Simulator::start(world).await?;
    if let (Some(path), Some(certificate)) = (&args.certificate, simulator.certificate()) {
        std::fs::write(path, certificate)?;
    }
    writeln!(io::stdout(), "listening on {}", simulator.url())?;
    io::stdout().flush()?;
    stopped().await?;
    simulator.shutdown().await;
    Ok(())
}

fn world(args: &Args) -> io::Result<World> {
    let mut world = match &args.world {
        Some(path) => {
            let text = std::fs::read_to_string(path)?;
            serde_json::from_str(&text)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?
        }
        None if args.demo => World::demo(),
        None => World::default(),
    };
    world.listen = Some(args.listen);
    world.tls |= args.certificate.is_some();
    match args.latency {
        Some(Profile::Zero) => world.latency = Latency::Zero,
        Some(Profile::Realistic) => world.latency = Latency::Realistic,
        None => {}
    }
    Ok(world)
}

async fn stopped() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result,
    }
}
