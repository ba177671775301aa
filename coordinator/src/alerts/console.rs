//! What operators ask about alerts, for whichever process answers them over HTTP: silences, and a test of receivers. As
//! with keys, every wish is in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use keyfleet_core::alert::mute::Silence;
use keyfleet_core::message::Answer;
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::status::{Desk, NoAnswer, Wish};

/// The longest silence, in minutes: a year.
pub const MAX_MINUTES: u64 = 365 * 24 * 60;
/// How long a silence holds if nobody says so, in minutes.
const MINUTES: u64 = 60;
/// How long the leader of this process may take to answer. A commit that the store answers late is within it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a request says beside the operation.
#[derive(Debug, Default, Deserialize)]
pub struct Options {
    minutes: Option<u64>,
    /// `rule=pool_low,model=gemini-2.5-pro`
    of: Option<String>,
    author: Option<String>,
    reason: Option<String>,
    number: Option<u64>,
    receiver: Option<String>,
}

/// What an operator wants.
#[derive(Debug)]
pub enum Operation {
    /// A message to every receiver, or to this one. Any process can: all have the same receivers.
    Test(Option<String>),
    /// Only the leader can.
    Silence(Wish),
}

/// A process that is its own coordinator, for its operators.
#[derive(Debug, Clone)]
struct Console {
    desk: Desk,
    config: watch::Receiver<Arc<Config>>,
}

/// What a process answers that is its own coordinator. Who may ask is its own business.
pub fn routes(desk: Desk, config: watch::Receiver<Arc<Config>>) -> Router {
    Router::new()
        .route("/api/v1/alerts", get(show))
        .route("/api/v1/alerts/{operation}", post(operate))
        .with_state(Console { desk, config })
}

async fn show(State(console): State<Console>) -> Response {
    match console.desk.alerts(PATIENCE).await {
        Ok(view) => Json(view).into_response(),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

async fn operate(
    State(console): State<Console>,
    Path(verb): Path<String>,
    Query(options): Query<Options>,
) -> Response {
    match Operation::of(&verb, options) {
        Ok(Operation::Test(only)) => test(&console.config, only.as_deref()).await,
        Ok(Operation::Silence(wish)) => silence(&console.desk, wish, "the gateway's API".to_owned()).await,
        Err(refusal) => refusal,
    }
}

impl Operation {
    /// Reads a request; or what it is answered with.
    #[expect(clippy::result_large_err, reason = "an answer, as axum has it")]
    pub fn of(verb: &str, options: Options) -> Result<Self, Response> {
        let wish = match verb {
            "test" => return Ok(Self::Test(options.receiver)),
            "silence" => begin(options),
            "unsilence" => {
                options.number.map(Wish::End).ok_or_else(|| "number: give that of the silence".to_owned())
            }
            _ => {
                let known = "there is no such operation: silence, unsilence or test";
                return Err(refuse(StatusCode::NOT_FOUND, known));
            }
        };
        wish.map(Self::Silence).map_err(|why| refuse(StatusCode::BAD_REQUEST, &why))
    }
}

fn begin(options: Options) -> Result<Wish, String> {
    let minutes = options.minutes.unwrap_or(MINUTES);
    if !(1..=MAX_MINUTES).contains(&minutes) {
        return Err(format!("minutes: give a whole number from 1 to {MAX_MINUTES}"));
    }
    let mut matchers = BTreeMap::new();
    for part in options.of.iter().flat_map(|of| of.split(',')).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return Err("of: give conditions such as rule=pool_low,model=gemini-2.5-pro".to_owned());
        };
        let name = name.trim();
        if matchers.insert(name.to_owned(), value.trim().to_owned()).is_some() {
            return Err(format!(
                "of: {name} is given twice, and no alert has both; begin a silence for each"
            ));
        }
    }
    Ok(Wish::Begin(Silence {
        matchers,
        author: options.author.unwrap_or_default(),
        reason: options.reason.unwrap_or_default(),
        until: clock::utc().plus(Duration::from_secs(minutes * 60)),
    }))
}

/// Begins or ends a silence, and says so.
pub async fn silence(desk: &Desk, wish: Wish, by: String) -> Response {
    let done = match &wish {
        Wish::Begin(_) => "nobody is told of what this covers".to_owned(),
        Wish::End(number) => format!("silence {number} is over"),
    };
    match desk.silence(wish, by, PATIENCE).await {
        Ok(Answer::Refused { why }) => refuse(StatusCode::CONFLICT, &why),
        Ok(_) => Json(json!({"done": done})).into_response(),
        Err(error @ NoAnswer::Silent) => refuse(StatusCode::GATEWAY_TIMEOUT, &error.to_string()),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("{error}; try again")),
    }
}

/// Sends a message to every receiver, or to this one, and says what became of each.
pub async fn test(config: &watch::Receiver<Arc<Config>>, only: Option<&str>) -> Response {
    tracing::info!(receiver = only, "an operator tests receivers of alerts");
    let config = config.borrow().clone();
    let results = super::test(&config.alerts, super::cluster(&config), only).await;
    if results.is_empty() {
        let none = "no receiver has this name, or there is none: see alerts.receivers";
        return refuse(StatusCode::NOT_FOUND, none);
    }
    let lines = results.iter().map(|(name, result)| match result {
        Ok(()) => format!("{name}: delivered"),
        Err(why) => format!("{name}: not delivered: {why}"),
    });
    let text = lines.collect::<Vec<_>>().join("; ");
    if results.iter().all(|(_, result)| result.is_ok()) {
        Json(json!({"done": text})).into_response()
    } else {
        refuse(StatusCode::BAD_GATEWAY, &text)
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({"error": error}))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(of: &str, minutes: Option<u64>) -> Result<Wish, String> {
        begin(Options { minutes, of: Some(of.to_owned()), ..Options::default() })
    }

    #[test]
    fn a_silence_is_asked_for_by_conditions() {
        let Ok(Wish::Begin(silence)) = asked("rule=pool_low, model=a=b", Some(5)) else { panic!() };
        let matchers = [("model", "a=b"), ("rule", "pool_low")];
        let matchers = matchers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(silence.matchers, matchers.into());
        assert!(asked("pool_low", None).is_err());
        let twice = asked("rule=pool_low,model=m, rule=pool_exhausted", None).unwrap_err();
        assert_eq!(twice, "of: rule is given twice, and no alert has both; begin a silence for each");
        assert!(asked("rule=pool_low", Some(0)).is_err());
        assert!(asked("rule=pool_low", Some(MAX_MINUTES + 1)).is_err());
    }
}
