//! Receivers: what a message looks like to each type, sending it, and what the answer means.
//!
//! A delivery is one attempt. Whoever keeps the messages tries again, and spaces those to one receiver: Slack wants
//! no more than one per second. The URL of a receiver is a secret: of it, errors show the server alone.

mod alertmanager;
mod answer;
mod discord;
mod pagerduty;
mod slack;
mod teams;
mod text;
mod webhook;

use std::error::Error as _;
use std::time::Duration;

use http::header::{CONTENT_TYPE, USER_AGENT};
use keyfleet_service::config::{Receiver, Secret, Wire};
use reqwest::{Client, RequestBuilder, Response, Url};
use tokio::time::{Instant, timeout_at};

use super::notice::Notice;
use answer::Answer;

/// For one request, its answer included.
const PATIENCE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(10);
/// The most ways out whose clients are kept.
const MAX_CLIENTS: usize = 32;
/// Of an answer, no more is read: what it says is in the beginning.
const MAX_ANSWER: usize = 16 << 10;
const AGENT: &str = concat!("keyfleet/", env!("CARGO_PKG_VERSION"));

/// Why a message did not arrive. What is said shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// Try again, not before this.
    Later { after: Option<Duration>, why: String },
    /// This message will never be accepted; others may be.
    Refused { why: String },
    /// No message will ever be accepted.
    Never { why: String },
}

impl Undelivered {
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Later { why, .. } | Self::Refused { why } | Self::Never { why } => why,
        }
    }

    fn later(why: impl Into<String>) -> Self {
        Self::Later { after: None, why: why.into() }
    }

    fn from(self, server: &str) -> Self {
        match self {
            Self::Later { after, why } => Self::Later { after, why: format!("{server} {why}") },
            Self::Refused { why } => Self::Refused { why: format!("{server} {why}") },
            Self::Never { why } => Self::Never { why: format!("{server} {why}") },
        }
    }
}

/// The client of each way out, made when it is first used: that takes milliseconds, and many deployments tell nobody. It
/// follows no redirect.
#[derive(Debug, Default)]
pub(crate) struct Clients(Vec<(Option<Secret>, Client)>);

impl Clients {
    pub(crate) fn by(&mut self, proxy: Option<&Secret>) -> Result<Client, String> {
        if let Some((_, client)) = self.0.iter().find(|(by, _)| by.as_ref() == proxy) {
            return Ok(client.clone());
        }
        let made = keyfleet_service::client::elsewhere(proxy, CONNECT);
        let made = made.map_err(|error| error.without_url().to_string())?;
        if self.0.len() >= MAX_CLIENTS {
            // The configuration has changed often.
            self.0.clear();
        }
        self.0.push((proxy.cloned(), made.clone()));
        Ok(made)
    }
}

/// Sends a message to a receiver, once.
pub(crate) async fn deliver(
    client: &Client,
    receiver: &Receiver,
    notice: &Notice,
    now_ms: i64,
) -> Result<(), Undelivered> {
    deliver_within(client, &receiver.wire, notice, now_ms, PATIENCE).await
}

/// Tells whoever watches over us that there is a leader. Their silence alarm is what sounds when this ends.
pub(crate) async fn heartbeat(client: &Client, url: &Secret) -> Result<(), Undelivered> {
    let (url, server) = address(url)?;
    let secrets = secrets(&url, None);
    let answer = ask(client.get(url), &secrets, 0, PATIENCE).await;
    answer.and_then(|answer| answer.usual()).map_err(|undelivered| undelivered.from(&server))
}

