//! Asking a deployment, and what its answer means for whoever has to mend it.

use std::error::Error as _;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use keyfleet_service::config::Secret;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::time::Instant;

pub(super) const CHAT: &str = "/v1/chat/completions";
/// What is read of one answer; none of ours is as long.
const MAX_ANSWER: usize = 16 << 20;
/// Characters of somebody else's text in a line.
const MAX_SHOWN: usize = 300;

/// What went wrong, and what to do about it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) seen: String,
    pub(super) fix: String,
}

impl Failure {
    pub(super) fn new(seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { seen: seen.into(), fix: fix.into() }
    }

    /// The error without the URL, and with its causes: "error sending request" says nothing.
    fn network(error: reqwest::Error) -> Self {
        let fix = if error.is_connect() {
            "is it running there, and is the URL right? then see the network, DNS and certificate"
        } else {
            "see its log, and that of any proxy before it"
        };
        let error = error.without_url();
        let mut seen = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            seen = format!("{seen}: {error}");
            cause = error.source();
        }
        Self::new(shown(&seen), fix)
    }
}

/// Who asks whom.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) http: Client,
    pub(super) base: String,
    pub(super) ops: String,
    pub(super) token: Option<Secret>,
}

impl Asker {
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// GET without a token.
    pub(super) async fn get(&self, base: &str, path: &str) -> Result<Seen, Failure> {
        self.call(self.http.get(format!("{base}{path}"))).await
    }

    /// A chat completion.
    pub(super) async fn chat(&self, body: &Value) -> Result<Seen, Failure> {
        self.call(json(self.as_client(self.http.post(self.url(CHAT))), body)).await
    }

    /// The same of Gemini's own API, whose clients send the token in another header.
    pub(super) async fn generate(&self, model: &str, body: &Value) -> Result<Seen, Failure> {
        let request = self.http.post(self.url(&format!("/v1beta/models/{model}:generateContent")));
        let request = match &self.token {
            Some(token) => request.header("x-goog-api-key", token.expose()),
            None => request,
        };
        self.call(json(request, body)).await
    }

    /// With the token as OpenAI clients send it.
    pub(super) fn as_client(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends it and reads the whole answer.
    pub(super) async fn call(&self, request: RequestBuilder) -> Result<Seen, Failure> {
        let began = Instant::now();
        let mut response = request.send().await.map_err(Failure::network)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        let mut first = None;
        while let Some(piece) = response.chunk().await.map_err(Failure::network)? {
            first.get_or_insert_with(|| began.elapsed());
            body.extend_from_slice(&piece);
            if body.len() > MAX_ANSWER {
                return Err(Failure::new("an answer without an end", "is this URL a Keyfleet gateway?"));
            }
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        let took = began.elapsed();
        Ok(Seen { status, headers, text, first: first.unwrap_or(took), took })
    }
}

fn json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body.to_string())
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) text: String,
    first: Duration,
    took: Duration,
}

impl Seen {
    /// It, if it is a 200; else what its status asks for.
    pub(super) fn good(self) -> Result<Self, Failure> {
        if self.status == StatusCode::OK { Ok(self) } else { Err(self.advice()) }
    }

    /// The body as JSON; null when it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// Whether the body is an error in one of the dialects.
    pub(super) fn is_error(&self) -> bool {
        self.error()["message"].is_string()
    }

    fn error(&self) -> Value {
        let body = self.json();
        // Google's compatible surface puts it into a list.
        let body = if body.is_array() { body[0].clone() } else { body };
        body["error"].clone()
    }

    /// What it says, in a line.
    pub(super) fn message(&self) -> String {
        match self.error()["message"].as_str() {
            Some(message) => shown(message),
            None => shown(&self.text),
        }
    }

    pub(super) fn took(&self) -> String {
        format!("{} ms", self.took.as_millis())
    }

    /// Time to the first byte.
    pub(super) fn first(&self) -> String {
        format!("{} ms", self.first.as_millis())
    }

    /// The status, and what it says if it is no success.
    pub(super) fn brief(&self) -> String {
        let status = self.status.as_u16();
        if self.status.is_success() {
            format!("{status} in {}", self.took())
        } else {
            format!("{status} {}", self.message())
        }
    }

    /// Who answered, and after how long.
    pub(super) fn answer(&self) -> String {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        let key = header("x-keyfleet-key").map_or_else(String::new, |key| format!(" by key {}", shown(key)));
        let tries = header("x-keyfleet-attempts").filter(|tries| *tries != "1");
        let tries = tries.map_or_else(String::new, |tries| format!(", attempts {}", shown(tries)));
        format!("200{key} in {}{tries}", self.took())
    }

    /// Another answer than the right one.
    pub(super) fn unexpected(&self, wanted: &str) -> Failure {
        let Failure { seen, fix } = self.advice();
        Failure::new(format!("{wanted} was expected, but it is {seen}"), fix)
    }

    fn advice(&self) -> Failure {
        let after = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.map_or_else(String::new, |after| format!(" {} s (Retry-After)", shown(after)));
        let fix = match self.status.as_u16() {
            401 => "set KEYFLEET_SMOKE_TOKEN or KEYFLEET_SMOKE_TOKEN_FILE to a token of server.clients"
                .to_owned(),
            403 => "is there a proxy before it that refuses this? else see the log".to_owned(),
            404 => "choose another --model, or see groups[].models and target_url".to_owned(),
            413 => "raise server.max_body_bytes, or the limit of the proxy before it".to_owned(),
            429 => format!("a quota or rate_limit is used up: wait{after}, or add projects"),
            502..=504 => {
                "/health/detailed says what keeps each key from work, and the log what the upstream did: \
                          see keys, network, DNS and groups[].target_url"
                    .to_owned()
            }
            _ => "see the log, by the x-request-id of the answer".to_owned(),
        };
        Failure::new(self.brief(), fix)
    }
}

/// Somebody else's text in our line: short, and nothing that a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
    if line.chars().count() > MAX_SHOWN {
        short.push('…');
    }
    short
}
