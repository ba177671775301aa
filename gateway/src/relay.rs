//! The response body. What the upstream sends passes through unbuffered: frames that are ready together are joined
//! (one write instead of many), and nothing ever waits for a timer.
//!
//! A guard in it settles the attempt and writes the request's line on the end of the stream, or when the client
//! goes away and the body is dropped, which also cancels the upstream call.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use keyfleet_core::error_body::ErrorBody;
use keyfleet_core::outcome::Cause;
use keyfleet_service::clock;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::answer::{self, Answer, Form};
use crate::api::interactions;
use crate::array::Array;
use crate::error::{Fault, Party};
use crate::pool::Permit;
use crate::sse::{Scanned, Scanner};
use crate::trail::Trail;

/// Joined frames are passed on when they are this large, ready or not.
const JOINED: usize = 64 * 1024;
/// Frames that come at shorter intervals are a burst; those of a slow stream pass at once.
const BURST: Duration = Duration::from_millis(5);
/// How often the task steps aside to let frames arrive that are on their way: once joins nothing, twice nearly all.
const YIELDS: u8 = 2;

/// A body on its way to the client.
pub(crate) struct Relay {
    rest: Option<Incoming>,
    gathered: Gathered,
    yields: u8,
    /// The last frame came soon after the one before it, so more may be on their way.
    in_burst: bool,
    /// How long nothing has come since the last piece went out.
    since_last: Duration,
    watch: Watch,
    silence: Silence,
    hard: CancellationToken,
    drained: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// The task that `drained` and the timer of `silence` wake.
    waits: Option<Waker>,
    /// The last bytes, once an error has been seen.
    farewell: Option<Bytes>,
    ended: bool,
    /// The upstream broke off behind what has been gathered.
    broken: bool,
    permit: Permit,
    trail: Trail,
}

/// The upstream broke off where nothing but breaking off can tell the client.
#[derive(Debug, thiserror::Error)]
#[error("the upstream broke the answer off")]
pub(crate) struct BrokenOff;

enum Watch {
    Events(Scanner),
    Interaction(Scanner),
    Array(Array),
    Bytes,
}

impl Relay {
    /// The body of an answer. `permit` has been settled as a success; what goes wrong from here on is told to it too.
    pub(crate) fn new(
        answer: Answer,
        permit: Permit,
        trail: Trail,
        idle: Duration,
        hard: &CancellationToken,
    ) -> Self {
        let mut gathered = Gathered::default();
        gathered.push(answer.begun);
        let streams = answer.rest.is_some();
        let watch = match answer.form {
            Form::Events => Watch::Events(Scanner::default()),
            Form::Interaction => Watch::Interaction(Scanner::of_interaction()),
            Form::Array => Watch::Array(Array::default()),
            Form::Bytes => Watch::Bytes,
        };
        Self {
            rest: answer.rest,
            gathered,
            yields: 0,
            in_burst: false,
            since_last: Duration::ZERO,
            watch,
            silence: Silence::new(idle),
            hard: hard.clone(),
            waits: None,
            drained: streams.then(|| Box::pin(hard.clone().cancelled_owned())),
            farewell: None,
            ended: false,
            broken: false,
            permit,
            trail,
        }
    }

