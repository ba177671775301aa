//! The listener of the API: HTTP/1.1, and a limit on everything that a peer can hold on to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// What peers may hold on to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once; more are closed.
    connections: usize,
    /// From the beginning of a connection, or the end of an answer, to the end of the next request's head.
    head: Duration,
    /// After this a connection answers what it was asked, and closes.
    life: Duration,
    /// For that.
    last: Duration,
}

impl Limits {
    /// For a few operators, scrapers, probes and other coordinators.
    pub(crate) const USUAL: Self = Self {
        connections: 512,
        head: Duration::from_secs(30),
        life: Duration::from_mins(5),
        last: Duration::from_secs(30),
    };
}

/// Serves until `soft`.
pub(crate) async fn serve(listener: TcpListener, router: Router, limits: Limits, soft: CancellationToken) {
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            () = soft.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            tracing::debug!(%peer, limit = limits.connections, "too many connections: this one is closed");
            continue;
        };
        let served = connection(stream, peer, router.clone(), limits, soft.clone());
        tokio::spawn(async move {
            served.await;
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    soft: CancellationToken,
) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = sleep(limits.life) => {}
        () = soft.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    if timeout(limits.last, connection).await.is_err() {
        tracing::debug!(%peer, "a connection was cut: its peer does not read");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(20);
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn start(limits: Limits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }));
        tokio::spawn(serve(listener, router, limits, CancellationToken::new()));
        address
    }

    async fn until_closed(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        // A connection that is reset is closed as well.
        let _ = timeout(LONG, stream.read_to_end(&mut text)).await.expect("the connection stays open");
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn there_is_room_for_so_many_and_then_again() {
        let address = start(Limits { connections: 1, ..Limits::USUAL }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(ASK).await.unwrap();
        assert!(first.read_u8().await.is_ok());
        let mut second = TcpStream::connect(address).await.unwrap();
        assert_eq!(until_closed(&mut second).await, "");
        drop(first);
        let begin = std::time::Instant::now();
        loop {
            let mut next = TcpStream::connect(address).await.unwrap();
            let _ = next.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
            let text = until_closed(&mut next).await;
            if text.ends_with(&next.local_addr().unwrap().to_string()) {
                break;
            }
            assert!(begin.elapsed() < LONG, "the place is not free again: {text}");
        }
    }

    #[tokio::test]
    async fn nobody_stays_for_ever() {
        let soon = Duration::from_millis(20);
        let cut = Limits { life: soon, last: soon, ..Limits::USUAL };
        for limits in [Limits { head: soon, ..Limits::USUAL }, cut] {
            let mut silent = TcpStream::connect(start(limits).await).await.unwrap();
            silent.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
            until_closed(&mut silent).await;
        }
        let limits = Limits { life: soon, ..Limits::USUAL };
        let mut idle = TcpStream::connect(start(limits).await).await.unwrap();
        idle.write_all(ASK).await.unwrap();
        assert!(until_closed(&mut idle).await.starts_with("HTTP/1.1 200"));
    }
}
