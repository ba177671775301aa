//! The one schema that every program reads, as domain types: what is in here has been validated.

mod alerts;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use keyfleet_core::id::{Group as GroupName, KeyId, Model, ProjectId};

pub use alerts::{Alerts, Receiver, SigningKey, Wire};

/// A secret of the configuration: compares, hashes and exposes, but never prints.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that must send or compare it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The whole configuration of a deployment.
#[derive(Debug, Clone)]
pub struct Config {
    /// The listener, its clients and its limits.
    pub server: Server,
    /// Groups of keys, in the order of the file.
    pub groups: Vec<Group>,
    /// Projects by id, every project that a key names included.
    pub projects: BTreeMap<ProjectId, Project>,
    /// Retries and what a failure means.
    pub failure: Failure,
    /// Limit per client or address; `None`: unlimited.
    pub rate_limit: Option<RateLimit>,
    /// The prober.
    pub monitoring: Monitoring,
    /// `alerts`
    pub alerts: Alerts,
    /// Models to try when one is exhausted or its breaker is open.
    pub fallbacks: BTreeMap<Model, Vec<Model>>,
    /// `limits` of every project; those of a project and of its group come first: see [`Config::limit_rules`].
    pub limits: Vec<LimitRule>,
    /// How quotas are kept.
    pub quota: Quota,
    /// `nats_url` and `nats`; `None`: one process, which is its own coordinator. Never without `redis`.
    pub nats: Option<Nats>,
    /// `redis_url`, `redis` and `redis_key_prefix`; `None`: the state is in `server.state_file`.
    pub redis: Option<Redis>,
    /// The listener of the coordinator.
    pub coordinator: Coordinator,
    /// Where traces go, unless the standard's variables say otherwise.
    pub telemetry: Telemetry,
}

/// `server`
#[derive(Debug, Clone)]
pub struct Server {
    /// `host`, default 127.0.0.1
    pub host: String,
    /// `port`, default 4806
    pub port: u16,
    /// `ops_port`: metrics, readiness and details on a listener of their own
    pub ops_port: Option<u16>,
    /// `clients`; empty: anybody may call
    pub clients: Vec<Client>,
    /// `trusted_proxies`: networks whose `X-Forwarded-For` counts
    pub trusted_proxies: Vec<IpNet>,
    /// `top_p`: injected into chat completions that carry none
    pub top_p: Option<f64>,
    /// `admin_token`
    pub admin_token: Option<Secret>,
    /// `connect_timeout_secs`, default 10
    pub connect_timeout: Duration,
    /// `request_timeout_secs`: until the first byte of the answer, default 600
    pub request_timeout: Duration,
    /// `idle_timeout_secs`: silence inside an answer that has begun, default 300
    pub idle_timeout: Duration,
    /// `max_wait_ms`: how long a request may wait for a key, default 0
    pub max_wait: Duration,
    /// `drain_timeout_secs`, default 300
    pub drain_timeout: Duration,
    /// `max_body_bytes`, default 100 MiB
    pub max_body_bytes: usize,
    /// `max_buffered_bytes` over all requests, default 512 MiB
    pub max_buffered_bytes: usize,
    /// `stream_heartbeat_secs`: SSE comments in silences, default off
    pub stream_heartbeat: Option<Duration>,
    /// `session_affinity`, default off
    pub session_affinity: SessionAffinity,
    /// `cors_allowed_origins`: browser origins, `*` for any; empty: CORS off
    pub cors_allowed_origins: Vec<String>,
    /// `state_file`, resolved against the file's folder; `None`: off
    pub state_file: Option<PathBuf>,
}

/// Whether the requests of one conversation stay on one project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAffinity {
    /// Every request chooses anew.
    Off,
    /// Those with an `x-keyfleet-session` header stay.
    Header,
    /// As `Header`; without one, a hash of the leading messages decides.
    Conversation,
}

/// One entry of `server.clients`.
#[derive(Debug, Clone)]
pub struct Client {
    /// Shown in logs.
    pub name: String,
    /// What the client presents.
    pub token: Secret,
}