    /// The next joined bytes of the upstream; `None` at its end, an error if it broke off.
    fn poll_joined(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Cause>> {
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(Ok(self.gathered.take())) };
            match Pin::new(rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.gathered.push(data);
                    }
                    let silence = self.silence.broken();
                    self.in_burst = silence < BURST;
                    self.since_last += silence;
                    self.yields = 0;
                    if self.gathered.len >= JOINED {
                        return Poll::Ready(Ok(self.gathered.take()));
                    }
                }
                Poll::Ready(None) => self.rest = None,
                Poll::Ready(Some(Err(_))) => {
                    self.rest = None;
                    if self.gathered.len == 0 {
                        return Poll::Ready(Err(Cause::Truncated));
                    }
                    // What has arrived goes out first.
                    self.broken = true;
                }
                Poll::Pending if self.gathered.len > 0 => {
                    if self.in_burst && self.yields < YIELDS {
                        self.yields += 1;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    self.yields = 0;
                    return Poll::Ready(Ok(self.gathered.take()));
                }
                Poll::Pending => return self.poll_patience(cx).map(Err),
            }
        }
    }

    /// Nothing comes: whether that has to end, and why.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        self.silence.begin();
        // Timer and token wake whoever asked them last. For the same task there is nothing to ask anew, and the
        // streams of all workers share the token's lock.
        let waits = self.waits.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if waits && !self.hard.is_cancelled() && !self.silence.has_fired() {
            return Poll::Pending;
        }
        self.waits = Some(cx.waker().clone());
        let drained = self.drained.as_mut().is_some_and(|token| token.as_mut().poll(cx).is_ready());
        if !drained {
            ready!(self.silence.poll_too_long(cx));
        }
        self.rest = None;
        Poll::Ready(if drained { Cause::Cancelled } else { Cause::Truncated })
    }

    /// What of the joined bytes the client gets; empty if nothing yet.
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        let scanned = match &mut self.watch {
            Watch::Events(scanner) | Watch::Interaction(scanner) => scanner.scan(bytes),
            Watch::Array(array) => {
                self.trail.look_for_usage(&bytes);
                array.scan(bytes)
            }
            Watch::Bytes => {
                self.trail.look_for_usage(&bytes);
                return bytes;
            }
        };
        match scanned {
            Scanned::Pass(bytes) => bytes,
            Scanned::Error(before, body) => {
                self.upstream_failed(*body);
                before
            }
        }
    }

    /// The upstream told an error where an answer should go on.
    fn upstream_failed(&mut self, body: ErrorBody) {
        let failed = answer::inside_success(body);
        let now = clock::now();
        let outcome = self.permit.judge(failed.outcome, now.mono);
        self.permit.failed(&outcome, &failed.body.stated_limits, now);
        self.trail.attempt_broke(&self.permit, outcome);
        let fault = Fault::upstream(failed.status, &failed.body, &self.permit.live.clone());
        self.fail(&fault.by(Party::of(&outcome)));
    }

    /// The upstream has ended: the bytes that were held back, or an error if it ended too early.
    fn end(&mut self) -> Result<Bytes, BrokenOff> {
        let mut held = Bytes::new();
        let early = match &mut self.watch {
            Watch::Events(scanner) | Watch::Interaction(scanner) => match scanner.finish() {
                Scanned::Pass(bytes) => {
                    held = bytes;
                    !scanner.saw_end() && !self.trail.is_opaque_stream()
                }
                Scanned::Error(_, body) => {
                    self.upstream_failed(*body);
                    return Ok(held);
                }
            },
            Watch::Array(array) => !array.has_ended(),
            Watch::Bytes => false,
        };
        // Half an event is worth nothing, and an error that follows it would be glued to it.
        if early || self.broken { self.broken_off(Cause::Truncated).map(|()| Bytes::new()) } else { Ok(held) }
    }

    /// The answer broke off: as an event where there are events, else by breaking off as well.
    fn broken_off(&mut self, cause: Cause) -> Result<(), BrokenOff> {
        self.broken = false;
        if cause != Cause::Cancelled {
            self.permit.failed(&cause.outcome(), &[], clock::now());
        }
        self.trail.attempt_broke(&self.permit, cause.outcome());
        self.fail(&match cause {
            Cause::Cancelled => Fault::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The gateway is shutting down; the answer is incomplete.",
            )
            .by(Party::Keyfleet),
            _ => Fault::new(StatusCode::BAD_GATEWAY, "The upstream broke the answer off; it is incomplete."),
        });
        if self.farewell.is_some() { Ok(()) } else { Err(BrokenOff) }
    }

    /// Prepares the last bytes of a stream that failed.
    fn fail(&mut self, fault: &Fault) {
        self.rest = None;
        self.gathered = Gathered::default();
        self.trail.failed_in_stream(fault);
        let surface = self.trail.surface;
        self.farewell = match &self.watch {
            Watch::Events(_) => Some(fault.to_event(surface)),
            Watch::Interaction(_) => Some(interactions::error_event(&fault.code, &fault.message)),
            // As the last element of the array.
            Watch::Array(array) => {
                array.joint().map(|joint| Bytes::from(format!("{joint}{}]", fault.to_json(surface))))
            }
            Watch::Bytes => None,
        };
    }

    /// Everything has been handed out. The end of plain bytes is known from their length, and nobody asks again.
    fn is_complete(&self) -> bool {
        let upstream_ended = self.rest.as_ref().is_none_or(Body::is_end_stream);
        let nothing_left = upstream_ended && self.gathered.len == 0 && !self.broken;
        self.farewell.is_none() && (self.ended || matches!(self.watch, Watch::Bytes) && nothing_left)
    }

    fn send(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let silence = std::mem::take(&mut self.since_last);
        self.trail.trace.passes(&bytes);
        self.trail.sent(bytes.len(), (!matches!(self.watch, Watch::Bytes)).then_some(silence));
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        loop {
            if let Some(last) = this.farewell.take() {
                this.ended = true;
                return this.send(last);
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let out = match ready!(this.poll_joined(cx)) {
                Ok(Some(bytes)) => this.pass(bytes),
                Ok(None) => {
                    this.ended = true;
                    match this.end() {
                        Ok(held) => held,
                        Err(broken) => return Poll::Ready(Some(Err(broken))),
                    }
                }
                Err(cause) => match this.broken_off(cause) {
                    Ok(()) => Bytes::new(),
                    Err(broken) => {
                        this.ended = true;
                        return Poll::Ready(Some(Err(broken)));
                    }
                },
            };
            if !out.is_empty() {
                return this.send(out);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_complete()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.trail.client_gone = !self.is_complete();
        if let Watch::Events(scanner) | Watch::Interaction(scanner) = &mut self.watch
            && let Some(usage) = &mut self.trail.usage
        {
            *usage = std::mem::take(&mut scanner.usage);
        }
        if let Some(usage) = self.trail.tokens() {
            self.permit.settle(usage.input);
        }
        self.trail.finish();
    }
}

/// Frames that go out as one.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    joined: BytesMut,
    len: usize,
}

impl Gathered {
    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.len += data.len();
        if self.len == data.len() {
            self.first = data;
            return;
        }
        if self.joined.is_empty() {
            self.joined.extend_from_slice(&self.first);
        }
        self.joined.extend_from_slice(&data);
    }

    fn take(&mut self) -> Option<Bytes> {
        if self.len == 0 {
            return None;
        }
        self.len = 0;
        let first = std::mem::take(&mut self.first);
        Some(if self.joined.is_empty() { first } else { self.joined.split().freeze() })
    }
}

/// How long the upstream has been silent. The timer is made when silence first falls, and set again only when it
/// fires: a busy stream touches no timer.
struct Silence {
    limit: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    fn new(limit: Duration) -> Self {
        Self { limit, since: None, timer: None }
    }

    /// Something came; how long there was nothing before it.
    fn broken(&mut self) -> Duration {
        self.since.take().map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// The timer has fired; it may have been for a silence that is over.
    fn has_fired(&self) -> bool {
        self.timer.as_ref().is_some_and(|timer| timer.is_elapsed())
    }

    fn poll_too_long(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = *self.since.get_or_insert_with(Instant::now) + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        timer.as_mut().reset(until);
        timer.as_mut().poll(cx)
    }
}
