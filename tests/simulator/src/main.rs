//! The simulator as a process: for demos, benchmarks and tests in other languages.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use keyfleet_simulator::{Latency, Simulator, World};

/// A faithful Gemini API on this machine.
#[derive(Debug, Parser)]
#[command(name = "simulator", version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen.
    #[arg(long, global = true, default_value = "127.0.0.1:4809")]
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

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Ask a running simulator on this machine, without TLS, whether it is alive: for containers, which have no curl.
    Healthcheck,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Profile {
    Zero,
    Realistic,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    if let Some(Command::Healthcheck) = args.command {
        return healthcheck(args.listen);
    }
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

fn healthcheck(mut address: SocketAddr) -> io::Result<()> {
    let limit = Duration::from_secs(3);
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /__sim/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if status.ends_with(b"200") { Ok(()) } else { Err(io::Error::other("it is not healthy")) }
}

async fn stopped() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result,
    }
}
