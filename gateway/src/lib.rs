//! The gateway.
//!
//! # The life of a request
//!
//! [`serve`](self) accepts a connection and gives it to a worker. `router` finds the route: health and metrics are
//! answered here, everything else is `request::handle`, which asks who calls (`auth`) and whether it may now (`limits`),
//! which surface is meant (`api`), and reads the body within its limits (`budget`) and in one pass (`skim`). The result is a `call::Call`.
//!
//! `pipeline::answer` is the page: it takes a permit for a key from the `pool`, sends the call with it (`upstream`),
//! and reads the answer far enough to know whether it is one (`answer`). A failure is classified by
//! `keyfleet_core::outcome`, acted on at once, and reported; `keyfleet_core::retry` says what comes next. An answer
//! goes into the `relay`, which passes it through and settles the attempt when it ends, however it ends. Errors
//! leave through `error`, in the caller's dialect; `trail` writes the request's line, and `trace` its spans.
//!
//! In the background, `sync` exchanges findings for decisions with the coordinator. No request waits for it.

mod answer;
mod api;
mod array;
mod auth;
mod budget;
mod call;
mod error;
mod heartbeat;
mod last_words;
mod limits;
mod live;
mod metrics;
mod ops;
mod pipeline;
mod pool;
mod redact;
mod relay;
mod request;
mod router;
mod serve;
mod skim;
mod sse;
mod sync;
mod trace;
mod trail;
mod upload;
mod upstream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Acquire};
use std::time::Duration;

use futures_util::future::BoxFuture;
use keyfleet_core::id::ReplicaId;
use keyfleet_core::time::Mono;
use keyfleet_fabric::bus::GatewayBus;
use keyfleet_fabric::store::StateStore;
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use keyfleet_service::exposition::Part;
use keyfleet_service::follow::Reloads;
use keyfleet_service::logging::{AccessLog, LogFormat};
use keyfleet_service::reach::Reach;
use keyfleet_service::shutdown::Shutdown;
use keyfleet_service::supervisor;
use keyfleet_service::telemetry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::live::Live;
use crate::pool::Pool;
use crate::router::Entrance;

/// After the drain, what is left gets this long to say goodbye.
const FAREWELL: Duration = Duration::from_secs(5);

/// Then state is written and spans are sent: far more than that takes.
const EPILOGUE: Duration = Duration::from_secs(25);

/// A leader that is silent for so long may be gone.
const LED: Duration = Duration::from_secs(1);

/// What the workers of one process share.
struct App {
    pool: Arc<Pool>,
    fabric: Fabric,
    /// One start of this process.
    replica: ReplicaId,
    reporting: tokio::sync::Mutex<sync::Reporting>,
    metrics: Arc<metrics::Metrics>,
    log: AccessLog,
    /// Whether finished requests are logged at all.
    logs_requests: bool,
    /// As objects; else as lines for eyes.
    logs_json: bool,
    budget: Arc<budget::Budget>,
    last_words: last_words::LastWords,
    began: Mono,
    /// When the coordinator was last heard, on the process's clock in ms; 0: never.
    state_at: AtomicU64,
    /// The last decision about keys that is followed.
    state_revision: AtomicU64,
    /// How reading the configuration again went.
    reloads: watch::Receiver<Reloads>,
    /// The figures of others in this process.
    others: Option<Gather>,
    soft: CancellationToken,
    hard: CancellationToken,
}

/// One worker's view of it.
#[derive(Clone)]
struct Worker {
    app: Arc<App>,
    number: usize,
}

impl Worker {
    /// Waits; false if the process ends first.
    async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.app.hard.cancelled() => false,
        }
    }
}

