//! From the configuration to NATS and Redis.

use std::io;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_fabric::bus::nats::{Login, NatsOptions, NatsTls, OptionsError, StreamLimits};
use keyfleet_fabric::bus::{local, nats::Nats};
use keyfleet_fabric::store::redis::{RedisStore, Settings};
use keyfleet_fabric::store::{Claim, Lead, StateStore, StoreError};

use tokio_util::sync::CancellationToken;

use crate::config::{Nats as NatsConfig, NatsLogin, Redis};

/// How long a question to the coordinator waits for its answer.
pub const ASK_TIMEOUT: Duration = Duration::from_millis(250);
/// After this a command to Redis counts as lost.
const REDIS_TIMEOUT: Duration = Duration::from_millis(500);
/// Before Redis is tried again.
const RETRY: Duration = Duration::from_secs(1);
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

/// Connects to Redis, however long it takes; an error that waiting does not mend, or `stop`, ends it. One that
/// `leads` writes down what all have to agree on.
pub async fn redis(config: &Redis, leads: bool, stop: &CancellationToken) -> io::Result<RedisStore> {
    let settings = Settings {
        founds: leads,
        prefix: config.key_prefix.clone(),
        timeout: REDIS_TIMEOUT,
        ca: config.ca_file.clone(),
        ..Settings::new(config.url.expose())
    };
    loop {
        match RedisStore::connect(&settings).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Unreachable(_)) => {
                tracing::warn!(%error, "waiting for Redis");
                tokio::select! {
                    () = stop.cancelled() => return Err(io::Error::other("stopped before Redis answered")),
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
            Err(error) => return Err(io::Error::other(format!("redis_url: {error}"))),
        }
    }
}

/// Whether another process leads on this store, and goes on doing so.
pub async fn is_led_by_another(store: &dyn StateStore) -> Result<bool, StoreError> {
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
