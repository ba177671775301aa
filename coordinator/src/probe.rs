//! The prober: asks the upstream whether a key is valid, by listing models, which costs no quota.

mod waiting;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, Empty, Limited};
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};
use keyfleet_core::id::{KeyId, ProjectId};
use keyfleet_core::outcome::{Cause, Outcome, classify};
use keyfleet_service::client::{Client, ClientError, Trust, client};
use keyfleet_service::config::{AuthMode, Config, Group, Key, Secret};
use keyfleet_service::target::native_base;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use url::Url;

pub(crate) use waiting::Full;
use waiting::Waiting;

/// At most five looks a second begin: a pool of 1,500 keys takes five minutes.
const PACE: Duration = Duration::from_millis(200);
const GOOGLE_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
const TIMEOUT: Duration = Duration::from_secs(20);
/// The most looks at a time: as many as begin within the timeout, so that ways out that answer nothing delay no other
/// key and no operator.
const LOOKS: usize = 100;
/// The most ways out that keep a client; beyond it all of them are made anew.
const MAX_CLIENTS: usize = 64;

/// Takes keys to look at. Clones take them for the same prober.
#[derive(Clone, Default)]
pub(crate) struct Prober(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something waits, perhaps.
    news: Notify,
}

/// Where verdicts arrive.
pub(crate) type Verdicts = mpsc::Receiver<Verdict>;

/// What a look showed.
pub(crate) struct Verdict {
    pub(crate) key: KeyId,
    /// `None`: the key is valid.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) draw: u32,
}

/// The clients of one configuration, by proxy.
#[derive(Default)]
struct Clients {
    of: Option<Arc<Config>>,
    trust: Option<Trust>,
    by_proxy: HashMap<Option<Secret>, Client<Empty<Bytes>>>,
}

/// Starts the prober's task. It ends with `shutdown`; if it dies before, no more verdicts arrive.
pub(crate) fn start(config: watch::Receiver<Arc<Config>>, shutdown: CancellationToken) -> (Prober, Verdicts) {
    let prober = Prober::default();
    let (tell, verdicts) = mpsc::channel(64);
    let queue = prober.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work(config, queue, tell) => {}
        }
    });
    (prober, verdicts)
}

impl Prober {
    /// Keys are due. Those that wait already do not wait twice.
    pub(crate) fn due(&self, keys: Vec<KeyId>) {
        let left_out = {
            let mut waiting = self.0.waiting.lock();
            keys.into_iter().filter(|key| !waiting.due(key.clone())).count()
        };
        if left_out > 0 {
            tracing::debug!(left_out, "the prober is busy; the next round asks again");
        }
        self.0.news.notify_one();
    }

    /// An operator wants a key looked at: before all that are due.
    pub(crate) fn ask(&self, key: KeyId) -> Result<(), Full> {
        self.0.waiting.lock().asked(key)?;
        self.0.news.notify_one();
        Ok(())
    }

    /// The next key, if one waits.
    pub(crate) fn take(&self) -> Option<KeyId> {
        self.0.waiting.lock().take()
    }

    /// The next key, once it may be looked at. Dropping the future loses none.
    async fn next(&self, pace: &mut Interval) -> KeyId {
        loop {
            while self.0.waiting.lock().is_empty() {
                self.0.news.notified().await;
            }
            pace.tick().await;
            // Not before: an operator may have asked meanwhile.
            if let Some(key) = self.take() {
                return key;
            }
        }
    }
}

async fn work(config: watch::Receiver<Arc<Config>>, queue: Prober, tell: mpsc::Sender<Verdict>) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = HashSet::new();
    let mut clients = Clients::default();
    let mut looks = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some((project, verdict)) = looks.next() => {
                say(&mut told, &project, &verdict);
                if tell.send(verdict).await.is_err() {
                    return;
                }
            }
            id = queue.next(&mut pace), if looks.len() < LOOKS => {
                let config = config.borrow().clone();
                let found = config.groups.iter().find_map(|g| Some((g, g.keys.iter().find(|k| k.id == id)?)));
                let Some((group, key)) = found else { continue };
                let client = clients.get(&config, key.proxy_url.as_ref(), Trust::load);
                let question = question(group, key);
                let project = key.project.clone();
                looks.push(async move {
                    let asked = tokio::time::timeout(TIMEOUT, look(client, question));
                    let outcome = asked.await.unwrap_or_else(|_| Some(unreachable_upstream()));
                    (project, Verdict { key: id, outcome, draw: fastrand::u32(..) })
                });
            }
        }
    }
}

/// Says what is wrong with a key, once.
fn say(told: &mut HashSet<(KeyId, Cause)>, project: &ProjectId, verdict: &Verdict) {
    let Verdict { key, outcome, .. } = verdict;
    match outcome {
        Some(outcome) if told.insert((key.clone(), outcome.cause)) => {
            tracing::warn!(%key, %project, cause = outcome.cause.as_str(), "a key does not work");
        }
        Some(_) => {}
        None => told.retain(|(known, _)| known != key),
    }
}

