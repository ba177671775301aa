//! The command `smoke`: whether a deployment does what clients need, asked from outside, as one of them. It knows nothing
//! but the URL, so that it judges a container, a chart and a plain server alike; it is a command of the program because
//! an image without a shell has no other.

mod ask;

use std::env;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::{HeaderMap, HeaderValue, StatusCode};
use keyfleet_service::client;
use keyfleet_service::config::Secret;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use self::ask::{Asker, CHAT, Failure, Seen};

/// Where the client's token comes from: an argument would be there for every user of the machine to read.
const TOKEN: &str = "KEYFLEET_SMOKE_TOKEN";
const TOKEN_FILE: &str = "KEYFLEET_SMOKE_TOKEN_FILE";

const CONNECT: Duration = Duration::from_secs(5);
/// A model that nobody has, and a token that nobody has.
const NO_MODEL: &str = "keyfleet-smoke-no-such-model";
const NO_TOKEN: &str = "keyfleet-smoke-no-such-token";
/// More than `server.max_body_bytes` of anybody. It is announced, never sent.
const TOO_LARGE: u64 = 1 << 40;
/// Keys that are named when none works.
const NAMED_KEYS: usize = 3;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Options {
    /// Where clients reach it, such as <http://127.0.0.1:4806>
    #[arg(value_parser = base)]
    url: String,
    /// Where readiness is asked, if `server.ops_port` is set; else the same
    #[arg(long, value_name = "URL", value_parser = base)]
    ops_url: Option<String>,
    /// The model to ask
    #[arg(long, default_value = "gemini-2.5-flash")]
    model: String,
    /// For everything together, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    timeout: u64,
}

