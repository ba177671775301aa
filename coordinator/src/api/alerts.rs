//! Alerts for operators. What only the leader can do is handed on to it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, OriginalUri, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use coordinator::alerts::console::{self, Operation, Options};
use coordinator::status::{self, NoAnswer, Role};
use http::{HeaderMap, StatusCode};

use super::forward::{asker, forward};
use super::{Api, PATIENCE, refuse};

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
    let pulse = api.desk.pulse();
    let answer = match (Operation::of(&verb, options), &pulse.role) {
        (Err(refusal), _) => return refusal,
        (Ok(Operation::Test(only)), _) => console::test(&api.config, only.as_deref()).await,
        (Ok(Operation::Silence(wish)), Role::Leading) => console::silence(&api.desk, wish, by.clone()).await,
        (Ok(Operation::Silence(_)), Role::Standby(holder)) => {
            let leader = status::address(holder).unwrap_or(holder.as_str());
            forward(&api, leader, &uri, peer, &headers).await
        }
        (Ok(Operation::Silence(_)), Role::Unknown) => {
            refuse(StatusCode::SERVICE_UNAVAILABLE, "nobody is known to lead; try again")
        }
    };
    let (status, led) = (answer.status().as_u16(), pulse.role == Role::Leading);
    tracing::info!(by, operation = verb, status, led, "an operator's wish was answered");
    answer
}
