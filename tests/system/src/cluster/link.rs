//! A connection between two processes that can be cut, made slow, or made to swallow everything.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

/// A proxy in front of one server, for one process.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    /// The server's port.
    server: Arc<AtomicU16>,
    state: watch::Sender<State>,
    task: AbortHandle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open(Duration),
    Cut,
    Black,
}

impl Link {
    /// A proxy in front of this port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port for the link");
        let address = listener.local_addr().expect("its address");
        let (state, watched) = watch::channel(State::Open(Duration::ZERO));
        let server = Arc::new(AtomicU16::new(port));
        let task = tokio::spawn(accept(listener, server.clone(), watched)).abort_handle();
        Self { address, server, state, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections from now on lead to another server.
    pub(super) fn lead_to(&self, port: u16) {
        self.server.store(port, Ordering::Relaxed);
    }

    /// Everything passes, at once.
    pub fn heal(&self) {
        self.state.send_replace(State::Open(Duration::ZERO));
    }

    /// Everything passes, each piece so much later.
    pub fn slow(&self, by: Duration) {
        self.state.send_replace(State::Open(by));
    }

    /// Every connection is closed, and new ones are closed as well.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Nothing gets through any more, and nobody is told. What was swallowed arrives when the link is healed.
    pub fn swallow(&self) {
        self.state.send_replace(State::Black);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: Arc<AtomicU16>, state: watch::Receiver<State>) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(connect(client, server.load(Ordering::Relaxed), state.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(client: TcpStream, port: u16, mut state: watch::Receiver<State>) -> io::Result<()> {
    if *state.borrow() == State::Cut {
        return Ok(());
    }
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from, to), (back, client)) = (client.into_split(), server.into_split());
    let (there, here) = (carry(from, client, state.clone()), carry(back, to, state.clone()));
    tokio::select! {
        done = there => done,
        done = here => done,
        _ = state.wait_for(|state| *state == State::Cut) => Ok(()),
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = [0; 16_384];
    loop {
        let n = from.read(&mut buffer).await?;
        let open = state.wait_for(|state| matches!(state, State::Open(_))).await.map(|state| *state);
        let Ok(State::Open(by)) = open else { return Ok(()) };
        if n == 0 {
            return Ok(());
        }
        if !by.is_zero() {
            sleep(by).await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}
