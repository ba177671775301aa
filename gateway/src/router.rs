//! Every route and every layer, in order.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use crate::{App, Worker, ops, request};

/// What clients reach.
pub(crate) fn clients(worker: Worker, with_ops: bool) -> Router {
    let app = worker.app.clone();
    let api = Router::new().fallback(request::handle).with_state(worker);
    let own = if with_ops { operators(app.clone()) } else { health() };
    own.fallback_service(api).layer(option_layer(cors(app))).layer(CatchPanicLayer::new())
}

/// What operators and their tools reach.
pub(crate) fn operators(app: Arc<App>) -> Router {
    health()
        .route("/health/ready", get(ops::ready))
        .route("/health/detailed", get(ops::detailed))
        .route("/metrics", get(ops::metrics))
        .route("/admin/keys/{id}/probe", post(ops::probe))
        .with_state(app)
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
