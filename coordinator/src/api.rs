//! The coordinator's HTTP side: health and figures for everybody, `/api/v1` for operators.
//!
//! A standby answers what it can from the store, and hands on to the leader what only that one can do.

mod admit;
mod alerts;
mod forward;
pub(crate) mod metrics;
mod operate;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coordinator::status::{self, Desk, Lag, NoAnswer, Pulse, Role, Stored};
use http::StatusCode;
use keyfleet_fabric::bus::nats::Nats;
use keyfleet_fabric::store::StateStore;
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use keyfleet_service::follow::Reloads;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};

use crate::shown::{Listing, Replica, Said, Status, seconds_up};

/// How long the leader of this process may take to answer. A commit that the store answers late is within it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the routes work with.
pub(crate) struct Api {
    pub(crate) desk: Desk,
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) reloads: watch::Receiver<Reloads>,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) nats: Nats,
    /// Where this API is reached.
    pub(crate) address: Option<String>,
    /// To the leader.
    pub(crate) client: reqwest::Client,
    /// Held by whoever reads all of the store: one at a time.
    pub(crate) reading: Mutex<()>,
}

/// Every route.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let operators = Router::new()
        .route("/status", get(show_status))
        .route("/keys", get(show_keys))
        .route("/keys/{id}/{operation}", post(operate::operate))
        .route("/alerts", get(alerts::show))
        .route("/alerts/{operation}", post(alerts::operate))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such route in /api/v1") })
        .layer(middleware::from_fn_with_state(api.clone(), admit::admit));
    Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready))
        .route("/health/detailed", get(detailed))
        .route("/metrics", get(metrics::show))
        .nest("/api/v1", operators)
        .with_state(api)
}

/// An answer that is not what was asked for.
fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    let said = Said { error: Some(error.into()), ..Said::default() };
    (status, Json(said)).into_response()
}

impl Api {
    fn bus_up(&self) -> bool {
        let health = self.nats.health();
        health.control.up && health.bulk.up
    }

    /// What it does for the deployment, or why nothing yet.
    pub(crate) fn role(&self) -> Result<String, &'static str> {
        let pulse = self.desk.pulse();
        let epoch = pulse.epoch;
        match &pulse.role {
            _ if !pulse.store_up => Err("Redis does not answer"),
            Role::Unknown if !self.bus_up() => {
                Err("NATS does not answer, so that this coordinator cannot lead")
            }
            Role::Unknown => Err("nobody is known to lead"),
            Role::Leading => Ok(format!("leading in epoch {epoch}")),
            Role::Standby(_) => {
                let leader = self.leader(&pulse).unwrap_or_default();
                Ok(format!("standing by, {leader} leads in epoch {epoch}"))
            }
        }
    }

    fn lag(&self, pulse: &Pulse) -> Option<Lag> {
        pulse.lag(self.nats.health().tail)
    }

    /// Where the leader is reached, or its name.
    fn leader(&self, pulse: &Pulse) -> Option<String> {
        match &pulse.role {
            Role::Leading => Some(self.address.clone().unwrap_or_else(|| "this coordinator".to_owned())),
            Role::Standby(holder) => {
                Some(status::address(holder).unwrap_or_else(|| holder.as_str()).to_owned())
            }
            Role::Unknown => None,
        }
    }

    async fn stored(&self) -> Result<Stored, Response> {
        let unavailable = |error: &str| refuse(StatusCode::SERVICE_UNAVAILABLE, error);
        let _one_at_a_time = self.reading.lock().await;
        let config = self.config.borrow().clone();
        status::stored(self.store.as_ref(), &config).await.map_err(|error| {
            tracing::warn!(%error, "the state cannot be read for an operator");
            unavailable("the store does not answer, and this coordinator does not lead")
        })
    }
}

/// 200 while the store answers and somebody leads.
async fn ready(State(api): State<Arc<Api>>) -> Response {
    match api.role() {
        Ok(role) => format!("ready: {role}\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// How this coordinator and its connections are. No key, no secret.
async fn detailed(State(api): State<Arc<Api>>) -> Json<Value> {
    let pulse = api.desk.pulse();
    let bus = api.nats.health();
    let link = |link: &keyfleet_fabric::bus::nats::LinkHealth| {
        json!({
            "up": link.up,
            "seconds": link.since.elapsed().as_secs(),
            "connects": link.connects,
            "slow_drops": link.slow_drops,
        })
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "role": role(&pulse),
        "leader": api.leader(&pulse),
        "epoch": pulse.epoch,
        "revision": pulse.revision,
        "event_lag": pulse.lag(bus.tail).map(|lag| lag.reports),
        "reports_lost": pulse.lost,
        "blind": pulse.blind && pulse.role == Role::Leading,
        "takeovers": pulse.takeovers,
        "commits": pulse.commits,
        "commit_failures": pulse.commit_failures,
        "store": { "up": pulse.store_up },
        "bus": {
            "control": link(&bus.control),
            "bulk": link(&bus.bulk),
            "skipped": bus.skipped,
            "unsent": bus.unsent,
            "rebuilds": bus.rebuilds,
            "stream_differs": bus.stream_differs,
        },
    }))
}

fn role(pulse: &Pulse) -> &'static str {
    match pulse.role {
        Role::Leading => "leading",
        Role::Standby(_) => "standby",
        Role::Unknown => "unknown",
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

async fn show_status(State(api): State<Arc<Api>>) -> Response {
    let standing = api.desk.standing(PATIENCE).await;
    let pulse = api.desk.pulse();
    let mut shown = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: role(&pulse).to_owned(),
        leader: api.leader(&pulse),
        epoch: pulse.epoch,
        revision: pulse.revision,
        lag: api.lag(&pulse).map(|lag| lag.reports),
        lag_ms: api.lag(&pulse).map(|lag| millis(lag.age)),
        reports_lost: pulse.lost,
        ledger_time_ms: None,
        blind_seconds_left: 0,
        buckets: None,
        open_lots: None,
        replicas: None,
        store_up: pulse.store_up,
        bus_up: api.bus_up(),
    };
    match standing {
        Ok(standing) => {
            shown.ledger_time_ms = Some(standing.time.as_ms());
            shown.blind_seconds_left = seconds_up(standing.blind_for);
            shown.buckets = Some(standing.buckets);
            shown.open_lots = Some(standing.open_lots);
            let replicas = standing.replicas.into_iter().map(|(replica, ago)| Replica {
                id: replica.as_str().to_owned(),
                heard_seconds_ago: ago.as_secs(),
            });
            shown.replicas = Some(replicas.collect());
        }
        // The leader is about to be another one, or busy: its own figures do.
        Err(NoAnswer::Busy | NoAnswer::Silent) => {}
        Err(NoAnswer::NotLeading) => {
            // What is known without the store says where the trouble is.
            if let Ok(Stored { meta, buckets, .. }) = api.stored().await {
                shown.epoch = meta.epoch;
                shown.revision = meta.rev;
                shown.ledger_time_ms = Some(meta.time.as_ms());
                shown.blind_seconds_left = seconds_up(meta.blind_until.since(meta.time));
                shown.buckets = Some(buckets);
            }
        }
    }
    Json(shown).into_response()
}

async fn show_keys(State(api): State<Arc<Api>>) -> Response {
    match api.desk.overview(PATIENCE).await {
        Ok(overview) => Json(Listing::of(&overview, "leader", clock::utc())).into_response(),
        Err(NoAnswer::NotLeading) => match api.stored().await {
            Ok(stored) => Json(Listing::of(&stored.overview, "store", clock::utc())).into_response(),
            Err(refusal) => refusal,
        },
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}
