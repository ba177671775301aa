//! A way to the server that can swallow everything without closing anything.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub(crate) struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: AbortHandle,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, opened) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let opened = opened.clone();
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await?;
                    let ((from, to), (back, client)) = (client.into_split(), server.into_split());
                    tokio::spawn(carry(from, client, opened.clone()));
                    carry(back, to, opened).await
                });
            }
        });
        Self { address, open, task: task.abort_handle() }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Nothing gets through any more, in either direction, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn heal(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = from.read(&mut buffer).await?;
        if open.wait_for(|open| *open).await.is_err() || n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
    }
}
