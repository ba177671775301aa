//! The program: arguments, configuration, logs, fabric, run, end.

mod cli;
mod follow;
mod healthcheck;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};
use keyfleet_fabric::file::StateFile;
use keyfleet_fabric::local;
use keyfleet_service::config::{self, CliOverrides, Config, EXIT_CODE, Loaded, Sources};
use keyfleet_service::logging::{self, LogFormat};
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
        Command::Healthcheck => healthcheck::healthcheck(&loaded.config),
        _ => serve(sources, loaded),
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

fn serve(sources: Sources, loaded: Loaded) -> ExitCode {
    if let Err(error) = logging::init(LogFormat::Auto) {
        eprintln!("{error}");
        return ExitCode::from(EXIT_CODE);
    }
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| {
        let ended = runtime.block_on(run(sources, loaded));
        // A thread that waits for the reader of our output would wait for ever.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the gateway cannot run");
            ExitCode::FAILURE
        }
    }
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
    let state = StateFile::new(server.state_file.clone());
    announce(&listeners, &loaded.config)?;

    let (config, in_force) = watch::channel(Arc::new(loaded.config));
    let (reloads, reloaded) = watch::channel(true);
    let follow = follow::follow(sources, loaded.inputs, config, reloads, shutdown.soft().clone());
    shutdown.spawn_critical("configuration", follow);

    let (gateway_end, coordinator_end) = local::fabric();
    let stop_coordinator = CancellationToken::new();
    let coordinator =
        tokio::spawn(coordinator::run(in_force.clone(), coordinator_end, state, stop_coordinator.clone()));
    let ended = gateway::run(in_force, reloaded, listeners, gateway_end, &shutdown).await;
    stop_coordinator.cancel();
    coordinator.await.map_err(io::Error::other)?;
    ended.map_err(io::Error::other)
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
