//! The commands for operators: each is one request to the API of a coordinator that runs.

mod alerting;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use coordinator::alerts::view::View;
use http::StatusCode;
use keyfleet_service::client;
use keyfleet_service::config::{Config, Secret};
use keyfleet_service::healthcheck::reachable;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;

use crate::cli::{Alerts, Asking, At, Chosen, Command};
use crate::shown::{Listing, Said, Status};

/// How long an answer may take: a standby may have to ask the leader.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long receivers of alerts may take with a test.
const TEST: Duration = Duration::from_secs(40);
const CONNECT: Duration = Duration::from_secs(3);
/// The longest answer: some 10,000 keys with a hundred buckets each.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// Asks, and shows what is answered; the exit code says whether it was done.
pub(crate) fn run(command: Command, config: &Config) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let shown = match runtime {
        Ok(runtime) => runtime.block_on(ask(command, config)),
        Err(error) => Err(error.to_string()),
    };
    match shown {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn ask(command: Command, config: &Config) -> Result<String, String> {
    match command {
        Command::Status(Asking { at, json }) => {
            let body = Caller::new(at.url, config)?.get("status").await?;
            if json { Ok(body + "\n") } else { Ok(table::status(&parsed::<Status>(&body)?)) }
        }
        Command::Keys(Asking { at, json }) => {
            let body = Caller::new(at.url, config)?.get("keys").await?;
            if json { Ok(body + "\n") } else { Ok(table::keys(&parsed::<Listing>(&body)?)) }
        }
        Command::Block { key, minutes } => operate(key, "block", Some(minutes), config).await,
        Command::Unblock(key) => operate(key, "unblock", None, config).await,
        Command::Disable(key) => operate(key, "disable", None, config).await,
        Command::Enable(key) => operate(key, "enable", None, config).await,
        Command::Probe(key) => operate(key, "probe", None, config).await,
        Command::Alerts(alerts) => self::alerts(alerts, config).await,
        _ => Err("not a command for a running coordinator".to_owned()),
    }
}

async fn alerts(command: Alerts, config: &Config) -> Result<String, String> {
    let (at, verb, options, patience): (At, _, Vec<(&str, String)>, _) = match command {
        Alerts::List(Asking { at, json }) => {
            let body = Caller::new(at.url, config)?.get("alerts").await?;
            return if json { Ok(body + "\n") } else { Ok(alerting::list(&parsed::<View>(&body)?)) };
        }
        Alerts::History(Asking { at, json }) => {
            let body = Caller::new(at.url, config)?.get("alerts").await?;
            return if json { Ok(body + "\n") } else { Ok(alerting::history(&parsed::<View>(&body)?)) };
        }
        Alerts::Silence { of, reason, author, minutes, at } => {
            let options = [("of", of.join(",")), ("reason", reason), ("author", author)];
            let options = options.into_iter().chain([("minutes", minutes.to_string())]);
            (at, "silence", options.collect(), PATIENCE)
        }
        Alerts::Unsilence { number, at } => (at, "unsilence", vec![("number", number.to_string())], PATIENCE),
        Alerts::Test { receiver, at } => {
            (at, "test", receiver.map(|receiver| ("receiver", receiver)).into_iter().collect(), TEST)
        }
    };
    let caller = Caller { patience, ..Caller::new(at.url, config)? };
    let mut url = caller.url(&["alerts", verb])?;
    url.query_pairs_mut().extend_pairs(options);
    let said: Said = parsed(&caller.call(Method::POST, url).await?)?;
    Ok(table::plain(&said.done.unwrap_or_default()) + "\n")
}

async fn operate(key: Chosen, verb: &str, minutes: Option<u64>, config: &Config) -> Result<String, String> {
    let caller = Caller::new(key.at.url, config)?;
    let mut url = caller.url(&["keys", &key.id, verb])?;
    if let Some(minutes) = minutes {
        url.query_pairs_mut().append_pair("minutes", &minutes.to_string());
    }
    let body = caller.call(Method::POST, url).await?;
    let said: Said = parsed(&body)?;
    Ok(table::plain(&said.done.unwrap_or_default()) + "\n")
}

fn parsed<T: DeserializeOwned>(body: &str) -> Result<T, String> {
    serde_json::from_str(body)
        .map_err(|error| format!("the answer is none of a coordinator of this release: {error}"))
}

/// Whoever asks.
struct Caller {
    base: Url,
    token: Option<Secret>,
    client: reqwest::Client,
    patience: Duration,
}

impl Caller {
    fn new(url: Option<String>, config: &Config) -> Result<Self, String> {
        let base = match url {
            Some(url) => Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https")),
            None => base(&config.coordinator.host, config.coordinator.port),
        };
        let base = base.ok_or("--url: give an address such as http://127.0.0.1:4807")?;
        let client = client::elsewhere(None, CONNECT).map_err(|error| error.to_string())?;
        Ok(Self { base, token: config.server.admin_token.clone(), client, patience: PATIENCE })
    }

    fn url(&self, path: &[&str]) -> Result<Url, String> {
        let mut url = self.base.clone();
        url.set_query(None);
        url.path_segments_mut()
            .map_err(|()| "--url: has no path".to_owned())?
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(path);
        Ok(url)
    }

    async fn get(&self, what: &str) -> Result<String, String> {
        self.call(Method::GET, self.url(&[what])?).await
    }

    async fn call(&self, method: Method, url: Url) -> Result<String, String> {
        let mut request = self.client.request(method, url).timeout(self.patience);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let mut answer = request.send().await.map_err(|error| self.nobody(&error))?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.nobody(&error))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err("the answer is too long".to_owned());
            }
            body.extend_from_slice(&chunk);
        }
        let body = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    /// Where it was asked, without what a URL may hold besides.
    fn place(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        format!("{host}:{}", self.base.port_or_known_default().unwrap_or_default())
    }

    fn nobody(&self, error: &reqwest::Error) -> String {
        let place = self.place();
        if error.is_timeout() {
            return format!("the coordinator at {place} did not answer in time");
        }
        format!(
            "no coordinator answers at {place}; is it running, and does it listen there? `--url` names another"
        )
    }

    fn refused(&self, status: StatusCode, body: &str) -> String {
        let place = self.place();
        let Ok(Said { error: Some(error), leader, .. }) = serde_json::from_str(body) else {
            return format!("what answers at {place} is no coordinator: status {status}");
        };
        let error = table::plain(&error);
        if status == StatusCode::UNAUTHORIZED {
            return format!(
                "{place}: the token is refused; this command sends the configuration's server.admin_token"
            );
        }
        match leader {
            Some(leader) => format!("{place}: {error}; the leader is {}", table::plain(&leader)),
            None => format!("{place}: {error}"),
        }
    }
}

/// Where the coordinator of this configuration is reached from its own machine.
fn base(host: &str, port: u16) -> Option<Url> {
    let host = reachable(host);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Url::parse(&format!("http://{host}:{port}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_can_be_named() {
        let caller = Caller {
            base: Url::parse("http://127.0.0.1:4807/behind/?x=1").unwrap(),
            token: None,
            client: reqwest::Client::new(),
            patience: PATIENCE,
        };
        let url = caller.url(&["keys", "a/b ?#..", "block"]).unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:4807/behind/api/v1/keys/a%2Fb%20%3F%23../block");
    }

    #[test]
    fn a_coordinator_that_listens_everywhere_is_asked_on_this_machine() {
        assert_eq!(base("0.0.0.0", 1).unwrap().as_str(), "http://127.0.0.1:1/");
        assert_eq!(base("::", 1).unwrap().as_str(), "http://[::1]:1/");
        assert_eq!(base("coordinator.internal", 1).unwrap().as_str(), "http://coordinator.internal:1/");
    }
}