/// A URL without a slash at the end, and without the version that OpenAI clients want in theirs.
fn base(text: &str) -> Result<String, String> {
    let url =
        reqwest::Url::parse(text).map_err(|error| format!("{error}; give one like http://127.0.0.1:4806"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it begins neither with http:// nor with https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("it holds a user or a password; a token comes in {TOKEN} or {TOKEN_FILE}"));
    }
    let text = text.trim_end_matches('/');
    Ok(text.strip_suffix("/v1").unwrap_or(text).to_owned())
}

/// Looks, and tells line by line; the exit code says whether all is well.
pub(crate) fn run(options: &Options) -> ExitCode {
    let ended = asker(options).and_then(|asker| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let report = runtime.block_on(look(options, &asker));
        // A thread that still asks for a name is not waited for.
        runtime.shutdown_background();
        Ok(report)
    });
    match ended {
        Ok(report) => report.close(),
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

fn asker(options: &Options) -> Result<Asker, String> {
    let http = client::elsewhere(None, CONNECT).map_err(|error| format!("no HTTP client: {error}"))?;
    let ops = options.ops_url.clone().unwrap_or_else(|| options.url.clone());
    Ok(Asker { http, base: options.url.clone(), ops, token: token()? })
}

fn token() -> Result<Option<Secret>, String> {
    let given = |name| env::var(name).ok().filter(|text| !text.trim().is_empty());
    let text = match (given(TOKEN), given(TOKEN_FILE)) {
        (Some(_), Some(_)) => return Err(format!("{TOKEN} and {TOKEN_FILE} are both set; remove one")),
        (Some(text), None) => text,
        (None, Some(file)) => {
            fs::read_to_string(&file).map_err(|error| format!("{TOKEN_FILE}: cannot read {file}: {error}"))?
        }
        (None, None) => return Ok(None),
    };
    match HeaderValue::from_str(text.trim()) {
        Ok(_) => Ok(Some(Secret::new(text.trim().to_owned()))),
        Err(_) => Err("the token holds a character that cannot be sent".to_owned()),
    }
}

/// What was found so far.
#[derive(Debug)]
struct Report {
    deadline: Instant,
    timeout: u64,
    good: usize,
    bad: usize,
    skipped: usize,
    /// Nothing more can be learned.
    over: bool,
}

impl Report {
    /// Waits for a check and tells its line.
    async fn note(&mut self, name: &str, check: impl Future<Output = Result<String, Failure>>) {
        if self.over {
            self.skipped += 1;
            return;
        }
        let result = timeout_at(self.deadline, check).await.unwrap_or_else(|_| {
            self.over = true;
            let seen = format!("no answer before the {} s of --timeout were over", self.timeout);
            Err(Failure::new(seen, "see the program's log, or allow more time"))
        });
        match result {
            Ok(seen) => {
                self.good += 1;
                println!("ok      {name:<14} {seen}");
            }
            Err(failure) => {
                self.bad += 1;
                println!("failed  {name:<14} {}: {}", failure.seen, failure.fix);
            }
        }
    }

    fn close(&self) -> ExitCode {
        let skipped = if self.skipped > 0 { format!(", {} not made", self.skipped) } else { String::new() };
        println!("{} checks passed, {} failed{skipped}", self.good, self.bad);
        if self.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

async fn look(options: &Options, asker: &Asker) -> Report {
    let timeout = options.timeout;
    let deadline = Instant::now() + Duration::from_secs(timeout);
    let mut report = Report { deadline, timeout, good: 0, bad: 0, skipped: 0, over: false };
    let model = options.model.as_str();
    report.note("health", health(asker)).await;
    report.over |= report.bad > 0;
    report.note("readiness", readiness(asker)).await;
    report.note("models", models(asker)).await;
    report.note("chat", chat(asker, model)).await;
    report.note("native", native(asker, model)).await;
    report.note("stream", stream(asker, model)).await;
    if asker.token.is_some() {
        report.note("wrong token", wrong_token(asker)).await;
    }
    report.note("unknown model", unknown_model(asker)).await;
    report.note("body limit", body_limit(asker)).await;
    report.note("keys", keys(asker)).await;
    report.note("still ready", readiness(asker)).await;
    report
}

async fn health(asker: &Asker) -> Result<String, Failure> {
    let seen = asker.get(&asker.base, "/health").await?;
    match seen.status {
        StatusCode::OK => Ok(seen.brief()),
        _ => Err(Failure::new(seen.brief(), "is this URL a Keyfleet gateway? give the one that clients use")),
    }
}

async fn readiness(asker: &Asker) -> Result<String, Failure> {
    let seen = asker.get(&asker.ops, "/health/ready").await?;
    match seen.status {
        StatusCode::OK => Ok(seen.brief()),
        StatusCode::SERVICE_UNAVAILABLE => {
            let why = if seen.text.trim().is_empty() { seen.brief() } else { seen.message() };
            Err(Failure::new(format!("it is not ready, {why}"), "wait, or mend what it names"))
        }
        _ => Err(Failure::new(seen.brief(), "if server.ops_port is set, give that address as --ops-url")),
    }
}

async fn models(asker: &Asker) -> Result<String, Failure> {
    let seen = asker.call(asker.as_client(asker.http.get(asker.url("/v1/models")))).await?.good()?;
    match seen.json()["data"].as_array().map_or(0, Vec::len) {
        0 => Err(Failure::new(
            "the list of models is empty",
            "check groups[].target_url: is it an OpenAI-compatible base?",
        )),
        count => Ok(format!("{count} models in {}", seen.took())),
    }
}

fn question(model: &str, stream: bool) -> Value {
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "Answer with one word: ready"}]})
}

async fn chat(asker: &Asker, model: &str) -> Result<String, Failure> {
    let seen = asker.chat(&question(model, false)).await?.good()?;
    if seen.json()["choices"][0]["message"].is_object() {
        return Ok(seen.answer());
    }
    Err(Failure::new("200 without a choice", "check groups[].target_url: is it an OpenAI-compatible base?"))
}

