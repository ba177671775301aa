//! How long a connection may do nothing. Each notes what it does in ticks of its worker, and the worker looks at all
//! of them once per tick: no request touches a timer or a clock for it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What a worker's connections may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The length of a tick.
    pub(super) tick: Duration,
    /// Ticks from the beginning of a request's head, or of the connection, to the head's end.
    pub(super) head: u32,
    /// Ticks without a request, after the first; and ticks in which a client takes nothing of what is written to it.
    pub(super) idle: u32,
}

impl Patience {
    /// A balancer keeps its connections for up to ten minutes, and it has to be the one that closes them: what it sends
    /// on a connection that we close at that moment is lost.
    pub(super) const USUAL: Self = Self { tick: Duration::from_secs(1), head: 30, idle: 620 };
}

/// Whole ticks without a request after which a connection ends while the worker drains. A client that has just sent a
/// request, or whose stream has just ended, cannot know yet that it will: what it sends meanwhile is answered.
const LINGER: u32 = 1;

/// No tick: a worker does not live for so many.
const TAKES: u32 = u32::MAX;

/// What a worker asks of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Order {
    /// Nothing.
    GoOn,
    /// To end after what it is doing.
    Finish,
    /// To end now.
    Cut,
}

/// What one connection is doing. All of it happens on its worker's thread.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Requests whose answers have not ended.
    running: AtomicU32,
    /// The head of a request has begun and not ended, or no byte has come at all.
    in_head: AtomicBool,
    /// It is HTTP/2, where bytes come that belong to no request.
    multiplexed: AtomicBool,
    /// When the head, or the time without a request, began.
    since: AtomicU32,
    /// When the client began to take nothing of what is written; `TAKES`: it takes everything.
    stuck: AtomicU32,
    order: AtomicU8,
    task: AtomicWaker,
    /// The body of an answer that has ended, and what ends with it: nothing of that is on the client's way to its
    /// last byte.
    ended: Mutex<Option<Body>>,
}

impl Activity {
    /// Ends with an answer whatever ends with it.
    fn settle(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(ended);
    }

    /// Takes the body of an answer that has ended. The streams of HTTP/2 end in tasks of their own, which nothing follows.
    fn end(&self, body: Body) {
        if !self.multiplexed.load(Relaxed) {
            let before = self.ended.lock().unwrap_or_else(PoisonError::into_inner).replace(body);
            drop(before);
        }
    }

    fn mark(&self, clock: &Clock) {
        self.since.store(clock.0.0.load(Relaxed), Relaxed);
    }

    fn is_over(&self, patience: Patience, now: u32) -> bool {
        let stuck = self.stuck.load(Relaxed);
        if stuck != TAKES && now.wrapping_sub(stuck) > patience.idle {
            return true;
        }
        let is_head = self.in_head.load(Relaxed) && !self.multiplexed.load(Relaxed);
        let limit = if is_head { patience.head } else { patience.idle };
        // A tick has begun when something was noted in it: only those after it are whole.
        self.running.load(Relaxed) == 0 && now.wrapping_sub(self.since.load(Relaxed)) > limit
    }

    /// Whether it can be ended without losing a request, when the worker began to drain at that tick. HTTP/2 has words
    /// for it, and loses none.
    fn may_finish(&self, drains: u32, now: u32) -> bool {
        let silent = now.wrapping_sub(self.since.load(Relaxed)).min(now.wrapping_sub(drains));
        self.multiplexed.load(Relaxed) || (self.running.load(Relaxed) == 0 && silent > LINGER)
    }

    fn give(&self, order: Order) {
        if self.order.fetch_max(order as u8, AcqRel) < order as u8 {
            self.task.wake();
        }
    }

    /// What is asked of the connection now; the task of `cx` is woken when that changes.
    pub(super) fn poll_order(&self, cx: &mut Context<'_>) -> Order {
        self.task.register(cx.waker());
        match self.order.load(Acquire) {
            0 => Order::GoOn,
            1 => Order::Finish,
            _ => Order::Cut,
        }
    }
}

