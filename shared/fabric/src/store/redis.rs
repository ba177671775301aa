//! The store of many processes: Redis, alone, behind Sentinel, or as a cluster.
//!
//! Every call is one script (`scripts.rs`), so that it is one atomic step, also for somebody who comes back after a
//! pause: what fences him is checked where it is written. All keys of a partition carry its number as hash tag.
//!
//! A call that times out may have been done or not. The client never repeats one by itself, and one that still
//! waits for a connection when its time is up is never sent.

mod connect;
mod late;
mod reply;

use super::scripts::Scripts;
use super::{Claim, KEEP, Lead, StateStore, StoreError, chain};
use async_trait::async_trait;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, HashesInterface as _, LuaInterface as _};
use fred::types::config::Options;
use fred::types::scripts::Script;
use fred::types::{ConnectHandle, Value};
use keyfleet_core::id::ReplicaId;
use keyfleet_core::message::Delta;
use keyfleet_core::owner::Partition;
use keyfleet_core::state::{Commit, Entry, Image, Table};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use late::LateRedis;
use reply::{Reply, strange, text};

/// Reading everything takes longer than writing a little; this many times.
const BULK: u32 = 10;

/// The field that says into how many partitions state is divided.
const PARTITIONS: &str = "partitions";

/// How to reach a Redis, and under which names to keep things there.
#[derive(Clone)]
pub struct Settings {
    /// `redis://`, `redis-sentinel://`, `redis-cluster://`, or with `rediss` for TLS.
    pub url: String,
    /// Before every key. A colon at its end makes no difference.
    pub prefix: String,
    /// Which partition, of how many. Whoever divides the state otherwise would look for it in other places.
    pub partition: Partition,
    /// Writes down into how many the state is divided where nobody has: for those who lead.
    pub founds: bool,
    /// After this a command counts as lost; reading everything may take ten times as long.
    pub timeout: Duration,
    /// A file of certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// How many decisions are kept at least.
    pub keep: usize,
}

impl Settings {
    /// Usual ones.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            prefix: "keyfleet".to_owned(),
            partition: Partition::default(),
            founds: false,
            timeout: Duration::from_millis(500),
            ca: None,
            keep: KEEP,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Settings")
            .field("prefix", &self.prefix)
            .field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}

/// A [`StateStore`] in Redis.
pub struct RedisStore {
    client: Client,
    connection: ConnectHandle,
    scripts: Scripts,
    keys: Keys,
    timeout: Duration,
    keep: usize,
}

struct Keys {
    lock: String,
    meta: String,
    heard: String,
    out: String,
    tables: [String; Table::ALL.len()],
    /// What holds for all partitions.
    common: String,
}

impl Keys {
    fn new(prefix: &str, partition: Partition) -> Result<Self, StoreError> {
        if prefix.contains(['{', '}']) {
            return Err(StoreError::Misconfigured(
                "the prefix of Redis keys contains a brace, which would scatter them over a cluster"
                    .to_owned(),
            ));
        }
        let prefix = prefix.trim_end_matches(':');
        let colon = if prefix.is_empty() { "" } else { ":" };
        let number = partition.number;
        let key = |name: &str| format!("{prefix}{colon}v1:{{{number}}}:{name}");
        Ok(Self {
            lock: key("lock"),
            meta: key("meta"),
            heard: key("heard"),
            out: key("out"),
            tables: Table::ALL.map(|table| key(table.as_str())),
            common: format!("{prefix}{colon}v1:meta"),
        })
    }

    fn table(&self, wanted: Table) -> Option<&str> {
        Table::ALL.iter().zip(&self.tables).find(|(table, _)| **table == wanted).map(|(_, key)| key.as_str())
    }
}

