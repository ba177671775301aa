//! How a connection to the upstream comes about: straight, through a tunnel, or through a SOCKS proxy.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tower::Service;
use url::Url;

use super::{ClientError, Trust};

/// A peer that has vanished is noticed before an idle connection to it would be closed: the system's own patience is a
/// quarter of an hour and more.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const TCP_KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may stay unacknowledged.
const TCP_UNACKNOWLEDGED: Duration = Duration::from_secs(30);
const SOCKS_PORT: u16 = 1080;

type BoxError = Box<dyn Error + Send + Sync>;
type Connecting<S> = Pin<Box<dyn Future<Output = Result<S, BoxError>> + Send>>;
/// A connection to the upstream or its proxy, before the upstream's own TLS. The proxy may have one of its own.
type Raw = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Connects to the upstream. Clones are cheap: a client makes one for each request.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    https: HttpsConnector<Way>,
    within: Duration,
}

impl Connector {
    pub(super) fn new(proxy: Option<&str>, within: Duration, trust: &Trust) -> Result<Self, ClientError> {
        let http = tcp(GaiResolver::new(), within);
        let tls = || HttpsConnectorBuilder::new().with_tls_config((*trust.0).clone()).https_or_http();
        let way = match proxy {
            None => Way::Direct(http),
            Some(proxy) => {
                let proxy = Proxy::parse(proxy).ok_or(ClientError::Proxy)?;
                if proxy.is_socks {
                    let socks = SocksV5::new(proxy.at, http);
                    let socks = match proxy.user {
                        Some((user, password)) => socks.with_auth(user, password),
                        None => socks,
                    };
                    Way::Socks { socks, resolves_here: proxy.resolves_here }
                } else {
                    let tunnel = Tunnel::new(proxy.at, tls().enable_http1().wrap_connector(http));
                    Way::Tunnel(match proxy.user {
                        Some((user, password)) => tunnel.with_auth(basic(&user, &password)?),
                        None => tunnel,
                    })
                }
            }
        };
        let https = tls().enable_all_versions().wrap_connector(way);
        Ok(Self(Arc::new(Inner { https, within })))
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Raw>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.https.clone().call(to);
        let within = self.0.within;
        Box::pin(async move { tokio::time::timeout(within, connecting).await? })
    }
}

fn tcp<R>(resolver: R, within: Duration) -> HttpConnector<R> {
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(TCP_KEEPALIVE));
    http.set_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL));
    http.set_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES));
    http.set_tcp_user_timeout(Some(TCP_UNACKNOWLEDGED));
    // Divided among the addresses of a name, so that one that is silent does not take all of it.
    http.set_connect_timeout(Some(within));
    http
}

/// A way out.
#[derive(Clone)]
enum Way {
    Direct(HttpConnector),
    Tunnel(Tunnel<HttpsConnector<HttpConnector>>),
    Socks { socks: SocksV5<HttpConnector>, resolves_here: bool },
}

impl Service<Uri> for Way {
    type Response = Raw;
    type Error = BoxError;
    type Future = Connecting<Raw>;

    /// Nothing here waits before a call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match self {
            Self::Direct(http) => {
                let connecting = http.call(to);
                Box::pin(async move { Ok(Raw::Http(connecting.await?)) })
            }
            Self::Tunnel(tunnel) => {
                let connecting = tunnel.call(with_port(to));
                Box::pin(async move { Ok(connecting.await?) })
            }
            Self::Socks { socks, resolves_here } => {
                let (mut socks, resolves_here) = (socks.clone(), *resolves_here);
                Box::pin(async move {
                    let to = with_port(to);
                    let to = if resolves_here { resolved(to).await? } else { to };
                    Ok(Raw::Http(socks.call(to).await?))
                })
            }
        }
    }
}

/// Proxies take a missing port for 443, whatever the scheme is.
fn with_port(to: Uri) -> Uri {
    match to.host() {
        Some(host) if to.port().is_none() && to.scheme() == Some(&Scheme::HTTP) => {
            let host = format!("{host}:80");
            at(to, host)
        }
        _ => to,
    }
}

/// With the address of the host in the name's place, if it has one that can be told.
async fn resolved(to: Uri) -> Result<Uri, BoxError> {
    let host = to.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((host, to.port_u16().unwrap_or(443))).await?;
    Ok(by_address(&to, found).unwrap_or(to))
}

