//! The program: arguments, configuration, logs, fabric, run, end.

mod advertise;
mod api;
mod cli;
mod commands;
mod follow;
mod listen;
mod shown;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};
use coordinator::status;
use keyfleet_fabric::store::redis::LateRedis;
use keyfleet_service::client;
use keyfleet_service::clock;
use keyfleet_service::config::{self, CliOverrides, EXIT_CODE, Loaded, Sources};
use keyfleet_service::connect::{self, Part, meanwhile, reach_redis};
use keyfleet_service::follow::Reloads;
use keyfleet_service::healthcheck::healthcheck;
use keyfleet_service::program;
use keyfleet_service::reach;
use keyfleet_service::shutdown::Shutdown;
use keyfleet_service::supervisor;
use keyfleet_service::telemetry;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::cli::{Cli, Command};
use crate::listen::Limits;

/// How long a standby waits for a connection to the leader.
const CONNECT: Duration = Duration::from_secs(1);

/// What follows for gateways where NATS is away, and where Redis is.
const NO_NATS: &str = "gateways get no leases and no decisions from this coordinator, and their reports wait";
const NO_REDIS: &str =
    "nothing can be written down, so nobody can lead: there are no new leases and no new decisions";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(Command::Serve);
    match command {
        Command::Version { json } => {
            println!("{}", program::version("coordinator", json));
            return ExitCode::SUCCESS;
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "coordinator", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let options = cli.options;
    let overrides = CliOverrides { host: options.host, port: options.port };
    let sources = Sources::of_coordinator(options.config, overrides);
    let runs = matches!(command, Command::Serve | Command::CheckConfig);
    let loaded = config::load(&sources).map_err(|problems| problems.to_string());
    let loaded = loaded.and_then(|loaded| if runs { check(&loaded).map(|()| loaded) } else { Ok(loaded) });
    let loaded = match loaded {
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
            let at = &loaded.config.coordinator;
            healthcheck("coordinator", &at.host, at.port)
        }
        Command::Serve => program::serve("coordinator", loaded, |loaded| run(sources, loaded)),
        command => commands::run(command, &loaded.config),
    }
}

/// What a coordinator that runs needs besides.
fn check(loaded: &Loaded) -> Result<(), String> {
    if loaded.config.nats.is_some() && loaded.config.redis.is_some() {
        return Ok(());
    }
    Err("a coordinator of its own needs nats_url and redis_url; without them every gateway is its own coordinator"
        .to_owned())
}

async fn run(sources: Sources, loaded: Loaded) -> io::Result<()> {
    let shutdown = Shutdown::listen()?;
    let first = Arc::new(loaded.config);
    let (Some(nats), Some(redis)) = (&first.nats, &first.redis) else { return Ok(()) };
    let at = &first.coordinator;
    let listener = TcpListener::bind((at.host.as_str(), at.port)).await.map_err(|error| {
        let text = format!("coordinator.port: cannot listen on {}:{}: {error}", at.host, at.port);
        io::Error::new(error.kind(), text)
    })?;
    let local = listener.local_addr()?;
    let address = advertise::advertised(local, nats).await;
    tracing::info!(address = %local, advertised = address, "the coordinator is listening");
    let (config, in_force) = watch::channel(first.clone());
    let (reloads, reloaded) = watch::channel(Reloads::new(clock::utc()));
    let (desk, post) = status::desk(address.clone(), reloaded.clone());
    let follow = follow::follow(sources, loaded.inputs, config, reloads, shutdown.soft().clone());
    shutdown.spawn_critical("configuration", follow);

    let bus = connect::nats(nats, "keyfleet-coordinator").await.map_err(io::Error::other)?;
    let store = Arc::new(LateRedis::default());
    // Each change is said; the figures are those of the leader's own attempts.
    let of_nats = connect::nats_dependency(bus.clone(), NO_NATS);
    let of_redis = connect::redis_dependency(store.clone(), NO_REDIS);
    reach::watch(Some(of_nats), Some(of_redis), shutdown.soft().clone());
    let api = Api {
        desk,
        config: in_force.clone(),
        reloads: reloaded,
        store: store.clone(),
        nats: bus.clone(),
        address,
        client: client::elsewhere(None, CONNECT).map_err(io::Error::other)?,
        reading: Mutex::new(()),
    };
    let api = Arc::new(api);
    let told = api.clone();
    shutdown.tasks().spawn(supervisor::tell_ready(move || told.role().err(), shutdown.soft().clone()));
    let stop_metrics = CancellationToken::new();
    let metrics = telemetry::metrics().map(|push| {
        let api = api.clone();
        let push = push.run(move || api::metrics::openmetrics(api.clone()), stop_metrics.clone());
        shutdown.spawn_critical_until(&stop_metrics, "metrics", push)
    });
    let served = listen::serve(listener, api::router(api), Limits::USUAL, shutdown.soft().clone());
    shutdown.spawn_critical("listener", served);
    let fabric = coordinator::Fabric {
        bus: Box::new(bus.leader()),
        witness: Arc::new(bus.witness()),
        store: store.clone(),
        old: None,
        suspect: false,
    };
    let serving = Box::pin(coordinator::run(in_force, fabric, post, shutdown.soft().clone()));
    let reaching = Box::pin(reach_redis(&store, redis, Part::Leads, shutdown.soft()));
    meanwhile(reaching, serving).await?;
    stop_metrics.cancel();
    if let Some(metrics) = metrics {
        // A panic in it would have ended the process.
        let _ = metrics.await;
    }
    if shutdown.soft().is_cancelled() {
        Ok(())
    } else {
        Err(io::Error::other("NATS or the prober is gone for good"))
    }
}