impl RedisStore {
    /// Connects, and checks that the server never evicts what it is given to keep, and that its state is divided as
    /// ours.
    ///
    /// [`StoreError::Unreachable`] can be tried again; after [`StoreError::Misconfigured`] somebody has to act.
    pub async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        let keys = Keys::new(&settings.prefix, settings.partition)?;
        let client = connect::client(settings)?;
        let connection = tokio::time::timeout(settings.timeout * BULK, client.init())
            .await
            .map_err(|_| StoreError::Unreachable("no connection in time".to_owned()))?
            .map_err(|error| failed(&error))?;
        let store = Self {
            client,
            connection,
            scripts: Scripts::new(),
            keys,
            timeout: settings.timeout,
            keep: settings.keep,
        };
        store.check_partitions(settings).await?;
        let info = store.info().await?;
        match field(&info, "maxmemory_policy") {
            Some("noeviction") => Ok(store),
            Some(policy) => Err(StoreError::Misconfigured(format!(
                "Redis evicts keys when its memory is full (maxmemory-policy {policy}), and with them quotas that \
                 are in use; set it: CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
            ))),
            None => {
                tracing::warn!(
                    "Redis does not tell its maxmemory-policy: make sure that it is noeviction, or quotas that are \
                     in use can be forgotten"
                );
                Ok(store)
            }
        }
    }

    async fn check_partitions(
        &self,
        Settings { partition, founds, .. }: &Settings,
    ) -> Result<(), StoreError> {
        let partitions = partition.of;
        let key = &self.keys.common;
        if *founds {
            let set = self.client.hsetnx::<bool, _, _, _>(key, PARTITIONS, partitions.to_string()).await;
            set.map_err(|error| failed(&error))?;
        }
        let stored: Option<String> =
            self.client.hget(key, PARTITIONS).await.map_err(|error| failed(&error))?;
        match stored {
            Some(stored) if stored != partitions.to_string() => Err(StoreError::Misconfigured(format!(
                "its state is divided into {stored} partitions ({PARTITIONS} of {key}), and this release divides it \
                 into {partitions}: use the release that wrote it, or another redis_key_prefix"
            ))),
            _ => Ok(()),
        }
    }

    /// Disconnects.
    pub async fn close(&self) {
        if let Err(error) = self.client.quit().await {
            tracing::debug!(%error, "Redis did not say goodbye");
        }
    }

    async fn info(&self) -> Result<String, StoreError> {
        let reply =
            self.run(&self.scripts.info, vec![self.keys.meta.clone()], Vec::new(), self.timeout).await?;
        Ok(Reply::new(reply)?.texts()?.join("\n"))
    }

    async fn run(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Value>,
        within: Duration,
    ) -> Result<Value, StoreError> {
        let begun = Instant::now();
        let limited = |timeout| {
            self.client.with_options(&Options {
                timeout: Some(timeout),
                max_attempts: Some(1),
                ..Options::default()
            })
        };
        match limited(within)
            .evalsha::<Value, _, _, _>(script.sha1().clone(), keys.clone(), args.clone())
            .await
        {
            // A restart or another server: nothing was run yet. This runs the script and leaves it there.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                let lua = script.lua().cloned().unwrap_or_default();
                let left = within.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
                limited(left).eval(lua, keys, args).await
            }
            done => done,
        }
        .map_err(|error| failed(&error))
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("meta", &self.keys.meta).finish_non_exhaustive()
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[async_trait]
impl StateStore for RedisStore {
    async fn lead(&self, claim: &Claim) -> Result<Lead, StoreError> {
        let (time, at) = claim
            .clock
            .map(|(time, at)| (time.as_ms().to_string(), at.as_ms().to_string()))
            .unwrap_or_default();
        let args = vec![
            claim.holder.as_str().into(),
            number(u64::try_from(claim.ttl.as_millis()).unwrap_or(u64::MAX)),
            number(claim.epoch),
            number(claim.above),
            time.into(),
            at.into(),
        ];
        let keys = vec![self.keys.lock.clone(), self.keys.meta.clone()];
        let reply = self.run(&self.scripts.lead, keys, args, self.timeout).await?;
        let mut reply = Reply::new(reply)?;
        match reply.text()?.as_str() {
            "mine" => Ok(Lead::Mine(reply.meta()?)),
            "theirs" => Ok(Lead::Theirs {
                holder: ReplicaId::new(reply.text()?),
                epoch: reply.number()?,
                left: Duration::from_millis(reply.number()?),
            }),
            "nobody" => Ok(Lead::Nobody),
            "spent" => Err(StoreError::Damaged("there is no higher epoch".to_owned())),
            other => Err(strange(other)),
        }
    }

