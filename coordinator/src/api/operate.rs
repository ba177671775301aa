//! What an operator can do to a key: at the leader, or by way of a standby. Every wish is in the log, with who had it
//! and what became of it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, OriginalUri, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use coordinator::status::{self, NoAnswer, Role};
use http::{HeaderMap, StatusCode};
use keyfleet_core::id::KeyId;
use keyfleet_core::message::{Answer, Operation};
use serde::Deserialize;

use super::forward::{asker, forward};
use super::{Api, PATIENCE, refuse};
use crate::cli::MAX_MINUTES;
use crate::shown::Said;

/// How long a block holds if nobody says so, in minutes.
const MINUTES: u64 = 60;

#[derive(Debug, Deserialize)]
pub(super) struct Options {
    minutes: Option<String>,
}

pub(super) async fn operate(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path((id, verb)): Path<(String, String)>,
    Query(options): Query<Options>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Response {
    let operation = match operation(&verb, KeyId::new(id.as_str()), options.minutes.as_deref()) {
        Ok(operation) => operation,
        Err((status, why)) => return refuse(status, why),
    };
    let by = asker(peer, &headers);
    let pulse = api.desk.pulse();
    let answer = match &pulse.role {
        Role::Leading => lead(&api, operation, by.clone()).await,
        Role::Standby(holder) => {
            let leader = status::address(holder).unwrap_or(holder.as_str());
            forward(&api, leader, &uri, peer, &headers).await
        }
        Role::Unknown => refuse(StatusCode::SERVICE_UNAVAILABLE, "nobody is known to lead; try again"),
    };
    let (status, led) = (answer.status().as_u16(), pulse.role == Role::Leading);
    // As it came from outside, escaped: it may hold anything.
    tracing::info!(by, operation = ?verb, key = ?id, status, forwarded = !led, "an operator's wish was answered");
    answer
}

fn operation(verb: &str, key: KeyId, minutes: Option<&str>) -> Result<Operation, (StatusCode, String)> {
    if minutes.is_some() && verb != "block" {
        return Err((StatusCode::BAD_REQUEST, "only a block takes minutes".to_owned()));
    }
    Ok(match verb {
        "block" => {
            let minutes = minutes.map_or(Ok(MINUTES), str::parse).ok();
            let Some(minutes) = minutes.filter(|minutes| (1..=MAX_MINUTES).contains(minutes)) else {
                let why = format!("minutes: give a whole number from 1 to {MAX_MINUTES}");
                return Err((StatusCode::BAD_REQUEST, why));
            };
            Operation::Block { key, ttl_ms: minutes * 60_000 }
        }
        "unblock" => Operation::Unblock { key },
        "disable" => Operation::Disable { key },
        "enable" => Operation::Enable { key },
        "probe" => Operation::Probe { key },
        _ => {
            let why = "there is no such operation: block, unblock, disable, enable or probe";
            return Err((StatusCode::NOT_FOUND, why.to_owned()));
        }
    })
}

async fn lead(api: &Api, operation: Operation, by: String) -> Response {
    let (Operation::Block { key, .. }
    | Operation::Unblock { key }
    | Operation::Disable { key }
    | Operation::Enable { key }
    | Operation::Probe { key }) = &operation;
    let config = api.config.borrow().clone();
    if !config.groups.iter().any(|group| group.keys.iter().any(|known| known.id == *key)) {
        return refuse(StatusCode::NOT_FOUND, "no key has this id; GET /api/v1/keys lists them");
    }
    let done = said(&operation);
    match api.desk.operate(operation, by, PATIENCE).await {
        Ok(Answer::Refused { why }) => refuse(StatusCode::CONFLICT, why),
        Ok(_) => Json(Said { done: Some(done), ..Said::default() }).into_response(),
        Err(error @ NoAnswer::Silent) => refuse(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; try again")),
    }
}

/// What is true from now on.
fn said(operation: &Operation) -> String {
    match operation {
        Operation::Block { key, ttl_ms } => {
            format!("{key} gets no traffic for {} minutes at least", ttl_ms / 60_000)
        }
        Operation::Unblock { key } => format!("{key} is unblocked, and so are its project and its quotas"),
        Operation::Disable { key } => format!("{key} gets no traffic until it is enabled"),
        Operation::Enable { key } => format!("{key} is enabled, and the upstream is asked about it"),
        Operation::Probe { key } => format!("the upstream is asked about {key}; see its state in a moment"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_blocks_and_within_bounds() {
        let asked = |verb, minutes| operation(verb, KeyId::new("k"), minutes).map_err(|(status, _)| status);
        let block = |minutes: u64| Ok(Operation::Block { key: KeyId::new("k"), ttl_ms: minutes * 60_000 });
        assert_eq!(asked("block", None), block(60));
        assert_eq!(asked("block", Some("5")), block(5));
        for wrong in ["0", "-1", "1.5", "", "525601", "99999999999999999999"] {
            assert_eq!(asked("block", Some(wrong)), Err(StatusCode::BAD_REQUEST), "{wrong}");
        }
        assert_eq!(asked("disable", Some("5")), Err(StatusCode::BAD_REQUEST));
        assert_eq!(asked("destroy", None), Err(StatusCode::NOT_FOUND));
    }
}
