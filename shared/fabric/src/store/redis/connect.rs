//! From a URL to a client: one server, Sentinel or Cluster, with or without TLS.

use super::{Settings, StoreError};
use fred::clients::Client;
use fred::rustls::pki_types::CertificateDer;
use fred::rustls::pki_types::pem::PemObject as _;
use fred::rustls::{ClientConfig, RootCertStore};
use fred::types::Builder;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TlsConfig, TlsConnector, TlsHostMapping,
    UnresponsiveConfig,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longer than this, nobody is helped by a command that waits in line: it is refused instead.
const QUEUE: usize = 1024;
/// Between two attempts to connect, in ms. A leader whose server was restarted has to be back before anybody else
/// takes its place.
const RECONNECT_MS: (u32, u32) = (50, 250);
/// Spread over attempts, so that a restarted server does not see all clients at once.
const JITTER_MS: u32 = 100;

const URL_FORMS: &str = "it has the form redis://user:password@host:6379/0, \
    redis-sentinel://host:26379/0?sentinelServiceName=name&node=host2:26379 or \
    redis-cluster://host:6379?node=host2:6379, and begins with rediss for TLS";

/// A client that is not connected yet. Errors never quote the URL, which may hold a password.
pub(super) fn client(settings: &Settings) -> Result<Client, StoreError> {
    let config = config(settings)?;
    let timeout = settings.timeout;
    let mut policy = ReconnectPolicy::new_exponential(0, RECONNECT_MS.0, RECONNECT_MS.1, 2);
    policy.set_jitter(JITTER_MS);
    Builder::from_config(config)
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.connection_timeout = timeout * 4;
            connection.internal_command_timeout = timeout * 4;
            // Whoever sent a command that broke off decides whether to send it again.
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = QUEUE;
            // A connection on which nothing comes back is given up, or a black hole would last for minutes.
            connection.unresponsive = UnresponsiveConfig {
                max_timeout: Some(timeout * 4),
                interval: timeout.max(Duration::from_millis(50)),
            };
        })
        .with_performance_config(|performance: &mut PerformanceConfig| {
            performance.default_command_timeout = timeout;
        })
        .set_policy(policy)
        .build()
        .map_err(|_| wrong_url(URL_FORMS))
}

fn config(settings: &Settings) -> Result<Config, StoreError> {
    let (scheme, rest) = settings.url.split_once("://").ok_or_else(|| wrong_url(URL_FORMS))?;
    let (kind, tls) = match scheme {
        "redis" | "redis-sentinel" | "redis-cluster" => (scheme, false),
        "rediss" => ("redis", true),
        "rediss-sentinel" => ("redis-sentinel", true),
        "rediss-cluster" => ("redis-cluster", true),
        _ => return Err(wrong_url(URL_FORMS)),
    };
    if kind == "redis" && rest.split_once('?').is_some_and(|(_, query)| query.contains("node=")) {
        return Err(wrong_url("several servers need redis-sentinel:// or redis-cluster://"));
    }
    let mut config = Config::from_url(&format!("{kind}://{rest}")).map_err(|_| wrong_url(URL_FORMS))?;
    if tls {
        let hostnames =
            if kind == "redis-cluster" { TlsHostMapping::DefaultHost } else { TlsHostMapping::None };
        config.tls = Some(TlsConfig { connector: connector(settings.ca.as_deref())?, hostnames });
    }
    Ok(config)
}

/// Trusts the given authorities, or else those of the system.
fn connector(ca: Option<&Path>) -> Result<TlsConnector, StoreError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let unreadable =
            |error: &dyn std::fmt::Display| StoreError::Misconfigured(format!("{}: {error}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
            let certificate = certificate.map_err(|error| unreadable(&error))?;
            roots.add(certificate).map_err(|error| unreadable(&error))?;
        }
    } else {
        roots.add_parsable_certificates(fred::rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(StoreError::Misconfigured("there is no certificate authority to trust".to_owned()));
    }
    // Named, so that it does not depend on which providers other crates bring along.
    let provider = Arc::new(fred::rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Misconfigured(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(config))
}

fn wrong_url(why: &str) -> StoreError {
    StoreError::Misconfigured(format!("the Redis URL cannot be used: {why}"))
}