/// The ticks of one worker, and whether it drains.
#[derive(Debug, Clone, Default)]
struct Clock(Arc<(AtomicU32, AtomicBool)>);

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Watchers {
    patience: Patience,
    clock: Clock,
    connections: Vec<Arc<Activity>>,
    /// Since which tick.
    drains: Option<u32>,
}

impl Watchers {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, clock: Clock::default(), connections: Vec::new(), drains: None }
    }

    /// A new connection.
    pub(super) fn enrol(&mut self) -> Observed {
        let (in_head, stuck) = (AtomicBool::new(true), AtomicU32::new(TAKES));
        let activity = Arc::new(Activity { in_head, stuck, ..Activity::default() });
        activity.mark(&self.clock);
        self.connections.push(activity.clone());
        Observed { activity, clock: self.clock.clone() }
    }

    /// A tick has passed: ends the connections that have done nothing for too long.
    pub(super) fn tick(&mut self) {
        let now = self.clock.0.0.fetch_add(1, Relaxed).wrapping_add(1);
        // Nobody else holds what belongs to a connection that has ended.
        self.connections.retain(|activity| Arc::strong_count(activity) > 1);
        for activity in self.connections.iter().filter(|activity| activity.is_over(self.patience, now)) {
            activity.give(Order::Cut);
        }
        self.end_the_idle(now);
    }

    /// Whether connections are led to their end.
    pub(super) fn are_draining(&self) -> bool {
        self.drains.is_some()
    }

    /// Leads all connections to their end, and those that are still to come.
    pub(super) fn finish(&mut self) {
        let now = self.clock.0.0.load(Relaxed);
        self.drains.get_or_insert(now);
        self.clock.0.1.store(true, Relaxed);
        self.end_the_idle(now);
    }

    fn end_the_idle(&self, now: u32) {
        let Some(drains) = self.drains else { return };
        for activity in self.connections.iter().filter(|activity| activity.may_finish(drains, now)) {
            activity.give(Order::Finish);
        }
    }
}

/// Ends the answers of a connection behind their last byte.
pub(super) struct Settling(pub(super) Arc<Activity>);

impl Settling {
    /// The connection has written what it had.
    pub(super) fn written(&self) {
        self.0.settle();
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.settle();
    }
}

/// A connection's own view of what it does.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) activity: Arc<Activity>,
    clock: Clock,
}

impl Observed {
    /// A request's head is there; the request lasts until what is returned is dropped.
    pub(super) fn request(&self, version: http::Version) -> Running {
        let activity = &self.activity;
        activity.running.fetch_add(1, Relaxed);
        activity.in_head.store(false, Relaxed);
        if version == http::Version::HTTP_2 {
            activity.multiplexed.store(true, Relaxed);
        }
        Running(self.clone())
    }

    fn came(&self) {
        let activity = &self.activity;
        if activity.running.load(Relaxed) == 0 && !activity.in_head.swap(true, Relaxed) {
            activity.mark(&self.clock);
        }
    }

