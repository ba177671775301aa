//! Where other coordinators reach this one's API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use keyfleet_service::config::Nats;
use reqwest::Url;

/// How long the name of a server may take to resolve.
const RESOLVE: Duration = Duration::from_secs(2);
/// NATS's own.
const PORT: u16 = 4222;

/// The address to tell, for a listener at `local`. One that listens everywhere tells the address from which it would
/// reach NATS, since the others reach that too; none if that cannot be found out.
pub(crate) async fn advertised(local: SocketAddr, nats: &Nats) -> Option<String> {
    let ip = if local.ip().is_unspecified() { way_to(nats).await? } else { local.ip() };
    Some(SocketAddr::new(ip, local.port()).to_string())
}

async fn way_to(nats: &Nats) -> Option<IpAddr> {
    let url = Url::parse(nats.servers.first()?.expose()).ok()?;
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let found = tokio::net::lookup_host((host, url.port().unwrap_or(PORT)));
    let server = tokio::time::timeout(RESOLVE, found).await.ok()?.ok()?.next()?;
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // Nothing is sent: the system only chooses the address.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(server).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use keyfleet_service::config::{NatsLogin, Secret};

    use super::*;

    #[tokio::test]
    async fn one_that_listens_everywhere_tells_how_it_reaches_the_others() {
        let nats = Nats {
            servers: vec![Secret::new("nats://user:password@127.0.0.1:1")],
            login: NatsLogin::OfUrl,
            ca_file: None,
            certificate: None,
            subject_prefix: String::new(),
            stream_max_age: Duration::from_secs(1),
            stream_max_bytes: 1,
            stream_replicas: None,
        };
        for (local, told) in [
            ("0.0.0.0:4807", "127.0.0.1:4807"),
            ("[::]:4807", "127.0.0.1:4807"),
            ("10.1.2.3:4", "10.1.2.3:4"),
        ] {
            assert_eq!(advertised(local.parse().unwrap(), &nats).await.as_deref(), Some(told));
        }
    }
}
