//! As much of a name server as Docker's is for a service: one address for each of its containers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// Answers for one name. Dropping it ends it.
pub(super) struct Names {
    addresses: Arc<Mutex<Vec<Ipv4Addr>>>,
    socket: SocketAddr,
    task: AbortHandle,
}

impl Names {
    /// For this name, which has no address yet.
    pub(super) async fn of(name: &'static str) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
        let local = socket.local_addr().expect("its address");
        let addresses = Arc::<Mutex<Vec<Ipv4Addr>>>::default();
        let known = addresses.clone();
        let task = tokio::spawn(async move {
            let mut query = [0; 1_024];
            while let Ok((length, asker)) = socket.recv_from(&mut query).await {
                let known = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(answer) = answer(&query[..length], name, &known) {
                    // Who does not get it asks again.
                    let _ = socket.send_to(&answer, asker).await;
                }
            }
        });
        Self { addresses, socket: local, task: task.abort_handle() }
    }

    /// Where it is asked.
    pub(super) fn socket(&self) -> SocketAddr {
        self.socket
    }

    /// One more container.
    pub(super) fn add(&self, address: Ipv4Addr) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).push(address);
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// RFC 1035: the question comes back, with an A record per address if it is about this name.
fn answer(query: &[u8], name: &str, addresses: &[Ipv4Addr]) -> Option<Vec<u8>> {
    let label_ends = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(12..12 + label_ends + 5)?;
    let mut ours = vec![u8::try_from(name.len()).ok()?];
    ours.extend(name.as_bytes());
    // The name, its end, type A, class IN.
    ours.extend([0, 0, 1, 0, 1]);
    let addresses = if question == ours { addresses } else { &[] };
    let count = u16::try_from(addresses.len()).ok()?.to_be_bytes();
    let mut answer = [&query[..2], &[0x81, 0x80, 0, 1], &count, &[0; 4], question].concat();
    for address in addresses {
        // The name of the question; A, IN, good for a second.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
