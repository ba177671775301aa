//! The HTTP client towards the upstream: one per way out, the same for gateway and prober. It follows no redirect,
//! reads no environment and decodes nothing: every upstream call is one that we chose, and every byte is passed on as
//! it came.

mod connector;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;
use tokio_rustls::rustls;

pub use connector::Connector;

use crate::config::Secret;

/// A client whose requests have bodies of type `B`. Clones share its connections.
pub type Client<B> = legacy::Client<Connector, B>;

/// Idle connections that are kept per host: enough for the bursts of a busy replica.
const IDLE_PER_HOST: usize = 512;
/// Idle connections are closed before the upstream does it (Google: four minutes).
const IDLE: Duration = Duration::from_secs(90);

/// Why no client can be made.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The certificates of this machine cannot be used.
    #[error("the system's certificates: {0}")]
    Certificates(#[from] rustls::Error),
    /// The proxy's URL is none; it may hold credentials, so it is not shown.
    #[error("the proxy's URL is not one of http, https, socks5 or socks5h with a host")]
    Proxy,
}

/// Which upstreams are trusted: those that the system's certificates vouch for. Reading them takes milliseconds, so that
/// all clients of a configuration share them.
#[derive(Clone)]
pub struct Trust(Arc<rustls::ClientConfig>);

impl Trust {
    /// Reads the system's certificates, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    pub fn load() -> Result<Self, ClientError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions()?.try_with_platform_verifier()?;
        Ok(Self(Arc::new(builder.with_no_client_auth())))
    }
}

/// Builds a client. `connect_timeout` bounds all of a connection: name, handshakes, proxy.
pub fn client<B>(
    proxy: Option<&Secret>,
    connect_timeout: Duration,
    trust: &Trust,
) -> Result<Client<B>, ClientError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let connector = Connector::new(proxy.map(Secret::expose), connect_timeout, trust)?;
    Ok(legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build(connector))
}

/// Builds a client for everything but the upstream: receivers of alerts, another coordinator. It follows no redirect and
/// reads no environment either.
pub fn elsewhere(proxy: Option<&Secret>, connect_timeout: Duration) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(connect_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy();
    if let Some(proxy) = proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy.expose())?);
    }
    builder.build()
}