async fn native(asker: &Asker, model: &str) -> Result<String, Failure> {
    let body = json!({"contents": [{"role": "user", "parts": [{"text": "Answer with one word: ready"}]}]});
    let seen = asker.generate(model, &body).await?.good()?;
    if seen.json()["candidates"][0].is_object() {
        return Ok(seen.answer());
    }
    Err(Failure::new(
        "200 without a candidate",
        "check groups[].target_url: the native surface is found from it",
    ))
}

async fn stream(asker: &Asker, model: &str) -> Result<String, Failure> {
    let seen = asker.chat(&question(model, true)).await?.good()?;
    let events = seen.text.lines().filter(|line| line.starts_with("data:")).count();
    if let Some(line) =
        seen.text.lines().find(|line| line.starts_with("data:") && line.contains("\"error\":"))
    {
        let line = ask::shown(line);
        return Err(Failure::new(format!("an error inside the stream: {line}"), "ask again; see the log"));
    }
    if !seen.text.trim_end().ends_with("data: [DONE]") {
        let seen = format!("{events} events, but no [DONE] at the end");
        return Err(Failure::new(
            seen,
            "is there a proxy before it that buffers or cuts streams? see the log",
        ));
    }
    Ok(format!("{events} events, the first after {}, {}", seen.first(), seen.answer()))
}

async fn wrong_token(asker: &Asker) -> Result<String, Failure> {
    let seen = asker.call(asker.http.get(asker.url("/v1/models")).bearer_auth(NO_TOKEN)).await?;
    match seen.status {
        StatusCode::UNAUTHORIZED => Ok("401".to_owned()),
        StatusCode::OK => {
            let fix = format!("add server.clients; if that is what you want, run this without {TOKEN}");
            Err(Failure::new("anybody may call, whatever the token", fix))
        }
        _ => Err(seen.unexpected("401")),
    }
}

async fn unknown_model(asker: &Asker) -> Result<String, Failure> {
    let seen = asker.chat(&question(NO_MODEL, false)).await?;
    match seen.status {
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST if seen.is_error() => Ok(seen.brief()),
        _ => Err(seen.unexpected("404 with an error")),
    }
}

async fn body_limit(asker: &Asker) -> Result<String, Failure> {
    let endless = futures_util::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>();
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(TOO_LARGE));
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let request = asker.as_client(asker.http.post(asker.url(CHAT))).headers(headers);
    let seen = asker.call(request.body(reqwest::Body::wrap_stream(endless))).await?;
    match seen.status {
        StatusCode::PAYLOAD_TOO_LARGE => Ok(seen.brief()),
        _ => Err(seen.unexpected("413")),
    }
}

async fn keys(asker: &Asker) -> Result<String, Failure> {
    let seen: Seen = asker.get(&asker.ops, "/health/detailed").await?;
    if seen.status != StatusCode::OK {
        return Err(Failure::new(seen.brief(), "if server.ops_port is set, give that address as --ops-url"));
    }
    let detailed = seen.json();
    let all = detailed["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    let away = |key: &&Value| matches!(key["state"].as_str(), Some("disabled" | "blocked"));
    let states = detailed["keys_by_state"].as_object();
    let states = states.into_iter().flatten().map(|(state, count)| format!("{count} {state}"));
    let told = format!("{} keys: {}", all.len(), states.collect::<Vec<_>>().join(", "));
    if all.iter().any(|key| !away(&key)) {
        return Ok(told);
    }
    let named = all.iter().take(NAMED_KEYS).map(|key| {
        let text = |value: &Value| ask::shown(value.as_str().unwrap_or("?"));
        format!("{}: {}", text(&key["id"]), text(&key["blocks"][0]["reason"]))
    });
    let why = named.collect::<Vec<_>>().join(", ");
    Err(Failure::new(format!("{told} ({why})"), "replace them, or wait; /health/detailed has every reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_base_that_clients_use_is_the_same() {
        for text in ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"] {
            assert_eq!(base(text).unwrap(), "http://host:1");
        }
        for text in ["host:1", "ftp://host", "127.0.0.1:4806", "http://user:secret@host"] {
            let problem = base(text).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
