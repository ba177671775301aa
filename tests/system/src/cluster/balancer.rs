//! A load balancer as a Kubernetes Service is one: it knows connections, not requests, and sends a new one to a gateway
//! that says that it is ready.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::Cluster;
use crate::client::Client;

/// How often gateways are asked whether they are ready.
const LOOK: Duration = Duration::from_millis(50);

/// A running load balancer.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    tasks: [AbortHandle; 2],
}

impl Cluster {
    /// Something in front of all gateways that there are now.
    pub async fn balancer(&self) -> Balancer {
        let ports: Vec<u16> = self.gateways.iter().map(|member| member.process.port).collect();
        Balancer::to(ports).await
    }
}

type Ready = Arc<Mutex<Vec<u16>>>;

impl Balancer {
    async fn to(ports: Vec<u16>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port for the balancer");
        let address = listener.local_addr().expect("its address");
        let ready = Ready::new(Mutex::new(ports.clone()));
        let look = tokio::spawn(look(ports, ready.clone())).abort_handle();
        let accept = tokio::spawn(accept(listener, ready)).abort_handle();
        Self { address, tasks: [look, accept] }
    }

    /// A client of whoever is ready.
    pub fn client(&self) -> Client {
        Client::new(format!("http://{}", self.address))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn look(ports: Vec<u16>, ready: Ready) {
    let clients: Vec<_> =
        ports.iter().map(|port| (*port, Client::new(format!("http://127.0.0.1:{port}")))).collect();
    loop {
        let mut found = Vec::new();
        for (port, client) in &clients {
            if super::is_ready(client).await.is_some() {
                found.push(*port);
            }
        }
        *ready.lock().unwrap_or_else(PoisonError::into_inner) = found;
        tokio::time::sleep(LOOK).await;
    }
}

async fn accept(listener: TcpListener, ready: Ready) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    let mut turn = 0;
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                turn += 1;
                let mut ports = ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let first = turn % ports.len().max(1);
                ports.rotate_left(first);
                connections.spawn(connect(client, ports));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// To the first that takes the connection: nothing has been sent yet, so another one will do.
async fn connect(mut client: TcpStream, ports: Vec<u16>) -> io::Result<()> {
    for port in ports {
        let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { continue };
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    Ok(())
}
