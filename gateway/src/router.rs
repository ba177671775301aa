//! Every route and every layer, in order.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use http::StatusCode;
use tower::ServiceExt as _;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::{App, Worker, ops, request};

/// What a listener leads to.
#[derive(Clone)]
pub(crate) struct Entrance {
    routes: Router,
    /// Takes what is none of our own paths, past the router, whose boxes and clones cost as much as sending the answer.
    /// `None`: everything goes through the router.
    direct: Option<Worker>,
}

impl Entrance {
    /// Everything goes through the router.
    pub(crate) fn routed(routes: Router) -> Self {
        Self { routes, direct: None }
    }

    /// Answers a request. A panic on the way is a 500, and ends nothing else.
    pub(crate) async fn answer(self, request: Request) -> Response {
        let answered = AssertUnwindSafe(async {
            match self.direct {
                Some(worker) if !is_own(request.uri().path()) => {
                    request::handle(State(worker), request).await
                }
                _ => self.routes.oneshot(request).await.unwrap_or_else(|never| match never {}),
            }
        });
        answered.catch_unwind().await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }
}

/// The paths that are answered here, on the one listener or the other.
fn is_own(path: &str) -> bool {
    matches!(path, "/health" | "/health/ready" | "/health/detailed" | "/metrics")
        || path.starts_with("/admin/")
        || path.starts_with("/api/v1/")
}

/// What clients reach; with what operators do, if these have no listener of their own.
pub(crate) fn clients(worker: Worker, operators: Option<&Router>) -> Entrance {
    let app = worker.app.clone();
    let own = operators.cloned().unwrap_or_else(health);
    match cors(app) {
        None => Entrance { routes: own, direct: Some(worker) },
        Some(cors) => {
            let api = Router::new().fallback(request::handle).with_state(worker);
            Entrance::routed(own.fallback_service(api).layer(cors))
        }
    }
}

/// What operators and their tools reach. `others` is what others in this process answer.
pub(crate) fn operators(app: Arc<App>, others: Router) -> Router {
    let probe = Router::new().route("/admin/keys/{id}/probe", post(ops::probe)).with_state(app.clone());
    let admitted = probe.merge(others).route_layer(middleware::from_fn_with_state(app.clone(), ops::admit));
    health()
        .route("/health/ready", get(ops::ready))
        .route("/health/detailed", get(ops::detailed))
        .route("/metrics", get(ops::metrics))
        .with_state(app)
        .merge(admitted)
}

fn health<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/health", get(ops::health))
}

/// Browsers may call from `server.cors_allowed_origins`. Without any at the start there is no such layer.
fn cors(app: Arc<App>) -> Option<CorsLayer> {
    if app.pool.live().config.server.cors_allowed_origins.is_empty() {
        return None;
    }
    let allowed = AllowOrigin::predicate(move |origin, _| {
        let live = app.pool.live();
        let origins = &live.config.server.cors_allowed_origins;
        origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    });
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(AllowMethods::list(request::ALLOWED))
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(
            [
                "x-request-id",
                "x-keyfleet-key",
                "x-keyfleet-attempts",
                "x-keyfleet-model",
                "retry-after",
                "retry-after-ms",
                "x-goog-upload-url",
                "x-goog-upload-status",
            ]
            .map(http::HeaderName::from_static),
        ));
    Some(layer)
}
