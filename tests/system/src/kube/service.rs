//! A Service: connections go to one of its endpoints, of which whoever forwards them hears late.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::client::Client;

/// The endpoints that connections are forwarded to. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    ports: Arc<Mutex<Vec<u16>>>,
    /// Until a change of them has reached every node.
    lag: Duration,
}

impl Endpoints {
    pub(super) fn add(&self, port: u16) {
        self.change(move |ports| ports.push(port));
    }

    pub(super) fn remove(&self, port: u16) {
        self.change(move |ports| ports.retain(|other| *other != port));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u16>) + Send + 'static) {
        let (ports, lag) = (self.ports.clone(), self.lag);
        tokio::spawn(async move {
            tokio::time::sleep(lag).await;
            change(&mut ports.lock().unwrap_or_else(PoisonError::into_inner));
        });
    }

    pub(super) fn count(&self) -> usize {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Any of them, as iptables draws it; nothing, if there is none.
    fn draw(&self) -> Option<u16> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        fastrand::choice(ports.iter()).copied()
    }
}

/// Forwards connections. A connection that its endpoint does not take is lost: no other one is tried.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) endpoints: Endpoints,
    address: SocketAddr,
    task: AbortHandle,
}

impl Service {
    pub(super) async fn start(lag: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port for the service");
        let address = listener.local_addr().expect("its address");
        let endpoints = Endpoints { ports: Arc::default(), lag };
        let task = tokio::spawn(accept(listener, endpoints.clone())).abort_handle();
        Self { endpoints, address, task }
    }

    /// A client that keeps connections for later requests.
    pub(super) fn client(&self) -> Client {
        Client::new(format!("http://{}", self.address))
    }

    /// A client that makes a connection for every request.
    pub(super) fn forgetful_client(&self) -> Client {
        Client::forgetful(format!("http://{}", self.address))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, endpoints: Endpoints) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(forward(client, endpoints.draw()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn forward(mut client: TcpStream, port: Option<u16>) -> io::Result<()> {
    let port = port.ok_or(io::ErrorKind::ConnectionRefused)?;
    let mut pod = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    pod.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut pod).await?;
    Ok(())
}
