//! A plain HTTP client, for what no SDK can do: send anything and look at everything that comes back.

use std::future::Future;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_mins(1);

/// A client of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as far as it came.
    pub text: String,
    /// Whether the body ended as it should.
    pub whole: bool,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// A header, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Client {
    /// A client of the server at `base`, a URL without a slash at the end.
    pub fn new(base: String) -> Self {
        Self::built(base, reqwest::Client::builder())
    }

    /// One that makes a connection for every request.
    pub fn forgetful(base: String) -> Self {
        Self::built(base, reqwest::Client::builder().pool_max_idle_per_host(0))
    }

    fn built(base: String, builder: reqwest::ClientBuilder) -> Self {
        let http = builder.timeout(TIMEOUT).no_proxy().build().expect("an HTTP client");
        Self { http, base }
    }

    /// The URL of `path`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A request to `path`, to be completed and sent by the caller.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path))
    }

    /// GET.
    pub fn get(&self, path: &str) -> impl Future<Output = reqwest::Result<Answer>> + use<> {
        read(self.request(reqwest::Method::GET, path))
    }

    /// POST of JSON, with any placeholder as the client's token.
    pub fn post(&self, path: &str, body: &Value) -> impl Future<Output = reqwest::Result<Answer>> + use<> {
        let request = self.request(reqwest::Method::POST, path).bearer_auth("placeholder");
        read(request.header("content-type", "application/json").body(body.to_string()))
    }

    /// POST of a chat completion to the OpenAI surface.
    pub fn chat(&self, model: &str, stream: bool) -> impl Future<Output = reqwest::Result<Answer>> + use<> {
        let body = serde_json::json!({
            "model": model, "stream": stream, "messages": [{"role": "user", "content": "Say something."}],
        });
        self.post("/v1/chat/completions", &body)
    }
}

/// Sends a request and reads the body as far as it comes.
pub async fn read(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let mut response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut body = Vec::new();
    let whole = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let text = String::from_utf8_lossy(&body).into_owned();
    crate::spill::check(response.url().port(), &format!("{headers:?}\n{text}"));
    Ok(Answer { status, headers, text, whole })
}