impl Clients {
    /// The client for a way out; `None` if none can be made. Certificates that cannot be read may be the next time.
    fn get(
        &mut self,
        config: &Arc<Config>,
        proxy: Option<&Secret>,
        load: impl FnOnce() -> Result<Trust, ClientError>,
    ) -> Option<Client<Empty<Bytes>>> {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, config)) {
            *self = Self { of: Some(config.clone()), ..Self::default() };
        }
        if self.trust.is_none() {
            let trust = load().inspect_err(|error| tracing::error!(%error, "keys cannot be looked at"));
            self.trust = trust.ok();
        }
        let proxy = proxy.cloned();
        if let Some(known) = self.by_proxy.get(&proxy) {
            return Some(known.clone());
        }
        if self.by_proxy.len() >= MAX_CLIENTS {
            self.by_proxy.clear();
        }
        let made = client(proxy.as_ref(), config.server.connect_timeout, self.trust.as_ref()?).ok()?;
        Some(self.by_proxy.entry(proxy).or_insert(made).clone())
    }
}

fn unreachable_upstream() -> Outcome {
    Cause::Connect.outcome()
}

/// Without a client or a question there is no way to the upstream.
async fn look(
    client: Option<Client<Empty<Bytes>>>,
    question: Option<Request<Empty<Bytes>>>,
) -> Option<Outcome> {
    let (Some(client), Some(question)) = (client, question) else { return Some(unreachable_upstream()) };
    let Ok(answer) = client.request(question).await else { return Some(unreachable_upstream()) };
    let status = answer.status();
    // Read in any case: only then can the next look use the connection.
    let body = Limited::new(answer.into_body(), MAX_ERROR_BODY).collect().await;
    if status == StatusCode::OK {
        return None;
    }
    // What cannot be read of an error does not make it another one.
    let body = body.map(Collected::to_bytes).unwrap_or_default();
    Some(classify(status, None, &ErrorBody::parse(&body)))
}

/// What a key is asked with. The error of a target that is no URL was told when the configuration was read.
fn question(group: &Group, key: &Key) -> Option<Request<Empty<Bytes>>> {
    let secret = key.secret.expose();
    let compat = Url::parse(&group.target_url).ok()?;
    let (url, name, credential) = match key.auth_mode {
        AuthMode::Bearer => (compat.join("models").ok()?, AUTHORIZATION, format!("Bearer {secret}")),
        AuthMode::Auto | AuthMode::ApiKey => {
            let models = native_base(&compat).join("v1beta/models?pageSize=1").ok()?;
            (models, GOOGLE_KEY, secret.to_owned())
        }
    };
    let mut credential = HeaderValue::try_from(credential).ok()?;
    credential.set_sensitive(true);
    Request::get(url.as_str()).header(name, credential).body(Empty::new()).ok()
}

#[cfg(test)]
mod tests {
    use keyfleet_service::config::{Sources, load};

    use super::*;

    fn config(target_url: &str) -> Arc<Config> {
        let env = [("GEMINI_API_KEYS".to_owned(), "a-key".to_owned())].into();
        let mut config = load(&Sources { env, ..Sources::default() }).unwrap().config;
        target_url.clone_into(&mut config.groups[0].target_url);
        Arc::new(config)
    }

    #[test]
    fn certificates_that_cannot_be_read_are_read_again() {
        let config = config("http://host/v1beta/openai/");
        let mut clients = Clients::default();
        assert!(clients.get(&config, None, || Err(ClientError::Proxy)).is_none());
        assert!(clients.get(&config, None, Trust::load).is_some());
    }

    #[test]
    fn a_key_is_asked_on_the_surface_that_its_credential_is_for() {
        let asked = |target: &str, auth_mode| {
            let config = config(target);
            let group = &config.groups[0];
            let key = Key { auth_mode, ..group.keys[0].clone() };
            question(group, &key).unwrap().uri().to_string()
        };
        for (target, native) in [
            ("http://host/gw/v1beta/openai/", "http://host/gw/v1beta/models?pageSize=1"),
            ("http://host/gw/v1/openai/", "http://host/gw/v1beta/models?pageSize=1"),
            ("http://host/openai/", "http://host/v1beta/models?pageSize=1"),
        ] {
            assert_eq!(asked(target, AuthMode::Auto), native);
            assert_eq!(asked(target, AuthMode::Bearer), format!("{target}models"));
        }
    }

    #[test]
    fn clients_are_few_and_those_of_one_configuration() {
        let mut clients = Clients::default();
        let (first, second) = (config("http://host/"), config("http://host/"));
        let proxy = |n: usize| Secret::new(format!("http://10.0.0.1:{}", 1_000 + n));
        for n in 0..MAX_CLIENTS {
            assert!(clients.get(&first, Some(&proxy(n)), Trust::load).is_some());
        }
        clients.get(&first, Some(&proxy(0)), Trust::load);
        assert_eq!(clients.by_proxy.len(), MAX_CLIENTS, "one that is there needs no room");
        clients.get(&first, None, Trust::load);
        assert_eq!(clients.by_proxy.len(), 1);
        clients.get(&second, Some(&proxy(1)), Trust::load);
        assert_eq!(clients.by_proxy.keys().collect::<Vec<_>>(), [&Some(proxy(1))]);
    }
}
