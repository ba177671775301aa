//! A configuration made ready for the hot path: tables instead of names, header values instead of secrets.
//!
//! A request holds one [`Live`] from beginning to end, so a reload never changes the ground under it. What a key
//! has been through is not in here but in the pool, and survives.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::{Authority, Scheme};
use keyfleet_core::block::Policy;
use keyfleet_core::gate::{Breaker, BreakerPolicy, Passage};
use keyfleet_core::id::{Egress, Host, KeyId, Model, ProjectId};
use keyfleet_core::latency::{BUCKETS, Latencies, bucket};
use keyfleet_core::quota::rules::Rules;
use keyfleet_core::select::{Lane, NoKey};
use keyfleet_core::time::Mono;
use keyfleet_service::client::{self, Client, ClientError, Trust};
use keyfleet_service::clock;
use keyfleet_service::config::{AuthMode, Config, Group, Key, Secret};
use keyfleet_service::target::native_base;
use parking_lot::Mutex;
use url::Url;

use crate::limits::Limiter;
use crate::pool::EgressState;
use crate::pool::quota::{self, Purses, Slot};
use crate::upstream::Outgoing;

/// The most open breakers that a new configuration takes over.
const MAX_OPEN: usize = 1_024;

pub(crate) type Lanes = HashMap<Model, Arc<ModelLane>, foldhash::fast::RandomState>;

/// A configuration in force.
pub(crate) struct Live {
    pub(crate) config: Arc<Config>,
    pub(crate) keys: Vec<LiveKey>,
    pub(crate) projects: Vec<ProjectId>,
    pub(crate) project_numbers: HashMap<ProjectId, u32>,
    pub(crate) groups: Vec<LiveGroup>,
    pub(crate) egresses: Vec<(Egress, Option<Secret>)>,
    pub(crate) lanes: ArcSwap<Lanes>,
    pub(crate) blocks: Policy,
    rules: Rules,
    pub(crate) breaker: BreakerPolicy,
    /// What this replica counts by itself of `rate_limit`.
    pub(crate) limiter: Option<Arc<Limiter>>,
    /// What each of `server.clients` draws from; the pool puts it in.
    pub(crate) allowances: Vec<Arc<Slot>>,
    /// Breakers that were open in the configuration before this one: a model is not well for being configured anew.
    open: Vec<OpenBreaker>,
    /// Another configuration is in force: nobody gathers the answers of this one any more.
    pub(crate) retired: AtomicBool,
    /// One HTTP client per worker and egress, made when first used.
    clients: Vec<Vec<OnceLock<Client<Outgoing>>>>,
    /// What they trust, read when the first is made.
    trust: OnceLock<Trust>,
}

/// A key.
pub(crate) struct LiveKey {
    pub(crate) id: KeyId,
    pub(crate) project: u32,
    pub(crate) group: u32,
    pub(crate) egress: u32,
    pub(crate) weight: u32,
    pub(crate) mode: AuthMode,
    pub(crate) bearer: HeaderValue,
    pub(crate) bare: HeaderValue,
}

/// A group.
pub(crate) struct LiveGroup {
    /// Where the compat surface begins.
    pub(crate) compat: Base,
    /// Where the native surface begins.
    pub(crate) native: Base,
    /// Host and port, by which models have their breakers.
    pub(crate) host: Host,
}

/// What stands before every path of a surface, in the parts of a request.
pub(crate) struct Base {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// With its last slash.
    pub(crate) path: String,
}

/// A breaker that failures have closed to traffic, and the host whose model it is about.
#[derive(Clone)]
struct OpenBreaker {
    host: Host,
    breaker: Arc<Breaker>,
}

/// Everything that may serve one model, and what its seats have done since they were last asked.
pub(crate) struct ModelLane {
    pub(crate) lane: Lane,
    /// What the upstream of each group calls the model.
    pub(crate) upstream: Vec<Model>,
    /// The state of each way out.
    pub(crate) egresses: Vec<Arc<EgressState>>,
    /// The quota of each seat.
    pub(crate) purses: Box<[Arc<Purses>]>,
    pub(crate) tallies: Box<[Tally]>,
    /// By group: how long it took until the answers in the tallies began.
    pub(crate) times: Box<[Times]>,
    /// The model has answered: its lane is worth keeping.
    pub(crate) served: AtomicBool,
    /// When it was last asked for, on the process's clock in ms.
    pub(crate) used: AtomicU64,
    /// It made room for another: nobody gathers its answers any more.
    pub(crate) retired: AtomicBool,
    pub(crate) refused: LastRefusal,
}

