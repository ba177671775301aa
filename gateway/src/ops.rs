//! The routes for people and their tools: health, details, metrics, and the one thing that can be done by hand.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use keyfleet_core::id::{KeyId, ProjectId};
use keyfleet_core::message::{Answer, Ask, Operation, Subject};
use keyfleet_core::time::{Mono, Now};
use keyfleet_service::clock;
use keyfleet_service::exposition::{self, Exposition, Part, expose};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use subtle::ConstantTimeEq as _;

use crate::App;
use crate::metrics::{KeyFigures, Readings, Scrape};
use crate::pool::Blocked;

/// Every name of a figure begins with it.
const PREFIX: &str = "keyfleet";

/// 200 while the process is alive; asks nobody.
pub(crate) async fn health() -> &'static str {
    "ok\n"
}

/// 200 when requests can be served: the state is loaded, and the process is not going away.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.why_not_ready() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// The figures for a scraper, in the format that it asks for.
pub(crate) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Exposition { content_type, text } = expose(gather(&app).await, &headers);
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

/// The same for a collector.
pub(crate) async fn openmetrics(app: Arc<App>) -> String {
    exposition::openmetrics(gather(&app).await)
}

/// Our own figures, and those of others in this process.
async fn gather(app: &App) -> Vec<Part> {
    let own = Scrape { metrics: app.metrics.clone(), readings: readings(app) };
    let mut parts = vec![Part::new(PREFIX, own)];
    if let Some(gather) = &app.others {
        parts.push(gather().await);
    }
    parts
}

/// What can be looked up for a scraper.
pub(crate) fn readings(app: &App) -> Readings {
    let now = clock::now();
    Readings {
        keys: keys(app).into_iter().map(|key| figures(key, now)).collect(),
        buffered: app.budget.held() as u64,
        waiting_reports: app.pool.reports.waiting(),
        dropped_reports: app.pool.reports.dropped(),
        coalesced_reports: app.pool.reports.coalesced(),
        dropped_lines: app.log.dropped(),
        lease_waits: app.pool.quota.waits.load(Relaxed),
        lease_refusals: app.pool.quota.refusals.load(Relaxed),
        lease_unanswered: app.pool.quota.unanswered_so_far(),
        permits: app.pool.quota.in_hand(now.mono),
        unleasable: app.pool.quota.unleasable() as u64,
        state_age: app.state_age(now.mono).map_or(-1.0, |age| age.as_secs_f64()),
        state_revision: app.state_revision.load(Relaxed),
        reach: *app.fabric.reach.borrow(),
        reloads: *app.reloads.borrow(),
    }
}

/// A key without what belongs to single models.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 have 41 bits")]
fn figures(key: KeyView, now: Now) -> KeyFigures {
    let until = key.away.map(|away| away.until).filter(|until| *until != Mono::FOREVER);
    KeyFigures {
        id: key.id,
        state: key.state,
        reason: key.away.map_or("none", |away| away.cause.as_str()),
        score: f64::from(key.score) / 10.0,
        blocked_until: until.map(|until| now.utc.plus(until.since(now.mono)).as_ms() as f64 / 1_000.0),
    }
}

/// Everything that this replica knows about its keys. No upstream call, no secret.
pub(crate) async fn detailed(State(app): State<Arc<App>>) -> Json<Value> {
    let now = clock::now();
    let live = app.pool.live();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    let keys: Vec<Value> = keys(&app)
        .into_iter()
        .map(|key| {
            *states.entry(key.state).or_default() += 1;
            json!({
                "id": key.id.as_str(),
                "project": key.project.as_str(),
                "group": key.group,
                "state": key.state,
                "score": f64::from(key.score) / 10.0,
                "blocks": key.blocks,
            })
        })
        .collect();
    let validated = app.pool.last_validated();
    let last_errors: Vec<Value> = app
        .pool
        .last_failures()
        .into_iter()
        .map(|failure| {
            json!({
                "seconds_ago": now.mono.since(failure.at).as_secs(),
                "key": failure.key.as_str(),
                "model": failure.model.as_str(),
                "reason": failure.cause.as_str(),
            })
        })
        .collect();
    Json(json!({
        "status": app.why_not_ready().unwrap_or("ready"),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": now.mono.since(app.began).as_secs(),
        "state_age_ms": app.state_age(now.mono).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        "inflight_requests": app.metrics.in_flight(),
        "projects": live.projects.len(),
        "keys_by_state": states,
        "last_validated": validated.map(|(key, at)| json!({
            "key": key.as_str(), "seconds_ago": now.mono.since(at).as_secs(),
        })),
        "last_errors": last_errors,
        "keys": keys,
    }))
}

