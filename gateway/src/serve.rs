//! Listeners and connections. One thread accepts and hands each connection to the worker that has the fewest; every
//! worker is a runtime of one thread with its own connections to the upstream, so that a request never changes
//! threads. That costs a fifth less than one work-stealing runtime, and few long connections still spread evenly.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::request::Peer;
use crate::router::Entrance;

/// How long a client may take for the head of a request, and stay silent before it: longer than the minute for which
/// load balancers keep a connection, so that it is they who close it, never just when they send something.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Connections that wait for their worker to look at them.
const HANDOVER: usize = 1_024;
/// More connections than this are not accepted until some end.
const MAX_CONNECTIONS: usize = 60_000;
/// Streams on one HTTP/2 connection.
const MAX_STREAMS: u32 = 1_000;

type Accepted = (std::net::TcpStream, SocketAddr);

/// A thread that serves connections.
pub(crate) struct ServingThread {
    connections: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// Starts a worker. It ends when the sender of connections is gone and every connection has ended.
pub(crate) fn start(name: String, entrance: Entrance, soft: CancellationToken) -> io::Result<ServingThread> {
    let (connections, accepted) = mpsc::channel(HANDOVER);
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || runtime.block_on(work(accepted, entrance, count, soft)))?;
    Ok(ServingThread { connections, open, thread })
}

async fn work(
    mut accepted: mpsc::Receiver<Accepted>,
    entrance: Entrance,
    open: Arc<AtomicUsize>,
    soft: CancellationToken,
) {
    let tasks = TaskTracker::new();
    while let Some((stream, peer)) = accepted.recv().await {
        let counted = Counted(open.clone());
        let Ok(stream) = TcpStream::from_std(stream) else { continue };
        let served = serve(stream, peer, entrance.clone(), soft.clone());
        tasks.spawn(async move {
            served.await;
            drop(counted);
        });
    }
    tasks.close();
    tasks.wait().await;
}

/// A connection in the count of its worker.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, entrance: Entrance, soft: CancellationToken) {
    // Without it small writes wait for acknowledgements; failing to set it is no reason not to serve.
    let _ = stream.set_nodelay(true);
    let spoken = Arc::new(AtomicBool::new(false));
    let heard = spoken.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        heard.store(true, Relaxed);
        request.extensions_mut().insert(Peer(peer));
        let answer = entrance.clone().answer(request.map(Body::new));
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silence(&spoken) => return,
        () = soft.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended with an error");
    }
}

/// Ends if no request has come in time. The builder waits without a limit for the bytes that tell the protocol.
async fn silence(spoken: &AtomicBool) {
    tokio::time::sleep(HEAD_TIMEOUT).await;
    if spoken.load(Relaxed) {
        std::future::pending::<()>().await;
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
