//! Listeners and connections. One thread accepts and hands each connection to the worker that has the fewest; every
//! worker is a runtime of one thread with its own connections to the upstream, so that a request never changes
//! threads. That costs a fifth less than one work-stealing runtime, and few long connections still spread evenly.

mod activity;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Body;
use http::header::CONNECTION;
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use keyfleet_service::supervisor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::activity::{Answering, Observed, Order, Patience, Settling, Watchers, Wire};
use crate::request::Peer;
use crate::router::Entrance;

/// Connections that wait for their worker to look at them.
const HANDOVER: usize = 1_024;
/// More connections than this are not accepted until some end.
const MAX_CONNECTIONS: usize = 60_000;
/// Streams on one HTTP/2 connection.
const MAX_STREAMS: u32 = 1_000;
/// Sockets that a worker reads before it serves them. A frame passes two tasks on its way, and those of a round take
/// turns: with thousands of streams a long round keeps a frame from its client for as long (`scripts/bench S4`).
const ROUND: usize = 32;

type Accepted = (std::net::TcpStream, SocketAddr);

/// A thread that serves connections.
pub(crate) struct ServingThread {
    connections: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// Starts a worker. It ends when the sender of connections is gone and every connection has ended.
pub(crate) fn start(name: String, entrance: Entrance, soft: CancellationToken) -> io::Result<ServingThread> {
    start_with(name, entrance, soft, Patience::USUAL)
}

fn start_with(
    name: String,
    entrance: Entrance,
    soft: CancellationToken,
    patience: Patience,
) -> io::Result<ServingThread> {
    let (connections, accepted) = mpsc::channel(HANDOVER);
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_io_events_per_tick(ROUND).build()?;
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        runtime.block_on(async {
            tokio::spawn(supervisor::pulse());
            work(accepted, entrance, count, soft, patience).await;
        });
    })?;
    Ok(ServingThread { connections, open, thread })
}

async fn work(
    mut accepted: mpsc::Receiver<Accepted>,
    entrance: Entrance,
    open: Arc<AtomicUsize>,
    soft: CancellationToken,
    patience: Patience,
) {
    let tasks = TaskTracker::new();
    let mut watchers = Watchers::new(patience);
    let mut ticks = tokio::time::interval(patience.tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = accepted.recv() => {
                let Some((stream, peer)) = next else { break };
                let counted = Counted(open.clone());
                let Ok(stream) = TcpStream::from_std(stream) else { continue };
                let served = serve(stream, peer, entrance.clone(), watchers.enrol());
                tasks.spawn(async move {
                    served.await;
                    drop(counted);
                });
            }
            _ = ticks.tick(), if !tasks.is_empty() => watchers.tick(),
            () = soft.cancelled(), if !watchers.are_draining() => watchers.finish(),
        }
    }
    watchers.finish();
    tasks.close();
    let mut ended = std::pin::pin!(tasks.wait());
    loop {
        tokio::select! {
            () = ended.as_mut() => return,
            _ = ticks.tick() => watchers.tick(),
        }
    }
}

/// A connection in the count of its worker.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, entrance: Entrance, observed: Observed) {
    // Without it small writes wait for acknowledgements; failing to set it is no reason not to serve.
    let _ = stream.set_nodelay(true);
    let activity = observed.activity.clone();
    // Behind the connection, so that it sees the last answer end.
    let settling = Settling(activity.clone());
    let wire = Wire { stream: TokioIo::new(stream), observed: observed.clone() };
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let running = observed.request(request.version());
        request.extensions_mut().insert(Peer(peer));
        let entrance = entrance.clone();
        // In a box: the library keeps room for it in each connection, and moves it there and away.
        Box::pin(async move {
            let mut answer = entrance.answer(request.map(Body::new)).await;
            if running.is_last() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer.map(|body| Answering { body, running }))
        })
    });
    let mut builder = Builder::new(TokioExecutor::new());
    // Silence is measured on the wire: the library's own limit counts the time between requests as well.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(wire, service);
    let mut connection = std::pin::pin!(connection);
    let mut obeyed = Order::GoOn;
    let ended = std::future::poll_fn(|cx| {
        let order = activity.poll_order(cx);
        if order > obeyed {
            obeyed = order;
            connection.as_mut().graceful_shutdown();
        }
        let polled = connection.as_mut().poll(cx);
        settling.written();
        match polled {
            Poll::Pending if order == Order::Cut => Poll::Ready(Ok(())),
            polled => polled,
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%peer, %error, "a connection ended with an error");
    }
}

/// Accepts until `soft`, then closes the listener.
pub(crate) async fn accept(listener: TcpListener, workers: &[ServingThread], soft: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = soft.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most often: the connections that are open have to end first.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(worker) = workers.iter().min_by_key(|worker| worker.open.load(Relaxed)) else { return };
        if worker.open.load(Relaxed) * workers.len() >= MAX_CONNECTIONS {
            tracing::warn!(limit = MAX_CONNECTIONS, "too many connections: this one is closed");
            continue;
        }
        let Ok(stream) = stream.into_std() else { continue };
        worker.open.fetch_add(1, Relaxed);
        if worker.connections.try_send((stream, peer)).is_err() {
            worker.open.fetch_sub(1, Relaxed);
        }
    }
}