/// Lets those through who know `server.admin_token`.
pub(crate) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let live = app.pool.live();
    let Some(token) = &live.config.server.admin_token else {
        return (StatusCode::FORBIDDEN, "set server.admin_token to use this\n").into_response();
    };
    let expected = format!("Bearer {}", token.expose());
    let given = request.headers().get(AUTHORIZATION).map(http::HeaderValue::as_bytes).unwrap_or_default();
    if !bool::from(expected.as_bytes().ct_eq(given)) {
        return (StatusCode::UNAUTHORIZED, "send Authorization: Bearer with server.admin_token\n")
            .into_response();
    }
    drop(live);
    next.run(request).await
}

/// Asks the prober to look at a key now.
pub(crate) async fn probe(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let live = app.pool.live();
    if !live.keys.iter().any(|key| key.id.as_str() == id) {
        return (StatusCode::NOT_FOUND, "no key has this id\n").into_response();
    }
    let operation = Operation::Probe { key: KeyId::new(id) };
    match app.fabric.bus.ask(Ask::Operate { operation, by: "gateway".to_owned() }).await {
        Ok(Answer::Refused { why }) => (StatusCode::CONFLICT, format!("{why}\n")).into_response(),
        Ok(_) => (StatusCode::ACCEPTED, "it is looked at; see /health/detailed\n").into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

struct KeyView {
    id: KeyId,
    project: ProjectId,
    group: String,
    state: &'static str,
    score: u8,
    /// What keeps it from all work for the longest time.
    away: Option<Blocked>,
    blocks: Vec<Value>,
}

/// Every key with what keeps it from work.
fn keys(app: &App) -> Vec<KeyView> {
    let now = clock::now();
    let live = app.pool.live();
    let all = app.pool.blocks(now.mono);
    let mut by_owner: HashMap<&str, Vec<(&Subject, &Blocked)>> = HashMap::new();
    for (subject, blocked) in &all {
        let owner = match subject {
            Subject::Key(key) | Subject::KeyModel(key, _) => key.as_str(),
            Subject::Bucket(project, _) | Subject::Project(project) => project.as_str(),
            Subject::Model(..) => continue,
        };
        by_owner.entry(owner).or_default().push((subject, blocked));
    }
    live.keys
        .iter()
        .map(|key| {
            let project = &live.projects[key.project as usize];
            let concerns = |subject: &Subject| match subject {
                Subject::Key(id) | Subject::KeyModel(id, _) => *id == key.id,
                Subject::Bucket(id, _) | Subject::Project(id) => id == project,
                Subject::Model(..) => false,
            };
            let mut owners = vec![key.id.as_str()];
            owners.extend((project.as_str() != key.id.as_str()).then_some(project.as_str()));
            let blocks = owners.iter().filter_map(|owner| by_owner.get(owner)).flatten();
            let blocks: Vec<_> = blocks.filter(|(subject, _)| concerns(subject)).collect();
            let whole = |subject: &Subject| matches!(subject, Subject::Key(_) | Subject::Project(_));
            let score = app.pool.dial(&key.id).score();
            let for_good = |b: &Blocked| b.cause.is_terminal() || b.until == Mono::FOREVER;
            let whole = blocks.iter().filter(|(subject, _)| whole(subject)).map(|(_, blocked)| **blocked);
            let away = whole.max_by_key(|blocked| (for_good(blocked), blocked.until));
            let state = match away {
                Some(blocked) if for_good(&blocked) => "disabled",
                Some(_) => "blocked",
                None => score.band(),
            };
            KeyView {
                id: key.id.clone(),
                project: project.clone(),
                group: live.config.groups[key.group as usize].name.as_str().to_owned(),
                state,
                score: score.tenths(),
                away,
                blocks: blocks
                    .into_iter()
                    .map(|(subject, blocked)| block(subject, blocked, now.mono))
                    .collect(),
            }
        })
        .collect()
}

fn block(subject: &Subject, blocked: &Blocked, now: Mono) -> Value {
    let (scope, model) = match subject {
        Subject::Key(_) => ("key", None),
        Subject::KeyModel(_, model) => ("key_model", Some(model.as_str())),
        Subject::Bucket(_, model) => ("quota", Some(model.as_str())),
        Subject::Project(_) => ("project", None),
        Subject::Model(_, model) => ("model", Some(model.as_str())),
    };
    let seconds = |at: Mono| (at != Mono::FOREVER).then(|| at.since(now).as_secs());
    json!({
        "scope": scope,
        "model": model,
        "reason": blocked.cause.as_str(),
        "seconds_left": seconds(blocked.until),
        "probe_in_seconds": blocked.probe.and_then(seconds),
    })
}