/// A network in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNet {
    /// The network's address.
    pub addr: IpAddr,
    /// How many leading bits count.
    pub prefix: u8,
}

/// `groups[]`
#[derive(Debug, Clone)]
pub struct Group {
    /// `name`, unique
    pub name: GroupName,
    /// `api_keys` and those of `api_keys_file`
    pub keys: Vec<Key>,
    /// `target_url`: the OpenAI-compatible base, always ending in `/`
    pub target_url: String,
    /// `proxy_url`: http, https or socks5, may hold credentials
    pub proxy_url: Option<Secret>,
    /// `model_aliases`: what the client calls it → what the upstream calls it
    pub model_aliases: BTreeMap<Model, Model>,
    /// `models`: patterns with `*`; empty: all
    pub models: Vec<String>,
    /// `priority`: lower is tried first, default 0
    pub priority: u32,
    /// `weight`: share of traffic among groups of one priority, default 1
    pub weight: u32,
    /// `limits` of each project that has a key in the group
    pub limits: Vec<LimitRule>,
}

/// One key of a group.
#[derive(Debug, Clone)]
pub struct Key {
    /// `id`, default a fingerprint of the secret
    pub id: KeyId,
    /// `key`
    pub secret: Secret,
    /// `project`, default one of its own
    pub project: ProjectId,
    /// `weight` within the group, default 1
    pub weight: u32,
    /// `auth_mode` of the key, else of its group, default `Auto`
    pub auth_mode: AuthMode,
    /// `proxy_url` of the key, else of its group
    pub proxy_url: Option<Secret>,
}

/// How a credential is presented to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// Bearer on the compat surface, `x-goog-api-key` on the native one.
    Auto,
    /// Always `Authorization: Bearer`.
    Bearer,
    /// Always `x-goog-api-key`.
    ApiKey,
}

/// `projects[]`
#[derive(Debug, Clone, Default)]
pub struct Project {
    /// `billing_account`: projects that run dry together
    pub billing_account: Option<String>,
    /// `limits`, before those of the groups
    pub limits: Vec<LimitRule>,
    /// The groups with a key of the project, as indices into [`Config::groups`].
    pub groups: Vec<usize>,
}

/// One entry of `limits`: what the upstream allows one project for each model that a pattern covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitRule {
    /// `models`: patterns with `*` of what the upstream calls them, default all
    pub models: Vec<String>,
    /// `rpm`: requests per minute
    pub rpm: Option<u64>,
    /// `tpm`: input tokens per minute
    pub tpm: Option<u64>,
    /// `rpd`: requests per day, until midnight Pacific time
    pub rpd: Option<u64>,
}

/// Top-level options that say what a failure means.
#[derive(Debug, Clone)]
pub struct Failure {
    /// `internal_retries`: transient errors per request, default 2
    pub internal_retries: u32,
    /// `max_failures_threshold`: consecutive failures charged to one key before it is blocked, default 3
    pub max_failures: u32,
    /// `temporary_block_minutes`, default 5
    pub temporary_block: Duration,
    /// `rate_limit_behavior`
    pub bare_429: Bare429,
    /// `circuit_breaker.failure_threshold`, default 5
    pub breaker_failures: u32,
    /// `circuit_breaker.success_threshold`, default 1
    pub breaker_successes: u32,
    /// `circuit_breaker.recovery_timeout_secs`, default 2
    pub breaker_recovery: Duration,
}

/// `rate_limit_behavior`: what a 429 without any detail does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare429 {
    /// An escalating cooldown, the default.
    RetryNextKey,
    /// Out until Pacific midnight.
    BlockUntilMidnight,
}

/// `rate_limit`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// `requests_per_minute`: of a named client by all gateways together, of an address by each for itself
    pub requests_per_minute: u32,
    /// `burst_size`: how many of them at once, by each gateway for itself; default `requests_per_minute`
    pub burst_size: u32,
}

/// `monitoring`
#[derive(Debug, Clone)]
pub struct Monitoring {
    /// `health_check_interval_secs`, default 30
    pub health_check_interval: Duration,
}

