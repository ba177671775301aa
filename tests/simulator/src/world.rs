//! The pool, the quotas, the answers and the latency of one simulated Gemini, as data.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::files::FileSpec;
use crate::jobs::JobSpec;

/// Everything a simulator is started with. Each field has a default, so a test names only what matters to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct World {
    /// Where to listen; a free port of 127.0.0.1 when absent.
    pub listen: Option<SocketAddr>,
    /// Whether to speak HTTPS, with a certificate made at start, and HTTP/2 to those who offer it.
    pub tls: bool,
    /// Seeds every random draw: latencies, probabilities, ids.
    pub seed: u64,
    /// The length of the "minute" of RPM and TPM, so that tests can use short windows.
    pub window_ms: u64,
    /// The projects. One that a key names but that is not listed exists with every default and no limits.
    pub projects: Vec<Project>,
    /// The keys.
    pub keys: Vec<Key>,
    /// The models.
    pub models: Vec<Model>,
    /// What a successful generation says.
    pub answer: AnswerSpec,
    /// How long a generation takes.
    pub latency: Latency,
    /// How quota is enforced and reported.
    pub quota: QuotaSpec,
    /// How long batches and other long-running work take.
    pub jobs: JobSpec,
    /// How large files may be, and how long they take to be ready.
    pub files: FileSpec,
    /// The largest body of a generation. 20 MiB by the messages seen, 100 MiB by the documentation since.
    pub inline_bytes: usize,
    /// The parts of the authentication table that Google has changed back and forth.
    pub auth: AuthSpec,
    /// Whether requests are logged.
    pub log: bool,
    /// How many requests the log holds; the oldest go first.
    pub log_capacity: usize,
    /// Whether the log keeps the text of request bodies, not only their hash.
    pub log_bodies: bool,
}

impl Default for World {
    fn default() -> Self {
        let text = |id: &str| Model { id: id.into(), ..Model::default() };
        let embedding = |id: &str| Model { id: id.into(), embedding: true, ..Model::default() };
        Self {
            listen: None,
            tls: false,
            seed: 1,
            window_ms: 60_000,
            projects: Vec::new(),
            keys: Vec::new(),
            models: vec![
                text("gemini-2.5-flash"),
                text("gemini-2.5-flash-lite"),
                text("gemini-2.5-pro"),
                text("gemini-3.1-flash-lite"),
                text("gemini-3.1-pro-preview"),
                text("gemini-3.5-flash"),
                text("gemini-3.5-flash-lite"),
                text("gemini-3.8-flash"),
                text("gemini-4-carbon"),
                embedding("gemini-embedding-001"),
            ],
            answer: AnswerSpec::default(),
            latency: Latency::Zero,
            quota: QuotaSpec::default(),
            jobs: JobSpec::default(),
            files: FileSpec::default(),
            inline_bytes: 100 * 1024 * 1024,
            auth: AuthSpec::default(),
            log: true,
            log_capacity: 100_000,
            log_bodies: false,
        }
    }
}

impl World {
    /// `projects` projects named `p1..`, each with `keys_per_project` keys, named `k1..` across the pool; no limits.
    pub fn pool(projects: usize, keys_per_project: usize) -> Self {
        let mut world = Self::default();
        for project in 1..=projects {
            world.projects.push(Project { id: format!("p{project}"), ..Project::default() });
            for _ in 0..keys_per_project {
                let id = format!("k{}", world.keys.len() + 1);
                world.keys.push(Key::new(&id, &format!("p{project}")));
            }
        }
        world
    }

    /// The same limits for every model of every project listed.
    #[must_use]
    pub fn limited(mut self, limit: &Limit) -> Self {
        for project in &mut self.projects {
            project.limits = vec![limit.clone()];
        }
        self
    }