/// The last refusal of a lane. It has looked at every seat, and holds for whoever asks in the same millisecond: however
/// many requests a pool refuses that has nothing left, it is looked through a thousand times per second at most.
#[derive(Debug, Default)]
pub(crate) struct LastRefusal {
    /// On the process's clock in ms, so that those who need not know take no lock.
    at: AtomicU64,
    last: Mutex<Option<(u64, Option<u64>, NoKey)>>,
}

impl LastRefusal {
    /// The refusal of a request with a body of so many bytes, if one holds. `generation` tells when seats came back.
    pub(crate) fn holds(&self, bytes: Option<u64>, generation: u64, now: Mono) -> Option<NoKey> {
        if self.at.load(Relaxed) != now.as_ms() {
            return None;
        }
        let (of, refused, no_key) = (*self.last.lock())?;
        // A smaller body may pass where a larger one does not; one of unknown size counts as the largest.
        let as_large = bytes.is_none_or(|bytes| refused.is_some_and(|refused| bytes >= refused));
        (of == generation && as_large).then_some(no_key)
    }

    /// Keeps a refusal of a request that would have taken any key.
    pub(crate) fn keep(&self, bytes: Option<u64>, generation: u64, no_key: NoKey, now: Mono) {
        *self.last.lock() = Some((generation, bytes, no_key));
        self.at.store(now.as_ms(), Relaxed);
    }
}

/// Answers of one seat that have not been reported yet.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) answers: AtomicU32,
    pub(crate) ttfb_ms: AtomicU64,
}

/// Times of one upstream model that have not been reported yet.
pub(crate) struct Times([AtomicU32; BUCKETS]);

impl Default for Times {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Times {
    /// Counts one.
    pub(crate) fn count(&self, ms: u32) {
        self.0[bucket(ms)].fetch_add(1, Relaxed);
    }

    /// What was counted since this was last asked.
    pub(crate) fn take(&self) -> Latencies {
        let mut taken = Latencies::default();
        for (bucket, count) in self.0.iter().enumerate().filter(|(_, count)| count.load(Relaxed) > 0) {
            taken.add(bucket, count.swap(0, Relaxed));
        }
        taken
    }
}

impl Live {
    /// Prepares a configuration for `workers` runtimes. The error names the key that cannot be used.
    pub(crate) fn new(config: &Arc<Config>, workers: usize) -> Result<Self, String> {
        let mut live = Self {
            projects: Vec::new(),
            project_numbers: HashMap::new(),
            groups: config.groups.iter().map(LiveGroup::new).collect::<Result<_, _>>()?,
            keys: Vec::new(),
            egresses: Vec::new(),
            lanes: ArcSwap::default(),
            blocks: config.failure.blocks(),
            rules: config.rules(),
            breaker: config.failure.breakers(),
            limiter: config.rate_limit.and_then(Limiter::new).map(Arc::new),
            allowances: Vec::new(),
            open: Vec::new(),
            retired: AtomicBool::new(false),
            clients: Vec::new(),
            trust: OnceLock::new(),
            config: config.clone(),
        };
        for (number, group) in (0_u32..).zip(&config.groups) {
            for key in &group.keys {
                live.enrol(key, number)?;
            }
        }
        let row = || live.egresses.iter().map(|_| OnceLock::new()).collect();
        live.clients = (0..workers.max(1)).map(|_| row()).collect();
        Ok(live)
    }

    /// Counts on where `old` stands: a new configuration is no new burst under the same limit, and opens nothing that
    /// failures have closed.
    pub(crate) fn keep_counts_of(&mut self, old: &Self) {
        if self.config.rate_limit == old.config.rate_limit {
            self.limiter.clone_from(&old.limiter);
        }
        let lanes = old.lanes.load();
        let seats = lanes.values().flat_map(|lane| lane.lane.seats());
        let breakers = seats.map(|seat| OpenBreaker {
            host: old.groups[old.keys[seat.key as usize].group as usize].host.clone(),
            breaker: seat.gates.model.clone(),
        });
        let now = clock::mono();
        let mut open: Vec<_> = breakers
            .chain(old.open.iter().cloned())
            .filter(|open| open.breaker.gate.passage(now) != Passage::Open)
            .filter(|open| self.groups.iter().any(|group| group.host == open.host))
            .collect();
        open.sort_unstable_by_key(|open| Arc::as_ptr(&open.breaker));
        open.dedup_by(|a, b| Arc::ptr_eq(&a.breaker, &b.breaker));
        open.truncate(MAX_OPEN);
        self.open = open;
    }

    /// What the operator chose about quotas.
    pub(crate) fn quota_policy(&self) -> quota::Policy<'_> {
        let quota = &self.config.quota;
        quota::Policy {
            rules: &self.rules,
            learns: quota.learn_limits,
            configured: quota.configured,
            learned: quota.learned,
            max_replicas: quota.max_replicas,
        }
    }