impl App {
    fn new(
        live: Live,
        reloads: watch::Receiver<Reloads>,
        fabric: Fabric,
        others: Option<Gather>,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        let random = uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes());
        let replica = ReplicaId::new(random.into_uuid().to_string());
        Arc::new(Self {
            pool: Pool::new(live, fabric.bus.clone(), &replica),
            fabric,
            replica,
            reporting: tokio::sync::Mutex::default(),
            metrics: metrics::Metrics::new(),
            log: AccessLog::stdout(),
            logs_requests: tracing::enabled!(target: "request", tracing::Level::INFO),
            logs_json: LogFormat::Auto.is_json(),
            budget: Arc::default(),
            last_words: last_words::LastWords::default(),
            began: clock::mono(),
            state_at: AtomicU64::new(0),
            state_revision: AtomicU64::new(0),
            reloads,
            others,
            soft: shutdown.soft().clone(),
            hard: shutdown.hard().clone(),
        })
    }

    fn why_not_ready(&self) -> Option<&'static str> {
        if self.soft.is_cancelled() {
            Some("draining")
        } else if self.state_at.load(Acquire) > 0 {
            None
        } else {
            let reach = *self.fabric.reach.borrow();
            Some(match (reach.store, reach.bus) {
                (Some(false), Some(false)) => {
                    "NATS and Redis do not answer: the state of the keys has not arrived yet"
                }
                (Some(false), _) => "Redis does not answer: the state of the keys has not arrived yet",
                (_, Some(false)) => "NATS does not answer: the state of the keys has not arrived yet",
                _ => "the state of the keys has not arrived yet",
            })
        }
    }

    /// Whether a leader was heard a moment ago.
    fn is_led(&self, now: Mono) -> bool {
        self.state_age(now).is_some_and(|age| age < LED)
    }

    /// How long the coordinator has been silent: it speaks four times a second, whatever happens. What this replica knows of
    /// the keys is as old.
    fn state_age(&self, now: Mono) -> Option<Duration> {
        let at = self.state_at.load(Acquire);
        (at > 0).then(|| now.since(Mono::from_ms(at)))
    }
}

/// How a gateway reaches the coordinator and what is stored.
#[derive(Debug, Clone)]
pub struct Fabric {
    /// The way to the coordinator and to other gateways.
    pub bus: Arc<dyn GatewayBus>,
    /// What outlives processes; this one only reads it.
    pub store: Arc<dyn StateStore>,
    /// Which of the servers behind both answer.
    pub reach: watch::Receiver<Reach>,
}

/// Where a gateway listens.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub clients: TcpListener,
    /// For operators, if they have one of their own.
    pub ops: Option<TcpListener>,
    /// What others in this process have for operators.
    pub others: Others,
}

/// What runs in the same process has for operators, beside the gateway's own.
#[derive(Default)]
pub struct Others {
    /// Answers to those who know `server.admin_token`.
    pub routes: axum::Router,
    /// Figures that `/metrics` and a collector are told too.
    pub figures: Option<Gather>,
}

/// Gathers figures when somebody asks for them.
pub type Gather = Box<dyn Fn() -> BoxFuture<'static, Part> + Send + Sync>;

impl std::fmt::Debug for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Others").field("routes", &self.routes).finish_non_exhaustive()
    }
}

/// Whether a configuration can be put in force; the error says what is wrong with it.
pub fn check(config: &Arc<Config>) -> Result<(), String> {
    Live::new(config, 1).map(|_| ())
}