    /// A small pool for people who look: four projects that serve, two keys in one of them, one dead key, and
    /// limits like those of the free tier, low enough that rotation shows.
    pub fn demo() -> Self {
        let limits = vec![Limit { model: "*".into(), rpm: Some(10), tpm: Some(250_000), rpd: Some(250) }];
        let project = |id: &str| Project { id: id.into(), limits: limits.clone(), ..Project::default() };
        let dead = Key { state: KeyState::Invalid, ..Key::new("demo-echo-1", "echo") };
        Self {
            projects: ["atlas", "borealis", "cygnus", "draco", "echo"].map(project).to_vec(),
            keys: vec![
                Key::new("demo-atlas-1", "atlas"),
                Key::new("demo-atlas-2", "atlas"),
                Key::new("demo-borealis-1", "borealis"),
                Key::new("demo-cygnus-1", "cygnus"),
                Key::new("demo-draco-1", "draco"),
                dead,
            ],
            answer: AnswerSpec {
                chunks: 8,
                text: "Hello! This answer comes from the Gemini simulator that is part of Keyfleet: no real key \
                       and no network was needed. Ask again and watch another key of the pool answer."
                    .into(),
                ..AnswerSpec::default()
            },
            latency: Latency::Fixed { ttft_ms: 250, gap_ms: 60 },
            log_capacity: 10_000,
            ..Self::default()
        }
    }

    /// A configuration with which a gateway uses these keys through the compat base `target_url`.
    pub fn gateway_config(&self, target_url: &str) -> String {
        let mut text = format!("groups:\n- name: simulator\n  target_url: {target_url:?}\n  api_keys:\n");
        for Key { id, secret, project, .. } in &self.keys {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  - {{id: {id:?}, key: {secret:?}, project: {project:?}}}");
        }
        text
    }

    /// The secrets of all keys, in their order.
    pub fn secrets(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.secret.clone()).collect()
    }
}

/// A Google Cloud project: the owner of quota, files and billing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Project {
    /// Its name in rules and in the log.
    pub id: String,
    /// The project number that 403 bodies show; derived from the position when 0.
    pub number: u64,
    /// Which account pays; `billing_cap` of one project concerns all that share it.
    pub billing_account: Option<String>,
    /// Its standing.
    pub state: ProjectState,
    /// Whether Google serves the place that its calls come from; if not: 400 "User location is not supported".
    pub egress_ok: bool,
    /// Whether quota violations carry the paid tier's metric names.
    pub paid: bool,
    /// Limits by model; an exact model wins over `*`. No entry: no limit.
    pub limits: Vec<Limit>,
    /// Input tokens per window of all models together, as the free tier has been seen to count them.
    pub shared_tpm: Option<u64>,
    /// What may be spent in any ten minutes. Google counts dollars; here every token costs one.
    pub spend_limit: Option<u64>,
}

impl Default for Project {
    fn default() -> Self {
        Self {
            id: String::new(),
            number: 0,
            billing_account: None,
            state: ProjectState::Ok,
            egress_ok: true,
            paid: false,
            limits: Vec::new(),
            shared_tpm: None,
            spend_limit: None,
        }
    }
}

/// The standing of a project.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectState {
    /// In good standing.
    #[default]
    Ok,
    /// 403 `CONSUMER_SUSPENDED`, with the secret in the body.
    Suspended,
    /// 403 "Your project has been denied access".
    Denied,
    /// 403 `SERVICE_DISABLED`.
    ServiceDisabled,
    /// 429 "prepayment credits are depleted".
    PrepayDepleted,
    /// 429 project spending cap.
    SpendingCap,
    /// 429 spending cap of the billing account, for every project of the account.
    BillingCap,
}

/// The limits of one project for one model (or `*`). Absent: unlimited. Zero: the model is not in this tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limit {
    /// A model id, or `*` for each model that has no entry of its own. Every model has its own bucket. What is created
    /// in batches is limited only by `MODEL:batch`, or `batches:create` when the compatible surface begins it.
    pub model: String,
    /// Requests per window.
    pub rpm: Option<u64>,
    /// Input tokens per window.
    pub tpm: Option<u64>,
    /// Requests per Pacific day.
    pub rpd: Option<u64>,
}

impl Limit {
    /// `rpm` requests per window for every model, and nothing else limited.
    pub fn rpm(rpm: u64) -> Self {
        Self { model: "*".into(), rpm: Some(rpm), ..Self::default() }
    }
}

/// An API key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Key {
    /// Its name in rules and in the log.
    pub id: String,
    /// What a caller sends.
    pub secret: String,
    /// The project it belongs to.
    pub project: String,
    /// Its standing.
    pub state: KeyState,
    /// Models that this key alone may not use.
    pub models_not_available: Vec<String>,
}