    fn enrol(&mut self, key: &Key, group: u32) -> Result<(), String> {
        let next = u32::try_from(self.projects.len()).map_err(|_| "too many projects".to_owned())?;
        let project = *self.project_numbers.entry(key.project.clone()).or_insert(next);
        if project == next {
            self.projects.push(key.project.clone());
        }
        let egress = egress_name(self.groups[group as usize].host.as_str(), key.proxy_url.as_ref());
        let known = self.egresses.iter().position(|(name, _)| *name == egress);
        let place = known.unwrap_or(self.egresses.len());
        if known.is_none() {
            self.egresses.push((egress, key.proxy_url.clone()));
        }
        let header = |text: String| {
            let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
                format!(
                    "key {} holds a character that no HTTP header can carry; check for line breaks",
                    key.id
                )
            })?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        self.keys.push(LiveKey {
            id: key.id.clone(),
            project,
            group,
            egress: u32::try_from(place).unwrap_or(u32::MAX),
            weight: key.weight,
            mode: key.auth_mode,
            bearer: header(format!("Bearer {}", key.secret.expose()))?,
            bare: header(key.secret.expose().to_owned())?,
        });
        Ok(())
    }

    /// The client of a worker for an egress.
    pub(crate) fn client(&self, worker: usize, egress: u32) -> Result<&Client<Outgoing>, ClientError> {
        let egress = egress as usize;
        let slot = &self.clients[worker % self.clients.len()][egress];
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let trust = if let Some(trust) = self.trust.get() {
            trust
        } else {
            let read = Trust::load()?;
            self.trust.get_or_init(|| read)
        };
        let proxy = self.egresses[egress].1.as_ref();
        let client = client::client(proxy, self.config.server.connect_timeout, trust)?;
        Ok(slot.get_or_init(|| client))
    }

    /// What the upstream of a group calls a model, without the part of its quota behind a colon.
    pub(crate) fn upstream_model(&self, group: usize, model: &Model) -> Model {
        self.config.groups[group].model_aliases.get(model.as_str()).unwrap_or(model).clone()
    }
}

impl LiveGroup {
    fn new(group: &Group) -> Result<Self, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("groups {}: target_url: {what}", group.name);
        let compat = Url::parse(&group.target_url).map_err(|error| wrong(&error))?;
        let native = Base::new(&native_base(&compat)).map_err(|error| wrong(&error))?;
        let compat = Base::new(&compat).map_err(|error| wrong(&error))?;
        Ok(Self { host: Host::new(compat.authority.as_str()), compat, native })
    }
}

impl Base {
    fn new(url: &Url) -> Result<Self, http::Error> {
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = url.host_str().unwrap_or_default();
        Ok(Self {
            scheme: url.scheme().parse()?,
            authority: format!("{host}{port}").parse()?,
            path: url.path().to_owned(),
        })
    }
}

/// The way out in words that may be shown: the proxy without its credentials, and the target.
fn egress_name(host: &str, proxy: Option<&Secret>) -> Egress {
    let Some(proxy) = proxy else { return Egress::new(host) };
    let proxy = proxy.expose();
    let (scheme, rest) = proxy.split_once("://").unwrap_or(("", proxy));
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    Egress::new(format!("{scheme}://{address} -> {host}"))
}

#[cfg(test)]
mod tests {
    use keyfleet_core::select::Blame;

    use super::*;

    #[test]
    fn an_egress_is_named_without_the_credentials_of_its_proxy() {
        let proxy = Secret::new("socks5://user:hunter2@10.0.0.1:1080");
        assert_eq!(egress_name("host", Some(&proxy)).as_str(), "socks5://10.0.0.1:1080 -> host");
    }

    #[test]
    fn a_refusal_holds_for_a_millisecond_for_bodies_as_large_and_while_no_seat_comes_back() {
        let last = LastRefusal::default();
        let no_key = NoKey { blame: Blame::Quota, retry_at: Mono::from_ms(900) };
        let now = Mono::from_ms(7);
        assert_eq!(last.holds(None, 1, Mono::from_ms(0)), None, "nothing was refused yet");
        last.keep(Some(10), 1, no_key, now);
        assert_eq!(last.holds(Some(10), 1, now), Some(no_key));
        assert_eq!(last.holds(None, 1, now), Some(no_key));
        assert_eq!(last.holds(Some(9), 1, now), None, "a smaller body may pass");
        assert_eq!(last.holds(Some(10), 2, now), None, "a seat has come back");
        assert_eq!(last.holds(Some(10), 1, Mono::from_ms(8)), None);
        last.keep(None, 1, no_key, now);
        assert_eq!(last.holds(Some(10), 1, now), None, "a known size may be small");
    }
}
