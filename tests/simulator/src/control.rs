//! `/__sim/`: the same controls over HTTP that the library gives in process.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::reply::Outgoing;
use crate::rule::Rule;
use crate::state::State;
use crate::world::World;

const MAX_BODY: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockChange {
    advance_ms: Option<i64>,
    /// Milliseconds since the Unix epoch, or RFC 3339.
    now: Option<Value>,
}

type Answer = Result<Value, (StatusCode, String)>;

pub(crate) async fn serve(
    state: &Arc<State>,
    head: &Parts,
    incoming: Incoming,
) -> io::Result<Response<Outgoing>> {
    let body = Limited::new(incoming, MAX_BODY).collect().await.map_err(io::Error::other)?.to_bytes();
    let (status, value) = match route(state, head, &body) {
        Ok(value) => (StatusCode::OK, value),
        Err((status, message)) => (status, json!({"error": message})),
    };
    let mut response = Response::new(Outgoing::unwatched(Bytes::from(value.to_string() + "\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn route(state: &State, head: &Parts, body: &[u8]) -> Answer {
    let path = head.uri.path().trim_start_matches("/__sim/");
    match (head.method.as_str(), path) {
        ("GET", "health") => Ok(json!({"status": "ok"})),
        ("GET", "world") => Ok(json!(state.pool().world)),
        ("PUT", "world") => {
            let world: World = parse(body)?;
            state.set_world(world).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
            Ok(json!({}))
        }
        ("POST", "rules") => {
            let rules: Vec<Rule> = match parse::<Value>(body)? {
                many @ Value::Array(_) => from(many)?,
                one => vec![from(one)?],
            };
            if rules.into_iter().all(|rule| state.rules.add(rule)) {
                Ok(json!({}))
            } else {
                Err((StatusCode::BAD_REQUEST, "too many rules".to_owned()))
            }
        }
        ("DELETE", "rules") => {
            state.rules.clear();
            Ok(json!({}))
        }
        ("GET", "log") => Ok(json!(state.log.all())),
        ("DELETE", "log") => {
            state.log.clear();
            Ok(json!({}))
        }
        ("GET", "clock") => Ok(json!({"now": state.clock.now_ms()})),
        ("POST", "clock") => set_clock(state, &parse(body)?),
        ("GET", "stats") => Ok(json!(state.stats())),
        _ => Err((StatusCode::NOT_FOUND, format!("no control {} {path}", head.method))),
    }
}

fn set_clock(state: &State, change: &ClockChange) -> Answer {
    if let Some(now) = &change.now {
        let instant = now.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let Some(ms) = now.as_i64().or_else(|| instant.map(jiff::Timestamp::as_millisecond)) else {
            return Err((StatusCode::BAD_REQUEST, "now: milliseconds or RFC 3339".to_owned()));
        };
        state.clock.set_ms(ms);
    }
    if let Some(by) = change.advance_ms {
        state.clock.advance_ms(by);
    }
    Ok(json!({"now": state.clock.now_ms()}))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

fn from<T: DeserializeOwned>(value: Value) -> Result<T, (StatusCode, String)> {
    serde_json::from_value(value).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}
