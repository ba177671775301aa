//! From the configuration to NATS and Redis.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_fabric::bus::nats::{Login, NatsOptions, NatsTls, OptionsError, StreamLimits};
use keyfleet_fabric::bus::{local, nats::Nats};
use keyfleet_fabric::store::redis::{LateRedis, RedisStore, Settings};
use keyfleet_fabric::store::{Claim, Lead, StateStore, StoreError};

use tokio_util::sync::CancellationToken;

use crate::config::{Nats as NatsConfig, NatsLogin, Redis};
use crate::reach::Dependency;

/// How long a question to the coordinator waits for its answer.
pub const ASK_TIMEOUT: Duration = Duration::from_millis(250);
/// After this a command to Redis counts as lost.
const REDIS_TIMEOUT: Duration = Duration::from_millis(500);
/// Before Redis is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How often it is said that this goes on.
const COMPLAIN: Duration = Duration::from_secs(30);
/// A leader that died is forgotten after this time.
const LAPSE: Duration = Duration::from_millis(1_500);

/// Both sides of the bus of one process.
pub fn in_process() -> (local::LocalGateway, local::LocalLeader) {
    local::fabric(ASK_TIMEOUT)
}

/// Begins to connect to NATS; the servers need not be there yet. `name` is what their monitoring shows.
pub async fn nats(config: &NatsConfig, name: &str) -> Result<Nats, OptionsError> {
    let servers = config.servers.iter().map(|server| server.expose().to_owned()).collect();
    let login = match &config.login {
        NatsLogin::OfUrl => Login::Anonymous,
        NatsLogin::Password { user, password } => {
            Login::Password { user: user.clone(), password: password.expose().to_owned() }
        }
        NatsLogin::Token(token) => Login::Token(token.expose().to_owned()),
        NatsLogin::Nkey(seed) => Login::Nkey(seed.expose().to_owned()),
        NatsLogin::Credentials(file) => Login::Credentials(file.clone()),
    };
    let tls =
        NatsTls { required: false, ca_file: config.ca_file.clone(), client: config.certificate.clone() };
    let stream = StreamLimits {
        max_age: config.stream_max_age,
        max_bytes: i64::try_from(config.stream_max_bytes).unwrap_or(i64::MAX),
        replicas: config.stream_replicas.map(usize::from),
    };
    let options = NatsOptions {
        login,
        tls,
        name: name.to_owned(),
        prefix: config.subject_prefix.clone(),
        ask_timeout: ASK_TIMEOUT,
        stream,
        ..NatsOptions::new(servers)
    };
    Nats::connect(options).await
}

/// NATS, as something that may be away; `meaning` is what follows from that.
pub fn nats_dependency(nats: Nats, meaning: &str) -> Dependency {
    let is_up = move || {
        let health = nats.health();
        health.control.up && health.bulk.up
    };
    Dependency {
        away: format!("NATS does not answer: {meaning}"),
        back: "NATS answers again".to_owned(),
        is_up: Box::new(is_up),
    }
}

/// Redis, as something that may be away; `meaning` is what follows from that.
pub fn redis_dependency(redis: Arc<LateRedis>, meaning: &str) -> Dependency {
    Dependency {
        away: format!("Redis does not answer: {meaning}"),
        back: "Redis answers again".to_owned(),
        is_up: Box::new(move || redis.is_connected()),
    }
}

/// What a process does with what is kept in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It reads what a coordinator writes.
    Follows,
    /// It may lead, as one of several that share NATS.
    Leads,
    /// It leads, and nobody else may.
    LeadsAlone,
}

/// Connects to Redis, however long it takes; from then on `store` answers. An error that waiting does not mend ends it,
/// and so does `stop`.
pub async fn reach_redis(
    store: &LateRedis,
    config: &Redis,
    part: Part,
    stop: &CancellationToken,
) -> io::Result<()> {
    let settings = Settings {
        founds: part != Part::Follows,
        prefix: config.key_prefix.clone(),
        timeout: REDIS_TIMEOUT,
        ca: config.ca_file.clone(),
        ..Settings::new(config.url.expose())
    };
    let mut complained: Option<tokio::time::Instant> = None;
    loop {
        let error = match connect(&settings, part).await {
            Ok(Some(redis)) => {
                store.arrive(redis);
                return Ok(());
            }
            Ok(None) => {
                return Err(io::Error::other(format!(
                    "redis_url: another process keeps its state under the prefix {}; set nats_url to run several, or \
                     another redis_key_prefix",
                    config.key_prefix
                )));
            }
            Err(error @ StoreError::Unreachable(_)) => error,
            Err(error) => return Err(io::Error::other(format!("redis_url: {error}"))),
        };
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            complained = Some(tokio::time::Instant::now());
            tracing::warn!(%error, "waiting for Redis: this process is not ready before it answers");
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Runs a program while a server is being reached. An error on the way there ends it.
pub async fn meanwhile<T>(
    reaching: impl Future<Output = io::Result<()>>,
    run: impl Future<Output = T>,
) -> io::Result<T> {
    let mut run = std::pin::pin!(run);
    tokio::select! {
        biased;
        ended = &mut run => return Ok(ended),
        reached = reaching => reached?,
    }
    Ok(run.await)
}

/// `None`: somebody else is there.
async fn connect(settings: &Settings, part: Part) -> Result<Option<RedisStore>, StoreError> {
    let store = RedisStore::connect(settings).await?;
    let taken = part == Part::LeadsAlone && is_led_by_another(&store).await?;
    Ok((!taken).then_some(store))
}

/// Whether another process leads on this store, and goes on doing so.
async fn is_led_by_another(store: &dyn StateStore) -> Result<bool, StoreError> {
    let claim =
        Claim { holder: ReplicaId::new("a newcomer"), ttl: Duration::ZERO, epoch: 0, above: 0, clock: None };
    let until = tokio::time::Instant::now() + LAPSE;
    loop {
        let Lead::Theirs { left, .. } = store.lead(&claim).await? else { return Ok(false) };
        let next = tokio::time::Instant::now() + left;
        if next > until {
            return Ok(true);
        }
        tokio::time::sleep_until(next).await;
    }
}
