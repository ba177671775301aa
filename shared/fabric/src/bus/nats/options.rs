//! Where the servers are, how to log in, and what the stream of reports is to be like. No text made here, for logs or
//! for errors, holds a secret.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use keyfleet_core::owner::Partition;
use percent_encoding::percent_decode_str;
use url::Url;

/// How often the server is pinged. The third ping without an answer ends the connection, so a black hole is noticed
/// after about three of these.
const PING: Duration = Duration::from_secs(1);
/// For how long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Messages that wait in one subscription for its reader; beyond it they are lost, and the reader is told.
pub(super) const SUBSCRIPTION: usize = 2_048;

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The servers, as `nats://host:port` or `tls://host:port`. A user and a password, or a token, in the first of
    /// them are [`Login`]'s.
    pub servers: Vec<String>,
    /// How to log in, unless a URL says it.
    pub login: Login,
    /// How to trust the server, and to be trusted.
    pub tls: NatsTls,
    /// What the server's monitoring calls this process.
    pub name: String,
    /// Comes before every subject and stream name, so that several deployments can share one account; words of
    /// `a-z A-Z 0-9 -`, joined by dots. Empty: nothing does.
    pub prefix: String,
    /// Which partition.
    pub partition: Partition,
    /// For how long a question waits for its answer.
    pub ask_timeout: Duration,
    /// For how long a report waits for being stored.
    pub report_timeout: Duration,
    /// What the stream is to be like, where it has to be created.
    pub stream: StreamLimits,
}

impl NatsOptions {
    /// Everything as usual, with these servers.
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            login: Login::default(),
            tls: NatsTls::default(),
            name: "keyfleet".to_owned(),
            prefix: String::new(),
            partition: Partition::default(),
            ask_timeout: Duration::from_millis(250),
            report_timeout: Duration::from_secs(2),
            stream: StreamLimits::default(),
        }
    }
}

/// Who we are.
#[derive(Clone, Default)]
pub enum Login {
    /// Nobody in particular, or whoever the URL or the client certificate says.
    #[default]
    Anonymous,
    /// A user.
    Password {
        /// Its name.
        user: String,
        /// Its secret.
        password: String,
    },
    /// A token.
    Token(String),
    /// The seed of an nkey.
    Nkey(String),
    /// A file with a JWT and the seed that goes with it.
    Credentials(PathBuf),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::Token(_) => f.write_str("Token"),
            Self::Nkey(_) => f.write_str("Nkey"),
            Self::Credentials(path) => f.debug_tuple("Credentials").field(path).finish(),
        }
    }
}

/// Whom to trust.
#[derive(Debug, Clone, Default)]
pub struct NatsTls {
    /// Refuses servers without TLS. Any of the files below, or a `tls://` URL, does so as well.
    pub required: bool,
    /// A PEM file with the only authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files with our certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What keeps the stream of reports from growing, where it has to be created. One that is there is used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLimits {
    /// Older reports are dropped.
    pub max_age: Duration,
    /// Beyond this many bytes the oldest are dropped.
    pub max_bytes: i64,
    /// On how many servers; `None`: on three if there are three, else on one.
    pub replicas: Option<usize>,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self { max_age: Duration::from_hours(2), max_bytes: 1 << 30, replicas: None }
    }
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// No server is named.
    #[error("no server is given")]
    NoServer,
    /// One of the URLs is none. The text is not repeated: it may hold a password.
    #[error("server {0} is not of the form nats://host:port or tls://host:port")]
    Server(usize),
    /// Two of the URLs log in differently.
    #[error("server {0} logs in differently from those before it")]
    Logins(usize),
    /// The prefix cannot be part of a subject and a stream's name.
    #[error("prefix {0:?} is not made of words of a-z A-Z 0-9 - that are joined by dots")]
    Prefix(String),
    /// The credentials file cannot be used.
    #[error("the credentials file {path} cannot be used: {kind}", path = path.display())]
    Credentials {
        /// Which.
        path: PathBuf,
        /// Why.
        kind: std::io::ErrorKind,
    },
    /// The client refuses to start.
    #[error("the client does not start: {0}")]
    Client(async_nats::ConnectErrorKind),
}