impl Key {
    /// A good key whose secret has the length and the look of a standard key and is made from `id`.
    pub fn new(id: &str, project: &str) -> Self {
        let tail: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        Self {
            id: id.into(),
            secret: format!("AIzaSy{tail:_>33}"),
            project: project.into(),
            ..Self::default()
        }
    }
}

/// The standing of a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// In good standing.
    #[default]
    Ok,
    /// 400 `API_KEY_INVALID` "API key not valid".
    Invalid,
    /// 400 `API_KEY_INVALID` "API Key not found".
    NotFound,
    /// 400 `API_KEY_INVALID` "API key expired".
    Expired,
    /// 403 "reported as leaked".
    Leaked,
    /// 403 `API_KEY_SERVICE_BLOCKED`.
    ServiceBlocked,
    /// 403 `API_KEY_HTTP_REFERRER_BLOCKED`.
    ReferrerBlocked,
    /// 403 `API_KEY_IP_ADDRESS_BLOCKED`.
    IpBlocked,
    /// 401 `CREDENTIALS_MISSING`: what unrestricted standard keys get.
    UnrestrictedStandard,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Its id, without `models/`.
    pub id: String,
    /// Whether it embeds rather than generates.
    pub embedding: bool,
    /// The length of its vectors unless the request asks for another.
    pub dimensions: usize,
    /// The most input tokens it takes.
    pub input_token_limit: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self { id: String::new(), embedding: false, dimensions: 768, input_token_limit: 1_048_576 }
    }
}

/// What a successful generation says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerSpec {
    /// Text chunks of a stream.
    pub chunks: usize,
    /// Tokens that usage counts for each chunk.
    pub tokens_per_chunk: u64,
    /// Bytes of generated text in each chunk; 0 means four per token.
    pub chunk_bytes: usize,
    /// Whether the model thinks: thought tokens in the total, thought summaries when asked for.
    pub thinking: bool,
    /// A text to say instead of generated words; split evenly over the chunks.
    pub text: String,
    /// Bytes of generated text of an answer that is not streamed; 0 means the same text as the stream.
    pub plain_bytes: usize,
    /// Whether every tool of the request is called, not only the first.
    pub parallel_tools: bool,
}

impl Default for AnswerSpec {
    fn default() -> Self {
        Self {
            chunks: 5,
            tokens_per_chunk: 12,
            chunk_bytes: 0,
            thinking: false,
            text: String::new(),
            plain_bytes: 0,
            parallel_tools: false,
        }
    }
}

/// How long a generation takes, in real time whatever the virtual clock says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    /// As fast as it can.
    #[default]
    Zero,
    /// The same every time.
    Fixed {
        /// To the first token.
        ttft_ms: u64,
        /// Between chunks.
        gap_ms: u64,
    },
    /// Log-normal times to first token and gaps with rare stalls, as measured from outside.
    Realistic,
}

/// How quota is enforced and reported.
#[expect(clippy::struct_excessive_bools, reason = "independent switches of what a 429 body leaves out")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaSpec {
    /// The shape of the minute.
    pub mode: QuotaMode,
    /// A 429 without any detail.
    pub omit_details: bool,
    /// No `RetryInfo`.
    pub omit_retry_info: bool,
    /// No `quotaValue`.
    pub omit_quota_value: bool,
    /// Every violation reports `limit: 0`.
    pub limit_zero: bool,
    /// Every `retryDelay` is `0s`.
    pub retry_delay_zero: bool,
    /// Every `retryDelay` has nine decimals.
    pub retry_delay_fine: bool,
    /// The details come in a random order.
    pub shuffle_details: bool,
    /// Whether a rejected request counts against RPM.
    pub count_rejected: bool,
}

/// The shape of the minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaMode {
    /// A window that begins with the bucket's first request and is followed by the next request's own.
    #[default]
    Fixed,
    /// A bucket that refills evenly and holds one window's worth.
    TokenBucket,
}

/// The parts of the authentication table on which reports conflict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthSpec {
    /// Whether `x-goog-api-key` alone is enough on the compatible surface.
    pub goog_header_on_compat: bool,
    /// Whether a Bearer `AQ.` key alone is refused there as "Multiple authentication credentials".
    pub reject_auth_keys_on_compat: bool,
}