async fn deliver_within(
    client: &Client,
    wire: &Wire,
    notice: &Notice,
    now_ms: i64,
    patience: Duration,
) -> Result<(), Undelivered> {
    let (mut url, server) = address(wire.url())?;
    let key = if let Wire::PagerDuty { routing_key, .. } = wire { Some(routing_key) } else { None };
    let secrets = secrets(&url, key);
    if matches!(wire, Wire::Alertmanager { .. }) {
        alertmanager::complete(&mut url);
    }
    for body in bodies(wire, notice, now_ms) {
        let mut request = client.post(url.clone()).header(CONTENT_TYPE, "application/json");
        if let Wire::Webhook { keys, .. } = wire {
            for (name, value) in webhook::headers(keys, &notice.id, now_ms, &body) {
                request = request.header(name, value);
            }
        }
        let answer = ask(request.body(body), &secrets, now_ms, patience).await;
        let accepted = answer.and_then(|answer| match wire {
            Wire::Slack { .. } => slack::judge(&answer),
            Wire::Discord { .. } => discord::judge(&answer),
            _ => answer.usual(),
        });
        accepted.map_err(|undelivered| undelivered.from(&server))?;
    }
    Ok(())
}

/// What is sent, one after the other. Sending it again does no harm.
fn bodies(wire: &Wire, notice: &Notice, now_ms: i64) -> Vec<String> {
    match wire {
        Wire::Slack { .. } => vec![slack::payload(notice).to_string()],
        Wire::Webhook { .. } => vec![webhook::payload(notice).to_string()],
        Wire::PagerDuty { routing_key, .. } => vec![pagerduty::payload(notice, routing_key).to_string()],
        Wire::Alertmanager { .. } => alertmanager::payloads(notice, now_ms),
        Wire::Discord { .. } => vec![discord::payload(notice).to_string()],
        Wire::Teams { .. } => vec![teams::payload(notice).to_string()],
    }
}

/// A URL, and what of it may be shown.
fn address(url: &Secret) -> Result<(Url, String), Undelivered> {
    let Ok(url) = Url::parse(url.expose()) else {
        return Err(Undelivered::Never { why: "its URL is none".to_owned() });
    };
    let server = url.origin().ascii_serialization();
    Ok((url, server))
}

/// What an answer might repeat and nobody may see.
fn secrets(url: &Url, key: Option<&Secret>) -> Vec<String> {
    /// Shorter words of a URL are no secret, and may be in any sentence.
    const SHORTEST: usize = 6;
    let path = url.path_segments().into_iter().flatten().map(str::to_owned);
    let query = url.query_pairs().flat_map(|(name, value)| [name.into_owned(), value.into_owned()]);
    let user = [url.username(), url.password().unwrap_or_default()].map(str::to_owned);
    let key = key.map(|key| key.expose().to_owned());
    let all = path.chain(query).chain(user).chain(key);
    all.filter(|word| word.len() >= SHORTEST).collect()
}

/// Sends a request and reads the beginning of its answer.
async fn ask(
    request: RequestBuilder,
    secrets: &[String],
    now_ms: i64,
    patience: Duration,
) -> Result<Answer, Undelivered> {
    let deadline = Instant::now() + patience;
    let sent = timeout_at(deadline, request.header(USER_AGENT, AGENT).send()).await;
    let sent = sent.map_err(|_| Undelivered::later(format!("did not answer within {patience:?}")))?;
    let response = sent.map_err(unsent)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = beginning(response, deadline).await;
    Ok(Answer::new(status, &headers, &body, secrets, now_ms))
}

/// What can be read of a body in time. The status has come, and counts without it.
async fn beginning(mut response: Response, deadline: Instant) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < MAX_ANSWER {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            _ => break,
        }
    }
    body.truncate(MAX_ANSWER);
    body
}

fn unsent(error: reqwest::Error) -> Undelivered {
    if error.is_builder() {
        return Undelivered::Never { why: "cannot be asked: the request cannot be made".to_owned() };
    }
    let what = if error.is_connect() { "cannot be reached" } else { "broke the connection off" };
    let error = error.without_url();
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(|cause| cause.source()) {
        cause = Some(inner);
    }
    Undelivered::later(cause.map_or_else(|| what.to_owned(), |cause| format!("{what}: {cause}")))
}

#[cfg(test)]
mod tests;
