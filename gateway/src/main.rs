//! The program: arguments, configuration, logs, fabric, run, end.

mod cli;
mod follow;
mod smoke;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};
use coordinator::alerts::console;
use coordinator::metrics;
use coordinator::status::{self, Desk};
use keyfleet_core::ledger::Saved;
use keyfleet_fabric::bus::witness::LocalWitness;
use keyfleet_fabric::store::memory::{MemoryStore, Vouch};
use keyfleet_fabric::store::redis::LateRedis;
use keyfleet_fabric::store::{KEEP, StateStore};
use keyfleet_service::clock;
use keyfleet_service::config::{self, CliOverrides, Config, EXIT_CODE, Loaded, Sources};
use keyfleet_service::connect::{self, Part, meanwhile, reach_redis};
use keyfleet_service::exposition;
use keyfleet_service::follow::Reloads;
use keyfleet_service::healthcheck::healthcheck;
use keyfleet_service::program;
use keyfleet_service::reach::{self, Dependency, Reach};
use keyfleet_service::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{Cli, Command};

/// What follows for clients where NATS is away, where Redis is, and where the state file cannot be written.
const NO_NATS: &str = "no leases and no decisions arrive, and findings wait; requests go on with the quota in hand, and \
                       then as quota.when_unleased says";
const NO_STORE: &str = "nothing can be written down, so there are no new leases and no new decisions; requests go on with \
                        the quota in hand, and then as quota.when_unleased says";

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(Command::Serve);
    match &command {
        Command::Version { json } => {
            println!("{}", program::version("gateway", *json));
            return ExitCode::SUCCESS;
        }
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "gateway", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Smoke(options) => return smoke::run(options),
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
        others: gateway::Others::default(),
    };
    announce(&listeners, &loaded.config)?;

    let first = Arc::new(loaded.config);
    let (config, in_force) = watch::channel(first.clone());
    let (reloads, reloaded) = watch::channel(Reloads::new(clock::utc()));
    let follow = follow::follow(sources, loaded.inputs, config, reloads, shutdown.soft().clone());
    shutdown.spawn_critical("configuration", follow);

    let stop = shutdown.soft();
    let redis = first.redis.as_ref().map(|_| Arc::new(LateRedis::default()));
    let nats = match &first.nats {
        Some(nats) => Some(connect::nats(nats, "keyfleet-gateway").await.map_err(io::Error::other)?),
        None => None,
    };
    let kept = if redis.is_none() { keep(first.server.state_file.as_deref())? } else { Kept::default() };
    let of_store = match (&redis, &kept.file) {
        (Some(redis), _) => Some(connect::redis_dependency(redis.clone(), NO_STORE)),
        (None, Some((path, file))) => Some(state_file(path, file.clone())),
        (None, None) => None,
    };
    let of_nats = nats.clone().map(|nats| connect::nats_dependency(nats, NO_NATS));
    let reach = reach::watch(of_nats, of_store, stop.clone());
    let part = if nats.is_some() { Part::Follows } else { Part::LeadsAlone };
    let reaching = async {
        match (&redis, &first.redis) {
            (Some(store), Some(redis)) => reach_redis(store, redis, part, stop).await,
            _ => Ok(()),
        }
    };
    let serving = async {
        if let (Some(nats), Some(store)) = (&nats, &redis) {
            let fabric = gateway::Fabric { bus: Arc::new(nats.gateway()), store: store.clone(), reach };
            return gateway::run(in_force, reloaded, listeners, fabric, &shutdown)
                .await
                .map_err(io::Error::other);
        }
        let kept = match &redis {
            // What Redis holds vouches for itself, or does not.
            Some(store) => Kept { store: store.clone(), ..kept },
            None => kept,
        };
        alone(kept, in_force, reloaded, listeners, reach, &shutdown).await
    };
    meanwhile(Box::pin(reaching), Box::pin(serving)).await?
}

/// Serves as its own coordinator.
async fn alone(
    kept: Kept,
    config: watch::Receiver<Arc<Config>>,
    reloads: watch::Receiver<Reloads>,
    listeners: gateway::Listeners,
    reach: watch::Receiver<Reach>,
    shutdown: &Shutdown,
) -> io::Result<()> {
    let (bus, leader) = connect::in_process();
    let stop_coordinator = CancellationToken::new();
    let fabric = coordinator::Fabric {
        bus: Box::new(leader),
        witness: Arc::new(LocalWitness::default()),
        store: kept.store.clone(),
        old: kept.old,
        suspect: kept.suspect,
    };
    let (desk, post) = status::desk(None, reloads.clone());
    let others = gateway::Others {
        routes: console::routes(desk.clone(), config.clone()),
        figures: Some(Box::new(move || Box::pin(figures(desk.clone())))),
    };
    let listeners = gateway::Listeners { others, ..listeners };
    let coordinator = coordinator::run(config.clone(), fabric, post, stop_coordinator.clone());
    let coordinator = shutdown.spawn_critical_until(&stop_coordinator, "coordinator", coordinator);
    let fabric = gateway::Fabric { bus: Arc::new(bus), store: kept.store, reach };
    let ended = gateway::run(config, reloads, listeners, fabric, shutdown).await;
    stop_coordinator.cancel();
    coordinator.await.map_err(io::Error::other)?;
    if let Some((path, file)) = kept.file {
        let unwritten = |error: io::Error| {
            let text = format!(
                "server.state_file: the end cannot be written to {}: {error}; what a minute allows counts as spent at the \
                 next start",
                path.display()
            );
            io::Error::new(error.kind(), text)
        };
        file.close().await.map_err(unwritten)?;
    }
    ended.map_err(io::Error::other)
}

/// What the coordinator of this process tells a scraper.
async fn figures(desk: Desk) -> exposition::Part {
    exposition::Part::new(metrics::PREFIX, metrics::Figures::of(&desk).await)
}

/// Where a process that is its own coordinator keeps its state, and what it found there.
struct Kept {
    store: Arc<dyn StateStore>,
    file: Option<(PathBuf, Arc<MemoryStore>)>,
    /// What a file of the first format held.
    old: Option<Saved>,
    /// What was found may lack something that happened.
    suspect: bool,
}

fn keep(file: Option<&Path>) -> io::Result<Kept> {
    let Some(file) = file else { return Ok(Kept::default()) };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    match MemoryStore::open(file, boot.trim()) {
        Ok(opened) => {
            let old = opened.old.and_then(|old| serde_json::from_value(old).ok());
            let memory = Arc::new(opened.store);
            let suspect = opened.vouch == Vouch::Partial;
            Ok(Kept { store: memory.clone(), file: Some((file.to_owned(), memory)), old, suspect })
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
                "the state file cannot be written: what this process learns of keys and quotas ends with it, and limits of \
                 a minute count as spent for the first 70 seconds, since nobody knows what an earlier process used; make \
                 the file and its folder writable for this user, name another one in server.state_file, or set that to \
                 \"\" to keep nothing"
            );
            // An earlier process may have used quota that nobody vouches for now.
            Ok(Kept { suspect: true, ..Kept::default() })
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self { store: Arc::new(MemoryStore::new(KEEP)), file: None, old: None, suspect: false }
    }
}

fn state_file(path: &Path, file: Arc<MemoryStore>) -> Dependency {
    let path = path.display();
    Dependency {
        away: format!("the state file {path} cannot be written (is its disk full?): {NO_STORE}"),
        back: format!("the state file {path} is written again: there are leases and decisions as usual"),
        is_up: Box::new(move || file.is_written()),
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
