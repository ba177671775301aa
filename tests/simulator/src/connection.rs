//! The accept loop. It is our own because connections have numbers here, and some must end with a reset.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chance::Chance;
use crate::exchange;
use crate::rules::{Moment, Subject};
use crate::state::State;

/// The rest after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// The longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection as its requests see it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) local: SocketAddr,
    reset: AtomicBool,
    farewell: Notify,
}

impl Link {
    /// The connection is to end with a reset rather than a goodbye.
    pub(crate) fn reset_on_close(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// The connection is to take no further requests.
    pub(crate) fn go_away(&self) {
        self.farewell.notify_one();
    }
}

/// Serves until `stop`; connections that are still open then are dropped.
pub(crate) async fn serve(
    state: Arc<State>,
    listener: TcpListener,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        // A failed accept concerns one client, or a shortage of descriptors that ends when another closes.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tasks.spawn(async move {
            let id = state.next_connection();
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(&state, stream, id) => {}
            }
            state.connection_closed();
        });
    }
}

async fn connection(state: &Arc<State>, stream: TcpStream, id: u64) {
    let mut chance = Chance::new(state.pool().world.seed, id.wrapping_neg());
    if state.rules.take(Moment::Connection, Subject::default(), &mut chance).is_some() {
        state.connection_refused();
        let _ = stream.set_zero_linger();
        return;
    }
    // Both fail only on a socket that is closed already.
    let (Ok(()), Ok(local)) = (stream.set_nodelay(true), stream.local_addr()) else { return };
    let link = Arc::new(Link { id, local, reset: AtomicBool::new(false), farewell: Notify::new() });
    let socket = Socket { stream, link: Arc::clone(&link) };
    let Some(tls) = &state.tls else { return converse(state, socket, link).await };
    if let Ok(Ok(socket)) = tokio::time::timeout(HANDSHAKE, tls.acceptor.accept(socket)).await {
        converse(state, socket, link).await;
    }
}

/// Answers requests until either side has had enough.
async fn converse(
    state: &Arc<State>,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    link: Arc<Link>,
) {
    let service = service_fn(|request| exchange::serve(Arc::clone(state), Arc::clone(&link), request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().half_close(false).max_headers(256);
    builder.http2().max_concurrent_streams(1_000).max_header_list_size(256 * 1024);
    let mut talk = pin!(builder.serve_connection(TokioIo::new(socket), service));
    // What ends a connection early is a client that left or a rule; both are in the log.
    tokio::select! {
        _ = talk.as_mut() => return,
        () = link.farewell.notified() => talk.as_mut().graceful_shutdown(),
    }
    let _ = talk.await;
}

/// A stream that can be told to end with a reset.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    link: Arc<Link>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.link.reset.load(Ordering::Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
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
