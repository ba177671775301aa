//! The HTTP client towards the upstream: one per way out, the same for gateway and prober.

use std::time::Duration;

use crate::config::Secret;

/// Idle connections that are kept per host: enough for the bursts of a busy replica.
const IDLE_PER_HOST: usize = 512;
/// Idle connections are closed before the upstream does it (Google: four minutes).
const IDLE: Duration = Duration::from_secs(90);

/// Builds a client. It follows no redirect, retries nothing by itself and decodes nothing: every upstream call is
/// one that we chose, and every byte is passed on as it came.
pub fn client(proxy: Option<&Secret>, connect_timeout: Duration) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_adaptive_window(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy();
    if let Some(proxy) = proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy.expose())?);
    }
    builder.build()
}