/// Lets the workers end: no more connections, and those that are open run out.
pub(crate) fn close(workers: Vec<ServingThread>) -> Vec<JoinHandle<()>> {
    workers.into_iter().map(|worker| worker.thread).collect()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::{Mutex, mpsc};
    use std::task::Context;
    use std::time::Duration;

    use axum::Router;
    use axum::response::Response;
    use axum::routing::get;
    use bytes::Bytes;
    use http_body::{Frame, SizeHint};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    use super::*;

    const TICK: Duration = Duration::from_millis(10);
    const NEVER: u32 = u32::MAX;
    /// Far more than anything here takes.
    const SOON: Duration = Duration::from_secs(20);

    /// A client of a worker that has this patience, and a route whose answer takes long.
    async fn connect(head: u32, idle: u32) -> TcpStream {
        let slow = get(async || tokio::time::sleep(TICK * 20).await);
        connect_to(Router::new().route("/", get(async || "ok")).route("/slow", slow), head, idle).await
    }

    async fn connect_to(routes: Router, head: u32, idle: u32) -> TcpStream {
        let entrance = Entrance::routed(routes);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Patience { tick: TICK, head, idle };
        let worker = start_with("worker".to_owned(), entrance, CancellationToken::new(), patience).unwrap();
        tokio::spawn(async move { accept(listener, &[worker], &CancellationToken::new()).await });
        TcpStream::connect(address).await.unwrap()
    }

    /// An answer that does not end before it is told to.
    struct Lasting(&'static [u8], mpsc::Receiver<()>);

    impl http_body::Body for Lasting {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let all = std::mem::take(&mut self.0);
            Poll::Ready((!all.is_empty()).then(|| Ok(Frame::data(Bytes::from_static(all)))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.len() as u64)
        }
    }

    impl Drop for Lasting {
        fn drop(&mut self) {
            let _ = self.1.recv_timeout(SOON);
        }
    }

    #[tokio::test]
    async fn no_client_waits_for_what_is_done_at_the_end_of_its_answer() {
        let (end, told) = mpsc::channel();
        let told = Arc::new(Mutex::new(Some(told)));
        let answer = get(move || {
            let told = told.lock().unwrap().take().unwrap();
            std::future::ready(Response::new(Body::new(Lasting(b"all", told))))
        });
        let mut client = connect_to(Router::new().route("/", answer), NEVER, NEVER).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = async {
            while !answer.ends_with("all") {
                answer.push(char::from(client.read_u8().await.unwrap()));
            }
        };
        tokio::time::timeout(SOON / 2, read).await.expect("the answer comes before its end");
        end.send(()).expect("the body is still there");
    }

    /// An answer that has no end; its connection to the upstream would be held as long as it is.
    struct Endless(Option<oneshot::Sender<()>>);

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16_384])))))
        }
    }

    impl Drop for Endless {
        fn drop(&mut self) {
            self.0.take().map(|gone| gone.send(()));
        }
    }

    #[tokio::test]
    async fn a_client_that_never_reads_is_not_waited_for() {
        let (gone, told) = oneshot::channel();
        let gone = Arc::new(Mutex::new(Some(gone)));
        let answer = get(move || {
            let gone = gone.lock().unwrap().take();
            std::future::ready(Response::new(Body::new(Endless(gone))))
        });
        let mut client = connect_to(Router::new().route("/", answer), NEVER, 3).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::timeout(SOON, told).await.expect("the answer is let go").unwrap();
        // It has been there all the time.
        drop(client);
    }

    /// Everything that comes until the other side closes.
    async fn read_to_end(client: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A reset is an end as well.
        let _ = tokio::time::timeout(SOON, client.read_to_end(&mut text))
            .await
            .expect("the connection is closed");
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_head_that_comes_byte_by_byte_is_not_waited_for() {
        let (mut from, mut to) = connect(3, NEVER).await.into_split();
        let dribble = async {
            let _ = to.write_all(b"GET / HTTP/1.1\r\nx-long: ").await;
            while to.write_all(b"x").await.is_ok() {
                tokio::time::sleep(TICK).await;
            }
        };
        let mut text = Vec::new();
        let ended = async {
            let _ = from.read_to_end(&mut text).await;
        };
        tokio::time::timeout(SOON, async { tokio::join!(dribble, ended) }).await.expect("it is cut");
        assert!(text.is_empty());
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_not_waited_for() {
        assert_eq!(read_to_end(&mut connect(3, NEVER).await).await, "");
    }

    #[tokio::test]
    async fn the_time_between_requests_has_a_limit_of_its_own() {
        let mut client = connect(NEVER, 3).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(read_to_end(&mut client).await.ends_with("ok"), "an answer, and then the end");

        let mut client = connect(3, NEVER).await;
        for _ in 0..3 {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            while !answer.ends_with("ok") {
                answer.push(char::from(client.read_u8().await.expect("it is still open")));
            }
            tokio::time::sleep(TICK * 10).await;
        }
    }

    #[tokio::test]
    async fn a_request_under_way_is_no_silence() {
        let mut client = connect(1, 1).await;
        client.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(read_to_end(&mut client).await.starts_with("HTTP/1.1 200"));
    }
}
