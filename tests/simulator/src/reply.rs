//! An answer on its way out: a script of writes, pauses and breaks, and the watch over who ended it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::errors::{Dialect, Failure};
use crate::state::State;

/// "For good" ends after an hour: nothing here waits without a limit.
pub(crate) const FOREVER: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Wait(Duration),
    /// Lets the connection flush.
    Flush,
    /// Ends the connection in the middle of the body. A [`Step::Flush`] has to come before: hyper drops what it has
    /// not written when a body fails.
    Abort,
}

/// An answer before it is sent.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) steps: VecDeque<Step>,
    pub(crate) tag: Cow<'static, str>,
    /// Silence before the headers.
    pub(crate) delay: Duration,
    /// Whether the length is announced.
    pub(crate) sized: bool,
}

impl Reply {
    pub(crate) fn new(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        let mut headers = HeaderMap::with_capacity(12);
        google_headers(&mut headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let steps = VecDeque::from([Step::Data(body)]);
        Self { status, headers, steps, tag: Cow::Borrowed("ok"), delay: Duration::ZERO, sized: true }
    }

    pub(crate) fn failure(failure: &Failure, dialect: Dialect) -> Self {
        let mut reply = Self::new(failure.status(), failure.content_type(), failure.render(dialect));
        reply.tag.clone_from(&failure.tag);
        reply
    }

    pub(crate) fn into_response(self, ticket: Ticket) -> Response<Outgoing> {
        let Self { status, mut headers, mut steps, sized, .. } = self;
        steps.retain(|step| !matches!(step, Step::Data(data) if data.is_empty()));
        if sized && !headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length(&steps)));
        }
        let mut response = Response::new(Outgoing { steps, pause: None, ticket });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if response.body().steps.is_empty() {
            response.body_mut().ticket.finish();
        }
        response
    }
}

pub(crate) fn length(steps: &VecDeque<Step>) -> usize {
    steps.iter().map(|step| if let Step::Data(data) = step { data.len() } else { 0 }).sum()
}

fn google_headers(headers: &mut HeaderMap) {
    let fixed = [
        (header::VARY, "Origin, X-Origin, Referer"),
        (header::SERVER, "ESF"),
        (HeaderName::from_static("server-timing"), "gfet4t7; dur=733"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("x-frame-options"), "SAMEORIGIN"),
        (HeaderName::from_static("x-xss-protection"), "0"),
        (HeaderName::from_static("alt-svc"), "h3=\":443\"; ma=2592000"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The body that hyper sends.
#[derive(Debug)]
pub(crate) struct Outgoing {
    steps: VecDeque<Step>,
    pause: Option<Pin<Box<Sleep>>>,
    ticket: Ticket,
}

impl Outgoing {
    /// A body that nobody watches, for the control surface.
    pub(crate) fn unwatched(body: Bytes) -> Self {
        Self { steps: VecDeque::from([Step::Data(body)]), pause: None, ticket: Ticket::blank() }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.steps.pop_front() {
                Some(Step::Data(data)) => {
                    if self.steps.is_empty() {
                        self.ticket.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Step::Wait(time)) => self.pause = Some(Box::pin(sleep(time))),
                Some(Step::Flush) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Abort) => {
                    self.ticket.broken_off();
                    return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
                }
                None => {
                    self.ticket.finish();
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty() && self.pause.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Follows one request to its end. Dropped before the end, it says that the client went away.
#[derive(Debug)]
pub(crate) struct Ticket {
    state: Option<Arc<State>>,
    seq: u64,
    over: bool,
}

impl Ticket {
    pub(crate) fn new(state: Arc<State>, seq: u64) -> Self {
        Self { state: Some(state), seq, over: false }
    }

    fn blank() -> Self {
        Self { state: None, seq: 0, over: true }
    }

    /// The head of the answer is known.
    pub(crate) fn answered(&self, status: u16, tag: &str) {
        if let Some(state) = &self.state {
            state.count_status(status);
            state.update(self.seq, |entry| {
                entry.status = status;
                tag.clone_into(&mut entry.outcome);
            });
        }
    }

    /// The simulator itself ends the exchange without an answer, or without all of it.
    pub(crate) fn broken_off(&mut self) {
        self.over = true;
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.over, true)
            && let Some(state) = &self.state
        {
            state.update(self.seq, |entry| entry.done = true);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.over
            && let Some(state) = &self.state
        {
            state.count_client_gone();
            state.update(self.seq, |entry| entry.client_gone = true);
        }
    }
}