/// The servers, and the login that their URLs hold.
pub(super) fn servers(options: &NatsOptions) -> Result<(Vec<ServerAddr>, Login), OptionsError> {
    let mut found: Option<(String, Option<String>)> = None;
    let mut servers = Vec::with_capacity(options.servers.len());
    for (i, text) in options.servers.iter().enumerate() {
        let bad = || OptionsError::Server(i + 1);
        let full = if text.contains("://") { text.clone() } else { format!("nats://{text}") };
        let mut url = Url::parse(&full).map_err(|_| bad())?;
        if !matches!(url.scheme(), "nats" | "tls") || url.host_str().is_none_or(str::is_empty) {
            return Err(bad());
        }
        let decoded =
            |text: &str| percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| bad());
        if !url.username().is_empty() {
            let login = (decoded(url.username())?, url.password().map(decoded).transpose()?);
            if found.as_ref().is_some_and(|before| *before != login) {
                return Err(OptionsError::Logins(i + 1));
            }
            found = Some(login);
        }
        // The client logs its servers: nothing secret may be in them.
        url.set_username("").map_err(|()| bad())?;
        url.set_password(None).map_err(|()| bad())?;
        servers.push(ServerAddr::from_url(url).map_err(|_| bad())?);
    }
    if servers.is_empty() {
        return Err(OptionsError::NoServer);
    }
    let login = match found {
        Some((user, Some(password))) => Login::Password { user, password },
        Some((token, None)) => Login::Token(token),
        None => options.login.clone(),
    };
    Ok((servers, login))
}

/// What both connections have in common.
pub(super) async fn connect_options(
    options: &NatsOptions,
    login: &Login,
    purpose: &str,
) -> Result<ConnectOptions, OptionsError> {
    let tls = &options.tls;
    let mut connect = ConnectOptions::new()
        .name(format!("{}-{purpose}", options.name))
        .ping_interval(PING)
        .connection_timeout(CONNECT)
        .subscription_capacity(SUBSCRIPTION)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .require_tls(tls.required || tls.ca_file.is_some() || tls.client.is_some());
    if let Some(ca) = &tls.ca_file {
        connect = connect.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &tls.client {
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(match login {
        Login::Anonymous => connect,
        Login::Password { user, password } => connect.user_and_password(user.clone(), password.clone()),
        Login::Token(token) => connect.token(token.clone()),
        Login::Nkey(seed) => connect.nkey(seed.clone()),
        Login::Credentials(path) => connect
            .credentials_file(path)
            .await
            .map_err(|error| OptionsError::Credentials { path: path.clone(), kind: error.kind() })?,
    })
}

/// At once, then from 10 ms up to 1 s, each time by half more or less, so that a fleet does not return in step.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = match u32::try_from(attempts).unwrap_or(u32::MAX) {
        0 | 1 => return Duration::ZERO,
        n => (n - 2).min(7),
    };
    let full = Duration::from_millis(10 << doublings).min(Duration::from_secs(1));
    full.mul_f64(0.5 + fastrand::f64())
}

/// The prefix with its dot, or nothing.
pub(super) fn prefix(options: &NatsOptions) -> Result<String, OptionsError> {
    let prefix = options.prefix.as_str();
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match prefix {
        "" => Ok(String::new()),
        _ if prefix.split('.').all(word) => Ok(format!("{prefix}.")),
        _ => Err(OptionsError::Prefix(prefix.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(servers: &[&str]) -> NatsOptions {
        NatsOptions::new(servers.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_login_in_the_url_is_taken_out_of_it() {
        let (servers, login) = servers(&with(&["nats://me:p%40ss@a:4222", "tls://me:p%40ss@b"])).unwrap();
        assert!(matches!(login, Login::Password { user, password } if user == "me" && password == "p@ss"));
        assert!(!format!("{servers:?}").contains("p%40ss"));
        let (_, login) = super::servers(&with(&["nats://t0ken@a"])).unwrap();
        assert!(matches!(login, Login::Token(token) if token == "t0ken"));
    }

    #[test]
    fn no_error_repeats_a_secret() {
        for bad in [
            &["http://me:s3cret@a"][..],
            &["nats://me:s3cret@"],
            &["nats://me:s3cret@a", "nats://me:0ther@b"],
        ] {
            let error = servers(&with(bad)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
        assert!(matches!(servers(&with(&[])), Err(OptionsError::NoServer)));
        let secret = [
            Login::Password { user: "me".into(), password: "s3cret".into() },
            Login::Token("s3cret".into()),
            Login::Nkey("s3cret".into()),
        ];
        for login in secret {
            let options = NatsOptions { login, ..with(&["a"]) };
            assert!(!format!("{options:?}").contains("s3cret"));
        }
    }

    #[test]
    fn a_prefix_makes_subjects_and_names_of_its_own() {
        let of = |prefix: &str| super::prefix(&NatsOptions { prefix: prefix.into(), ..with(&["a"]) });
        assert_eq!(of("").unwrap(), "");
        assert_eq!(of("team-a.prod").unwrap(), "team-a.prod.");
        for bad in ["a.", ".a", "a*", "a b", "a_b", ">"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_reconnects_in_step_or_late() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        for attempts in [2, 9, 1_000, usize::MAX] {
            let delay = reconnect_delay(attempts);
            assert!(delay >= Duration::from_millis(5) && delay <= Duration::from_millis(1_500), "{delay:?}");
        }
        assert!((0..20).map(|_| reconnect_delay(9)).any(|delay| delay != reconnect_delay(9)));
    }
}