    /// Something was written, or could not be.
    fn went(&self, written: bool) {
        let activity = &self.activity;
        if !written {
            let _ = activity.stuck.compare_exchange(TAKES, self.clock.0.0.load(Relaxed), Relaxed, Relaxed);
            return;
        }
        activity.stuck.store(TAKES, Relaxed);
        if !activity.in_head.load(Relaxed) {
            activity.mark(&self.clock);
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Running(Observed);

impl Running {
    /// Whether the answer has to say that the connection ends with it.
    pub(super) fn is_last(&self) -> bool {
        self.0.clock.0.1.load(Relaxed) && !self.0.activity.multiplexed.load(Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.activity.running.fetch_sub(1, Relaxed);
        self.0.activity.mark(&self.0.clock);
    }
}

/// The body of an answer; with it the request ends.
pub(super) struct Answering {
    pub(super) body: Body,
    pub(super) running: Running,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.running.0.activity.end(std::mem::take(&mut self.body));
    }
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The bytes of a connection.
pub(super) struct Wire {
    pub(super) stream: TokioIo<TcpStream>,
    pub(super) observed: Observed,
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if polled.is_ready() {
            self.observed.came();
        }
        polled
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.observed.went(polled.is_ready());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.observed.went(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { tick: Duration::from_secs(1), head: 2, idle: 5 };

    /// Ticks until a connection is cut.
    fn ticks(watchers: &mut Watchers, connection: &Observed) -> u32 {
        (1..100)
            .find(|_| {
                watchers.tick();
                connection.activity.order.load(Relaxed) == Order::Cut as u8
            })
            .unwrap_or(u32::MAX)
    }

    #[test]
    fn every_silence_has_its_limit() {
        let mut watchers = Watchers::new(PATIENCE);
        let silent = watchers.enrol();
        assert_eq!(ticks(&mut watchers, &silent), 3, "no byte at all");
        let idle = watchers.enrol();
        let running = idle.request(http::Version::HTTP_11);
        watchers.tick();
        drop(running);
        assert_eq!(ticks(&mut watchers, &idle), 6, "after a request");
        let slow = watchers.enrol();
        drop(slow.request(http::Version::HTTP_11));
        watchers.tick();
        slow.came();
        watchers.tick();
        slow.came();
        assert_eq!(ticks(&mut watchers, &slow), 2, "a second byte of a head buys no time");
        let busy = watchers.enrol();
        let _running = busy.request(http::Version::HTTP_11);
        busy.came();
        assert_eq!(ticks(&mut watchers, &busy), u32::MAX, "a request under way");
    }

    #[test]
    fn frames_of_http2_are_no_heads() {
        let mut watchers = Watchers::new(PATIENCE);
        let pinging = watchers.enrol();
        drop(pinging.request(http::Version::HTTP_2));
        pinging.came();
        assert_eq!(ticks(&mut watchers, &pinging), 6);
    }

    #[test]
    fn bytes_that_are_still_taken_are_no_silence() {
        let mut watchers = Watchers::new(PATIENCE);
        let reading = watchers.enrol();
        drop(reading.request(http::Version::HTTP_11));
        watchers.tick();
        reading.went(true);
        assert_eq!(ticks(&mut watchers, &reading), 6);
    }

    #[test]
    fn a_client_that_takes_nothing_is_not_waited_for() {
        let mut watchers = Watchers::new(PATIENCE);
        let [stuck, slow] = [(); 2].map(|()| watchers.enrol());
        let _running = [&stuck, &slow].map(|one| one.request(http::Version::HTTP_11));
        let order = |connection: &Observed| connection.activity.order.load(Relaxed);
        for _ in 0..=PATIENCE.idle {
            stuck.went(false);
            slow.went(true);
            slow.went(false);
            watchers.tick();
        }
        assert_eq!([&stuck, &slow].map(order), [Order::Cut as u8, Order::GoOn as u8]);
    }

    #[test]
    fn a_drain_waits_for_what_is_under_way_and_a_moment_longer() {
        let mut watchers = Watchers::new(PATIENCE);
        let order = |connection: &Observed| connection.activity.order.load(Relaxed);
        let [idle, busy, multiplexed] = [(); 3].map(|()| watchers.enrol());
        drop(idle.request(http::Version::HTTP_11));
        drop(multiplexed.request(http::Version::HTTP_2));
        let running = busy.request(http::Version::HTTP_11);
        assert!(!running.is_last());
        watchers.finish();
        assert!(running.is_last(), "whoever reads the answer is told");
        assert!(!multiplexed.request(http::Version::HTTP_2).is_last(), "HTTP/2 has no such word");
        assert_eq!([&idle, &busy, &multiplexed].map(order), [0, 0, 1]);
        watchers.tick();
        assert_eq!([&idle, &busy].map(order), [0, 0], "a request may be on its way");
        watchers.tick();
        assert_eq!([&idle, &busy].map(order), [1, 0]);
        drop(running);
        watchers.tick();
        assert_eq!(order(&busy), 0);
        watchers.tick();
        assert_eq!(order(&busy), 1);
    }

    #[test]
    fn what_has_ended_is_not_watched() {
        let mut watchers = Watchers::new(PATIENCE);
        drop(watchers.enrol());
        watchers.tick();
        assert!(watchers.connections.is_empty());
    }
}
