//! Alerts for operators: what is wrong and what was, silences, and a test of receivers. As with keys, every wish is in
//! the log.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, OriginalUri, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use coordinator::status::{self, NoAnswer, Role, Wish};
use http::{HeaderMap, StatusCode};
use keyfleet_core::alert::mute::Silence;
use keyfleet_core::message::Answer;
use keyfleet_service::clock;
use serde::Deserialize;

use super::forward::{asker, forward};
use super::{Api, PATIENCE, refuse};
use crate::cli::MAX_MINUTES;
use crate::shown::Said;

/// How long a silence holds if nobody says so, in minutes.
const MINUTES: u64 = 60;

#[derive(Debug, Deserialize)]
pub(super) struct Options {
    minutes: Option<u64>,
    /// `rule=pool_low,model=gemini-2.5-pro`
    of: Option<String>,
    author: Option<String>,
    reason: Option<String>,
    number: Option<u64>,
    receiver: Option<String>,
}

pub(super) async fn show(State(api): State<Arc<Api>>) -> Response {
    match api.desk.alerts(PATIENCE).await {
        Ok(view) => Json(view).into_response(),
        Err(NoAnswer::NotLeading) => match api.stored().await {
            Ok(stored) => Json(stored.alerts).into_response(),
            Err(refusal) => refusal,
        },
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

pub(super) async fn operate(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(verb): Path<String>,
    Query(options): Query<Options>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Response {
    let by = asker(peer, &headers);
    let wish = match verb.as_str() {
        "test" => {
            tracing::info!(by, receiver = ?options.receiver, "an operator tests receivers of alerts");
            return test(&api, options.receiver.as_deref()).await;
        }
        "silence" => begin(&options),
        "unsilence" => match options.number {
            Some(number) => Ok(Wish::End(number)),
            None => Err("number: give that of the silence".to_owned()),
        },
        _ => return refuse(StatusCode::NOT_FOUND, "there is no such operation: silence, unsilence or test"),
    };
    let wish = match wish {
        Ok(wish) => wish,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
    };
    let pulse = api.desk.pulse();
    let answer = match &pulse.role {
        Role::Leading => lead(&api, wish, by.clone()).await,
        Role::Standby(holder) => {
            let leader = status::address(holder).unwrap_or(holder.as_str());
            forward(&api, leader, &uri, peer, &headers).await
        }
        Role::Unknown => refuse(StatusCode::SERVICE_UNAVAILABLE, "nobody is known to lead; try again"),
    };
    let (status, led) = (answer.status().as_u16(), pulse.role == Role::Leading);
    tracing::info!(by, operation = verb, status, forwarded = !led, "an operator's wish was answered");
    answer
}

fn begin(options: &Options) -> Result<Wish, String> {
    let minutes = options.minutes.unwrap_or(MINUTES);
    if !(1..=MAX_MINUTES).contains(&minutes) {
        return Err(format!("minutes: give a whole number from 1 to {MAX_MINUTES}"));
    }
    let mut matchers = BTreeMap::new();
    for part in options.of.iter().flat_map(|of| of.split(',')).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            return Err("of: give conditions such as rule=pool_low,model=gemini-2.5-pro".to_owned());
        };
        matchers.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    Ok(Wish::Begin(Silence {
        matchers,
        author: options.author.clone().unwrap_or_default(),
        reason: options.reason.clone().unwrap_or_default(),
        until: clock::utc().plus(Duration::from_secs(minutes * 60)),
    }))
}

async fn lead(api: &Api, wish: Wish, by: String) -> Response {
    let done = match &wish {
        Wish::Begin(_) => "nobody is told of what this covers".to_owned(),
        Wish::End(number) => format!("silence {number} is over"),
    };
    match api.desk.silence(wish, by, PATIENCE).await {
        Ok(Answer::Refused { why }) => refuse(StatusCode::CONFLICT, why),
        Ok(_) => Json(Said { done: Some(done), ..Said::default() }).into_response(),
        Err(error @ NoAnswer::Silent) => refuse(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; try again")),
    }
}

/// Any coordinator can: they have the same receivers.
async fn test(api: &Api, only: Option<&str>) -> Response {
    let config = api.config.borrow().clone();
    let cluster = coordinator::alerts::cluster(&config);
    let results = coordinator::alerts::test(&config.alerts, cluster, only).await;
    if results.is_empty() {
        return refuse(
            StatusCode::NOT_FOUND,
            "no receiver has this name, or there is none: see alerts.receivers",
        );
    }
    let lines = results.iter().map(|(name, result)| match result {
        Ok(()) => format!("{name}: delivered"),
        Err(why) => format!("{name}: not delivered: {why}"),
    });
    let text = lines.collect::<Vec<_>>().join("; ");
    if results.iter().all(|(_, result)| result.is_ok()) {
        Json(Said { done: Some(text), ..Said::default() }).into_response()
    } else {
        refuse(StatusCode::BAD_GATEWAY, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(of: &str, minutes: Option<u64>) -> Result<Wish, String> {
        let options = Options {
            minutes,
            of: Some(of.to_owned()),
            author: None,
            reason: None,
            number: None,
            receiver: None,
        };
        begin(&options)
    }

    #[test]
    fn a_silence_is_asked_for_by_conditions() {
        let Ok(Wish::Begin(silence)) = asked("rule=pool_low, model=a=b", Some(5)) else { panic!() };
        let matchers = [("model", "a=b"), ("rule", "pool_low")];
        let matchers = matchers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(silence.matchers, matchers.into());
        assert!(asked("pool_low", None).is_err());
        assert!(asked("rule=pool_low", Some(0)).is_err());
        assert!(asked("rule=pool_low", Some(MAX_MINUTES + 1)).is_err());
    }
}