/// `quota`
#[derive(Debug, Clone, PartialEq)]
pub struct Quota {
    /// `when_unleased` for limits of the configuration, default `Closed`
    pub configured: WhenUnleased,
    /// `when_unleased` for limits that were learned from the upstream, default `Open`
    pub learned: WhenUnleased,
    /// `lease_wait_ms`: how long a request may wait for leases, all together, default 50
    pub lease_wait: Duration,
    /// `max_replicas`: how many gateways share what `Reserve` holds back, default 10
    pub max_replicas: u32,
    /// `learn_limits`: take the limits that a 429 states for true, default yes
    pub learn_limits: bool,
}

/// What a gateway does about a limit while it can get no lease on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WhenUnleased {
    /// Admits nothing: the limit is kept, whatever that costs.
    Closed,
    /// Admits everything: the upstream may refuse.
    Open,
    /// Admits this share of the limit over all replicas, which is never leased: from 0.01 to 0.9.
    Reserve(f64),
}

impl WhenUnleased {
    /// What of a limit is never leased, in thousandths.
    pub fn reserve_permille(self) -> u64 {
        match self {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share between 0 and 1"
            )]
            Self::Reserve(share) => (share * 1_000.0).round() as u64,
            Self::Closed | Self::Open => 0,
        }
    }
}

/// `nats_url` and `nats`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// `nats_url`: nats:// or tls:// each, may hold credentials, the same in all
    pub servers: Vec<Secret>,
    /// Who we are, unless the URLs say it.
    pub login: NatsLogin,
    /// `ca_file`: the only authorities to trust
    pub ca_file: Option<PathBuf>,
    /// `cert_file` and `key_file`
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// `subject_prefix`: words joined by dots; empty: none
    pub subject_prefix: String,
    /// `stream_max_age_hours`, default 2
    pub stream_max_age: Duration,
    /// `stream_max_bytes`, default 1 GiB
    pub stream_max_bytes: u64,
    /// `stream_replicas`; `None`: three in a cluster of three or more, else one
    pub stream_replicas: Option<u8>,
}

/// How to log in at NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsLogin {
    /// As the URLs say, if they do.
    OfUrl,
    /// `user` and `password`
    Password {
        /// `user`
        user: String,
        /// `password`
        password: Secret,
    },
    /// `token`
    Token(Secret),
    /// `nkey_seed`
    Nkey(Secret),
    /// `creds_file`
    Credentials(PathBuf),
}

/// `redis_url`, `redis` and `redis_key_prefix`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// `redis_url` with `redis.username` and `redis.password` in it: redis, redis-sentinel or redis-cluster, or with
    /// rediss for TLS
    pub url: Secret,
    /// `redis.ca_file`: the only authorities to trust
    pub ca_file: Option<PathBuf>,
    /// `redis_key_prefix`, default `keyfleet`
    pub key_prefix: String,
}

/// `coordinator`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    /// `host`, default that of the gateway
    pub host: String,
    /// `port`, default 4807
    pub port: u16,
}

/// `telemetry`
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// `endpoint`: the base of an OTLP collector, may hold credentials; `None`: no traces
    pub endpoint: Option<Secret>,
    /// `protocol`, default `Http`
    pub protocol: OtlpProtocol,
    /// `metrics`: export them as well, default no
    pub metrics: bool,
    /// `sampling_ratio` of traces that begin here, default 1
    pub sampling_ratio: f64,
    /// `propagate_upstream`: tell the upstream which trace an attempt is part of, default no
    pub propagate_upstream: bool,
}

impl Telemetry {
    /// Whether a process that started with `other` traces as this says. What is told to the upstream changes at once.
    pub fn traces_as(&self, other: &Self) -> bool {
        Self { propagate_upstream: other.propagate_upstream, ..self.clone() } == *other
    }
}

/// How spans and metrics travel to the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// OTLP over HTTP, as protobuf.
    Http,
    /// OTLP over gRPC.
    Grpc,
}
