//! The program: arguments, configuration, logs, fabric, run, end.

mod cli;
mod follow;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};
use keyfleet_core::ledger::Saved;
use keyfleet_fabric::store::memory::{MemoryStore, Vouch};
use keyfleet_fabric::store::{KEEP, StateStore};
use keyfleet_service::config::{self, CliOverrides, Config, EXIT_CODE, Loaded, Redis, Sources};
use keyfleet_service::connect;
use keyfleet_service::healthcheck::healthcheck;
use keyfleet_service::program;
use keyfleet_service::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(Command::Serve);
    match command {
        Command::Version => {
            println!("gateway {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "gateway", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let options = cli.options;
    let cli = CliOverrides { host: options.host, port: options.port };
    let sources = Sources::of_process(options.config, cli);
    let loaded = match load(&sources, command == Command::Serve) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_CODE);
        }
    };
    match command {
        Command::CheckConfig => {
            loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            println!("the configuration is good");
            ExitCode::SUCCESS
        }
        Command::PrintConfig => {
            print!("{}", config::print(&loaded));
            ExitCode::SUCCESS
        }
        Command::Healthcheck => {
            let server = &loaded.config.server;
            healthcheck("gateway", &server.host, server.port)
        }
        _ => program::serve("gateway", loaded, |loaded| run(sources, loaded)),
    }
}

/// Reads the configuration. Only a gateway that is to run needs keys.
fn load(sources: &Sources, needs_keys: bool) -> Result<Loaded, String> {
    let loaded = config::load(sources).map_err(|problems| problems.to_string())?;
    if needs_keys {
        config::require_keys(&loaded).map_err(|problems| problems.to_string())?;
    }
    gateway::check(&Arc::new(loaded.config.clone()))?;
    Ok(loaded)
}

async fn run(sources: Sources, loaded: Loaded) -> io::Result<()> {
    let shutdown = Shutdown::listen()?;
    let server = &loaded.config.server;
    let listeners = gateway::Listeners {
        clients: bind(&server.host, server.port, "server.port").await?,
        ops: match server.ops_port {
            Some(port) => Some(bind(&server.host, port, "server.ops_port").await?),
            None => None,
        },
    };
    announce(&listeners, &loaded.config)?;

    let first = Arc::new(loaded.config);
    let (config, in_force) = watch::channel(first.clone());
    let (reloads, reloaded) = watch::channel(true);
    let follow = follow::follow(sources, loaded.inputs, config, reloads, shutdown.soft().clone());
    shutdown.spawn_critical("configuration", follow);

    let ended = match (&first.nats, &first.redis) {
        (Some(nats), Some(redis)) => {
            let bus = connect::nats(nats, "keyfleet-gateway").await.map_err(io::Error::other)?;
            let store = Arc::new(connect::redis(redis, false, shutdown.soft()).await?);
            let fabric = gateway::Fabric { bus: Arc::new(bus.gateway()), store };
            gateway::run(in_force, reloaded, listeners, fabric, &shutdown).await
        }
        (_, redis) => {
            let kept = keep(redis.as_ref(), first.server.state_file.as_deref(), shutdown.soft()).await?;
            let (bus, leader) = connect::in_process();
            let stop_coordinator = CancellationToken::new();
            let fabric = coordinator::Fabric {
                bus: Box::new(leader),
                store: kept.store.clone(),
                old: kept.old,
                suspect: kept.suspect,
            };
            let coordinator = coordinator::run(in_force.clone(), fabric, stop_coordinator.clone());
            let coordinator = shutdown.spawn_critical_until(&stop_coordinator, "coordinator", coordinator);
            let fabric = gateway::Fabric { bus: Arc::new(bus), store: kept.store };
            let ended = gateway::run(in_force, reloaded, listeners, fabric, &shutdown).await;
            stop_coordinator.cancel();
            coordinator.await.map_err(io::Error::other)?;
            if let Some(file) = kept.file {
                file.close().await?;
            }
            ended
        }
    };
    ended.map_err(io::Error::other)
}

/// Where a process that is its own coordinator keeps its state, and what it found there.
struct Kept {
    store: Arc<dyn StateStore>,
    file: Option<Arc<MemoryStore>>,
    /// What a file of the first format held.
    old: Option<Saved>,
    /// What was found may lack something that happened.
    suspect: bool,
}

async fn keep(redis: Option<&Redis>, file: Option<&Path>, stop: &CancellationToken) -> io::Result<Kept> {
    if let Some(redis) = redis {
        let store = connect::redis(redis, true, stop).await?;
        if connect::is_led_by_another(&store).await.map_err(io::Error::other)? {
            return Err(io::Error::other(format!(
                "redis_url: another process keeps its state under the prefix {}; set nats_url to run several, or \
                 another redis_key_prefix",
                redis.key_prefix
            )));
        }
        return Ok(Kept { store: Arc::new(store), file: None, old: None, suspect: false });
    }
    let Some(file) = file else { return Ok(Kept::without_past(false)) };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match MemoryStore::open(file, boot.trim()) {
        Ok(opened) => {
            let old = opened.old.and_then(|old| serde_json::from_value(old).ok());
            let memory = Arc::new(opened.store);
            let suspect = opened.vouch == Vouch::Partial;
            Ok(Kept { store: memory.clone(), file: Some(memory), old, suspect })
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            error.kind(),
            format!(
                "server.state_file: another process has {} open; give each process a file of its own, or set \
                 nats_url and redis_url so that they share their state",
                file.display()
            ),
        )),
        Err(error) => {
            tracing::warn!(
                file = %file.display(), %error,
                "the state file cannot be written: what this process learns of keys and quotas ends with it"
            );
            // An earlier process may have used quota that nobody vouches for now.
            Ok(Kept::without_past(true))
        }
    }
}

impl Kept {
    fn without_past(suspect: bool) -> Self {
        let store = Arc::new(MemoryStore::new(KEEP));
        Self { store, file: None, old: None, suspect }
    }
}

async fn bind(host: &str, port: u16, option: &str) -> io::Result<TcpListener> {
    let bound = TcpListener::bind((host, port)).await;
    bound.map_err(|error| {
        io::Error::new(error.kind(), format!("{option}: cannot listen on {host}:{port}: {error}"))
    })
}

fn announce(listeners: &gateway::Listeners, config: &Config) -> io::Result<()> {
    let keys: usize = config.groups.iter().map(|group| group.keys.len()).sum();
    let address = listeners.clients.local_addr()?;
    let projects = config.projects.len();
    tracing::info!(%address, keys, projects, "Keyfleet {} is listening", env!("CARGO_PKG_VERSION"));
    if let Some(ops) = &listeners.ops {
        tracing::info!(address = %ops.local_addr()?, "health and metrics");
    }
    Ok(())
}