/// Serves until the soft token of `shutdown`, then lets requests end for `server.drain_timeout_secs`. Every later
/// value of `config` is put in force without dropping a request; `reloads` says how reading it again went.
pub async fn run(
    config: watch::Receiver<Arc<Config>>,
    reloads: watch::Receiver<Reloads>,
    listeners: Listeners,
    fabric: Fabric,
    shutdown: &Shutdown,
) -> Result<(), RunError> {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let live = Live::new(&config.borrow(), count).map_err(RunError::Config)?;
    let Listeners { clients, ops, others } = listeners;
    let app = App::new(live, reloads, fabric, others.figures, shutdown);
    let stop_sync = CancellationToken::new();
    let sync = shutdown.spawn_critical_until(&stop_sync, "sync", sync::run(app.clone(), stop_sync.clone()));
    shutdown.spawn_critical("reload", follow(app.clone(), config.clone(), count, app.soft.clone()));
    let stop_metrics = CancellationToken::new();
    let metrics = telemetry::metrics().map(|push| {
        let app = app.clone();
        let push = push.run(move || ops::openmetrics(app.clone()), stop_metrics.clone());
        shutdown.spawn_critical_until(&stop_metrics, "metrics", push)
    });

    let soft = app.soft.clone();
    let operators = router::operators(app.clone(), others.routes);
    let shared = ops.is_none().then(|| operators.clone());
    let workers: io::Result<Vec<_>> = (0..count)
        .map(|number| {
            let worker = Worker { app: app.clone(), number };
            serve::start(format!("worker-{number}"), router::clients(worker, shared.as_ref()), soft.clone())
        })
        .collect();
    let workers = workers?;
    let ops = match ops {
        Some(listener) => {
            // It ends with the process, not with the drain: somebody has to see that we are draining.
            let worker = serve::start("ops".to_owned(), Entrance::routed(operators), app.hard.clone())?;
            let hard = app.hard.clone();
            let accept = async move { serve::accept(listener, &[worker], &hard).await };
            Some(shutdown.spawn_critical_until(&app.hard, "ops", accept))
        }
        None => None,
    };
    let told = app.clone();
    shutdown.tasks().spawn(supervisor::tell_ready(move || told.why_not_ready(), app.soft.clone()));
    serve::accept(clients, &workers, &soft).await;

    let patience = config.borrow().server.drain_timeout;
    supervisor::ends_within(patience + FAREWELL + EPILOGUE);
    let ended = serve::close(workers);
    drain(ended, patience, &app).await;
    stop_sync.cancel();
    for task in ops.into_iter().chain([sync]) {
        // A panic in it would have ended the process.
        let _ = task.await;
    }
    // The last figures tell of everything.
    stop_metrics.cancel();
    if let Some(metrics) = metrics {
        let _ = metrics.await;
    }
    Ok(())
}

/// Waits for the workers, at first patiently. Those that do not end are left behind, for the process to end with.
async fn drain(workers: Vec<std::thread::JoinHandle<()>>, patience: Duration, app: &App) {
    // Not on the runtime's blocking pool: its end would wait for them, however long they take.
    let (tell, mut ended) = tokio::sync::oneshot::channel::<()>();
    let waiter = std::thread::Builder::new().name("drain".to_owned()).spawn(move || {
        for worker in workers {
            // Its panic, if it had one, was logged when it happened.
            drop(worker.join());
        }
        drop(tell);
    });
    if let Err(error) = waiter {
        tracing::warn!(%error, "no thread to wait for connections with: they end now");
    }
    if tokio::time::timeout(patience, &mut ended).await.is_ok() {
        app.hard.cancel();
        return;
    }
    // Without requests, what is left are idle connections, which get a moment of their own to end.
    let requests = app.metrics.in_flight();
    if requests > 0 {
        tracing::warn!(
            requests,
            seconds = patience.as_secs(),
            "the drain time is over: what still runs is ended with an error"
        );
    }
    app.hard.cancel();
    if tokio::time::timeout(FAREWELL, &mut ended).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

/// Puts every new configuration in force.
async fn follow(
    app: Arc<App>,
    mut config: watch::Receiver<Arc<Config>>,
    workers: usize,
    stop: CancellationToken,
) {
    config.mark_unchanged();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = config.changed() => {
                if changed.is_err() {
                    return stop.cancelled().await;
                }
                let next = config.borrow_and_update().clone();
                match Live::new(&next, workers) {
                    Ok(live) => app.pool.replace(live),
                    Err(problem) => tracing::error!(%problem, "the new configuration is not put in force"),
                }
            }
        }
    }
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be put in force.
    #[error("{0}")]
    Config(String),
    /// The system refused threads or sockets.
    #[error("{0}")]
    System(#[from] io::Error),
}