/// The library would send an IPv6 address in its brackets, as a name, which no proxy finds.
fn by_address(to: &Uri, mut found: impl Iterator<Item = SocketAddr>) -> Option<Uri> {
    let address = found.find(SocketAddr::is_ipv4)?;
    Some(at(to.clone(), address.to_string()))
}

/// The same, elsewhere.
fn at(to: Uri, authority: String) -> Uri {
    let mut parts = to.clone().into_parts();
    parts.authority = Authority::try_from(authority).ok();
    Uri::from_parts(parts).unwrap_or(to)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, ClientError> {
    let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::try_from(format!("Basic {credentials}")).map_err(|_| ClientError::Proxy)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A proxy's URL, read.
struct Proxy {
    at: Uri,
    is_socks: bool,
    /// `socks5` asks us for the upstream's address, `socks5h` the proxy.
    resolves_here: bool,
    user: Option<(String, String)>,
}

impl Proxy {
    fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let is_socks = matches!(url.scheme(), "socks5" | "socks5h");
        let (scheme, port) = match url.scheme() {
            "socks5" | "socks5h" => ("http", url.port().unwrap_or(SOCKS_PORT)),
            known @ ("http" | "https") => (known, url.port_or_known_default()?),
            _ => return None,
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(String::from);
        let user = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some((decoded(user)?, decoded(password.unwrap_or_default())?)),
        };
        let at = format!("{scheme}://{host}:{port}").parse().ok()?;
        Some(Self { at, is_socks, resolves_here: url.scheme() == "socks5", user })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper_util::client::legacy::connect::dns::Name;
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn proxies_are_read_as_curl_reads_them() {
        let read = |text: &str| {
            let proxy = Proxy::parse(text).unwrap();
            (proxy.at.to_string(), proxy.is_socks, proxy.resolves_here, proxy.user)
        };
        let user = Some(("a@b".to_owned(), "p:w".to_owned()));
        assert_eq!(read("http://proxy:3128"), ("http://proxy:3128/".into(), false, false, None));
        assert_eq!(read("https://a%40b:p%3Aw@proxy"), ("https://proxy:443/".into(), false, false, user));
        assert_eq!(read("socks5://[::1]"), ("http://[::1]:1080/".into(), true, true, None));
        assert_eq!(read("socks5h://proxy:9"), ("http://proxy:9/".into(), true, false, None));
        assert!(Proxy::parse("ftp://proxy").is_none());
        assert!(Proxy::parse("proxy:3128").is_none());
    }

    #[test]
    fn a_proxy_is_told_the_port_of_the_scheme() {
        for (to, told) in [
            ("http://host/x", "http://host:80/x"),
            ("http://[::1]/x", "http://[::1]:80/x"),
            ("http://host:8/x", "http://host:8/x"),
            ("https://host/x", "https://host/x"),
        ] {
            assert_eq!(with_port(to.parse().unwrap()).to_string(), told);
        }
    }

    #[test]
    fn a_socks_proxy_is_told_an_address_that_it_understands() {
        let to: Uri = "https://host:444/x".parse().unwrap();
        let told = |found: &[&str]| {
            let found: Vec<SocketAddr> = found.iter().map(|address| address.parse().unwrap()).collect();
            by_address(&to, found.into_iter()).map(|to| to.to_string())
        };
        assert_eq!(told(&["[::1]:444", "127.0.0.1:444"]).unwrap(), "https://127.0.0.1:444/x");
        assert_eq!(told(&["[::1]:444"]), None, "the proxy finds the name's");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let silent = socket.listen(1).unwrap();
        let at = silent.local_addr().unwrap();
        // A queue that is full answers nobody more.
        let mut waiting = Vec::new();
        while let Ok(one) = timeout(Duration::from_millis(200), TcpStream::connect(at)).await {
            waiting.push(one.unwrap());
        }
        let well = TcpListener::bind(("127.0.0.1", at.port())).await.unwrap();
        let found = [at, well.local_addr().unwrap()];
        let resolver =
            tower::service_fn(move |_: Name| async move { Ok::<_, Infallible>(found.into_iter()) });
        let within = Duration::from_secs(2);
        let to = format!("http://host:{}/", at.port()).parse().unwrap();
        let connected = timeout(within, tcp(resolver, within).call(to)).await.expect("in time").unwrap();
        assert_eq!(connected.inner().peer_addr().unwrap(), found[1]);
    }
}
