//! The prober: asks the upstream whether a key is valid, by listing models, which costs no quota.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};
use keyfleet_core::id::KeyId;
use keyfleet_core::outcome::{Cause, Outcome, classify};
use keyfleet_service::client::client;
use keyfleet_service::config::{AuthMode, Config, Group, Key};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// At most five looks a second, one at a time: a pool of 1,500 keys takes five minutes.
const PACE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(20);
/// Keys that may wait; the ledger asks again for those that find no place.
const QUEUE: usize = 4_096;

/// Takes keys to look at.
pub(crate) struct Prober(mpsc::Sender<KeyId>);

/// Where verdicts arrive.
pub(crate) type Verdicts = mpsc::Receiver<Verdict>;

/// What a look showed.
pub(crate) struct Verdict {
    pub(crate) key: KeyId,
    /// `None`: the key is valid.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) draw: u32,
}

/// Starts the prober's task.
pub(crate) fn start(config: watch::Receiver<Arc<Config>>, shutdown: CancellationToken) -> (Prober, Verdicts) {
    let (ask, asked) = mpsc::channel(QUEUE);
    let (tell, verdicts) = mpsc::channel(64);
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work(config, asked, tell) => {}
        }
    });
    (Prober(ask), verdicts)
}

impl Prober {
    pub(crate) fn ask(&self, key: KeyId) {
        if let Err(error) = self.0.try_send(key) {
            tracing::debug!(%error, "the prober is busy; the next round asks again");
        }
    }
}

async fn work(
    config: watch::Receiver<Arc<Config>>,
    mut asked: mpsc::Receiver<KeyId>,
    tell: mpsc::Sender<Verdict>,
) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = HashSet::new();
    while let Some(id) = asked.recv().await {
        pace.tick().await;
        let config = config.borrow().clone();
        let found = config.groups.iter().find_map(|g| Some((g, g.keys.iter().find(|k| k.id == id)?)));
        let Some((group, key)) = found else { continue };
        let outcome = look(&config, group, key).await;
        if let Some(outcome) = outcome
            && told.insert((id.clone(), outcome.cause))
        {
            tracing::warn!(key = %id, project = %key.project, cause = outcome.cause.as_str(), "a key does not work");
        } else if outcome.is_none() {
            told.retain(|(known, _)| *known != id);
        }
        let verdict = Verdict { key: id, outcome, draw: fastrand::u32(..) };
        if tell.send(verdict).await.is_err() {
            return;
        }
    }
}

async fn look(config: &Config, group: &Group, key: &Key) -> Option<Outcome> {
    let unreachable = Some(Cause::Connect.outcome());
    let Ok(client) = client(key.proxy_url.as_ref(), config.server.connect_timeout) else {
        return unreachable;
    };
    let secret = key.secret.expose();
    let native = group.target_url.trim_end_matches("openai/");
    let request = match key.auth_mode {
        AuthMode::Bearer => client.get(format!("{}models", group.target_url)).bearer_auth(secret),
        AuthMode::Auto | AuthMode::ApiKey => {
            client.get(format!("{native}models?pageSize=1")).header("x-goog-api-key", secret)
        }
    };
    let Ok(mut answer) = request.timeout(TIMEOUT).send().await else { return unreachable };
    let status = answer.status();
    if status == StatusCode::OK {
        return None;
    }
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ERROR_BODY {
            break;
        }
    }
    Some(classify(status, None, &ErrorBody::parse(&body)))
}