    async fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        let mut keys = vec![self.keys.meta.clone(), self.keys.heard.clone(), self.keys.out.clone()];
        keys.extend(self.keys.tables.iter().cloned());
        let args = commit_args(commit, self.keep)?;
        let reply = self.run(&self.scripts.commit, keys, args, self.timeout).await?;
        let mut reply = Reply::new(reply)?;
        match reply.text()?.as_str() {
            "done" => Ok(()),
            "fenced" => Err(StoreError::Fenced { stored: reply.number()? }),
            "conflict" => Err(StoreError::Conflict(Box::new(reply.meta()?))),
            other => Err(strange(other)),
        }
    }

    async fn load(&self) -> Result<Image, StoreError> {
        let mut keys = vec![self.keys.meta.clone(), self.keys.heard.clone()];
        keys.extend(self.keys.tables.iter().cloned());
        let reply = self.run(&self.scripts.load, keys, Vec::new(), self.timeout * BULK).await?;
        let mut reply = Reply::new(reply)?;
        let mut image = Image { meta: reply.list()?.meta()?, ..Image::default() };
        for (replica, seq) in reply.list()?.pairs()? {
            image.heard.push((ReplicaId::new(replica), seq.parse().map_err(|_| strange(&seq))?));
        }
        for table in Table::ALL {
            let found = reply.list()?.pairs()?;
            image.entries.extend(found.into_iter().map(|(key, value)| Entry {
                table,
                key,
                value: Some(value),
            }));
        }
        Ok(image)
    }

    async fn since(&self, rev: u64) -> Result<Option<Vec<Delta>>, StoreError> {
        let keys = vec![self.keys.meta.clone(), self.keys.out.clone()];
        // Redis keeps somewhat more than it is told, since it drops whole blocks.
        let args = vec![number(rev), (self.keep.saturating_add(1000)).to_string().into()];
        let reply = self.run(&self.scripts.since, keys, args, self.timeout * BULK).await?;
        let mut reply = Reply::new(reply)?;
        let head = reply.number()?;
        let mut kept = Vec::new();
        for delta in reply.list()?.texts()? {
            let delta: Delta = serde_json::from_str(&delta)
                .map_err(|error| StoreError::Damaged(format!("a decision: {error}")))?;
            kept.push(delta);
        }
        Ok(chain(rev, head, kept.into_iter()))
    }

    async fn identity(&self) -> Result<String, StoreError> {
        let info = self.info().await?;
        match (field(&info, "run_id"), field(&info, "master_replid")) {
            (Some(run), Some(history)) => Ok(format!("{run}/{history}")),
            _ => Err(StoreError::Damaged("INFO without run_id and master_replid".to_owned())),
        }
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<String>, StoreError> {
        let Some(name) = self.keys.table(table) else { return Ok(None) };
        match self.client.hget::<Value, _, _>(name, key).await.map_err(|error| failed(&error))? {
            Value::Null => Ok(None),
            value => text(value).map(Some),
        }
    }
}

fn commit_args(commit: &Commit, keep: usize) -> Result<Vec<Value>, StoreError> {
    let meta = &commit.meta;
    let mut args = vec![
        number(commit.follows),
        number(meta.epoch),
        number(meta.commit),
        number(meta.rev),
        number(meta.time.as_ms()),
        meta.at.as_ms().to_string().into(),
        number(meta.cursor),
        meta.stream.as_str().into(),
        number(meta.blind_until.as_ms()),
        meta.leader.as_str().into(),
        meta.store.as_str().into(),
        meta.author.as_str().into(),
    ];
    let (rev, delta) = match &commit.delta {
        Some(delta) => (
            delta.rev.to_string(),
            serde_json::to_string(delta).map_err(|error| StoreError::Damaged(error.to_string()))?,
        ),
        None => Default::default(),
    };
    args.extend([rev.into(), delta.into(), keep.to_string().into(), commit.heard.len().to_string().into()]);
    for (replica, seq) in &commit.heard {
        args.extend([replica.as_str().into(), number(*seq)]);
    }
    // By table, and one value for each key: the last.
    let mut tables = Table::ALL.map(|table| (table, BTreeMap::new()));
    for entry in &commit.entries {
        if let Some((_, entries)) = tables.iter_mut().find(|(table, _)| *table == entry.table) {
            entries.insert(entry.key.as_str(), entry.value.as_deref());
        }
    }
    for (_, entries) in tables {
        let stored = || entries.iter().filter_map(|(key, value)| value.map(|value| (*key, value)));
        args.push(stored().count().to_string().into());
        args.extend(stored().flat_map(|(key, value)| [Value::from(key), Value::from(value)]));
        let removed = || entries.iter().filter(|(_, value)| value.is_none());
        args.push(removed().count().to_string().into());
        args.extend(removed().map(|(key, _)| Value::from(*key)));
    }
    Ok(args)
}

/// As text: Redis has no unsigned numbers of 64 bits.
fn number(n: u64) -> Value {
    n.to_string().into()
}

/// One field of what INFO tells.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

fn failed(error: &Error) -> StoreError {
    let details = error.details();
    // Inside a script, older servers say it in other words.
    if ["NOPERM", "ACL failure", "user executing the script"].iter().any(|denied| details.contains(denied)) {
        return StoreError::Misconfigured(format!(
            "{details}; grant the user of the Redis URL what is needed: \
             ACL SETUSER name ~prefix* +@connection +@read +@write +@scripting +info +cluster"
        ));
    }
    match error.kind() {
        ErrorKind::Auth => StoreError::Misconfigured(details.to_owned()),
        ErrorKind::Config | ErrorKind::Url | ErrorKind::InvalidArgument => {
            StoreError::Misconfigured(details.to_owned())
        }
        ErrorKind::Parse => StoreError::Damaged(details.to_owned()),
        kind => StoreError::Unreachable(format!("{}: {details}", kind.to_str())),
    }
}
