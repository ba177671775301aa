//! The head of the client's answer: the upstream's, without what concerned its connection, and with our marks.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};
use keyfleet_service::clock;

use super::course::Course;
use crate::answer::{self, Answer};
use crate::call::Call;
use crate::pool::Permit;
use crate::relay::Relay;
use crate::trail::Trail;
use crate::{Worker, upload};

/// Passes the answer on. From here on nothing is retried: the attempt moves into the body.
pub(super) fn relay(
    worker: &Worker,
    call: &Call,
    course: &Course,
    mut answer: Answer,
    mut permit: Permit,
    mut trail: Trail,
) -> Response {
    let ttfb = trail.elapsed();
    permit.succeeded(ttfb, clock::mono());
    trail.answered(ttfb, answer.status);
    let mut headers = std::mem::take(&mut answer.headers);
    tidy(&mut headers, &answer);
    upload::rewrite_url(&mut headers, call);
    mark(&mut headers, &trail);
    if course.model != call.model
        && let Ok(model) = HeaderValue::from_str(course.model.as_str())
    {
        headers.insert("x-keyfleet-model", model);
    }
    let status = answer.status;
    let idle = permit.live.config.server.idle_timeout;
    let body = Relay::new(answer, permit, trail, idle, &worker.app.hard);
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Removes what concerned the upstream's connection only.
fn tidy(headers: &mut HeaderMap, answer: &Answer) {
    const HOP_BY_HOP: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "alt-svc",
    ];
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(http::header::SET_COOKIE);
    if answer.form != answer::Form::Bytes {
        // An error may have to be added.
        headers.remove(http::header::CONTENT_LENGTH);
    }
}

/// Says which request and which key this was.
pub(crate) fn mark(headers: &mut HeaderMap, trail: &Trail) {
    let mut insert = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    insert("x-request-id", &trail.id);
    if let Some(key) = &trail.key {
        insert("x-keyfleet-key", key.as_str());
    }
    headers.insert("x-keyfleet-attempts", HeaderValue::from(trail.attempts));
}
