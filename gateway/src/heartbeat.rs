//! Comments in the long silences of a stream, for clients behind proxies that cut quiet connections. Off by default.
//!
//! The silence before the first event is the longest. Until the first comment is due nothing differs; then the head
//! goes out with what is known by then, and an error that comes later can only be told as an event.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http_body::Frame;
use http_body_util::BodyExt as _;
use keyfleet_core::error_body::ErrorBody;
use tokio::time::{Instant, Sleep};

use crate::api::interactions;
use crate::call::{Call, Surface};
use crate::trail::Trail;

type Page = Pin<Box<dyn Future<Output = Response> + Send>>;

/// The largest error that is turned into an event.
const MAX_ERROR: usize = 128 * 1024;

/// What is known of a request before it has an answer.
pub(crate) struct Early {
    surface: Surface,
    is_interaction: bool,
    id: Option<HeaderValue>,
}

impl Early {
    pub(crate) fn of(call: &Call, trail: &Trail) -> Self {
        let is_interaction = call.surface == Surface::Native && interactions::has_path(&call.path);
        Self { surface: call.surface, is_interaction, id: HeaderValue::from_str(&trail.id).ok() }
    }

    /// An error's JSON as an event.
    fn event_of(&self, json: &[u8]) -> Vec<u8> {
        if self.is_interaction {
            let error = ErrorBody::parse(json);
            return interactions::error_event(&error.status, &error.message).into();
        }
        let end = if self.surface == Surface::Native { "\r\n\r\n" } else { "\n\n" };
        [b"data: ", json, end.as_bytes()].concat()
    }
}

/// Answers with the page's response, or with a stream of comments that becomes it.
pub(crate) async fn with(mut page: Page, interval: Duration, known: Early) -> Response {
    let in_time = tokio::time::timeout(interval, &mut page).await;
    let mut id = None;
    let (state, head) = match in_time {
        Ok(response) if !is_events(&response) => return response,
        Ok(response) => {
            let (head, body) = response.into_parts();
            (State::Body(body), Some(head))
        }
        Err(_) => {
            id.clone_from(&known.id);
            (State::Page(events_of(page, known)), None)
        }
    };
    let is_late = head.is_none();
    let beats = Beats {
        state,
        interval,
        timer: Box::pin(tokio::time::sleep(if is_late { Duration::ZERO } else { interval })),
        between_events: true,
    };
    let mut response = Response::new(Body::new(beats));
    if let Some(head) = head {
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
    } else {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if let Some(id) = id {
            headers.insert("x-request-id", id);
        }
    }
    response
}

fn is_events(response: &Response) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

type LateBody = Pin<Box<dyn Future<Output = Body> + Send>>;

/// The page's body, an error as an event.
fn events_of(page: Page, known: Early) -> LateBody {
    Box::pin(async move {
        let response = page.await;
        if is_events(&response) {
            return response.into_body();
        }
        let limited = http_body_util::Limited::new(response.into_body(), MAX_ERROR).collect().await;
        let json = limited.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Body::from(known.event_of(&json))
    })
}

enum State {
    Page(LateBody),
    Body(Body),
}

struct Beats {
    state: State,
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    /// A comment may stand here: the last byte ended an event.
    between_events: bool,
}

impl http_body::Body for Beats {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if let State::Page(page) = &mut this.state
            && let Poll::Ready(body) = page.as_mut().poll(cx)
        {
            this.state = State::Body(body);
        }
        if let State::Body(body) = &mut this.state
            && let Poll::Ready(frame) = Pin::new(body).poll_frame(cx)
        {
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                this.between_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
                this.timer.as_mut().reset(Instant::now() + this.interval);
            }
            return Poll::Ready(frame);
        }
        if this.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.timer.as_mut().reset(Instant::now() + this.interval);
        // The timer has to be polled to wake us again.
        let _ = this.timer.as_mut().poll(cx);
        if this.between_events {
            let comment: Result<_, Infallible> = Ok(Frame::data(Bytes::from_static(b": keep-alive\n\n")));
            return Poll::Ready(Some(comment.map_err(|never| match never {})));
        }
        Poll::Pending
    }
}
