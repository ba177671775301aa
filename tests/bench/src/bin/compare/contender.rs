//! What is compared, and how each is set up.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use keyfleet_bench::Report;
use serde_json::{Value, json};

use crate::lab::{Lab, free_address};
use crate::process::{Process, Usage};
use crate::upstream::Upstream;
use crate::wire;

/// The token of the gateway's client.
pub(crate) const TOKEN: &str = "bench-client-token-of-a-usual-length";

/// A way to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// No proxy: what the upstream itself and the load tool can do.
    Direct,
    Nginx,
    /// A bare proxy of axum and reqwest.
    Bare,
    Gateway,
}

impl Contender {
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::Nginx, Self::Bare, Self::Gateway];

    /// Starts it, and waits until it answers.
    pub(crate) fn start<'a>(self, lab: &Lab, upstream: &'a Upstream) -> io::Result<Running<'a>> {
        let key = upstream.keys.first().cloned().unwrap_or_default();
        if self == Self::Direct {
            let (address, took) = (upstream.address, Duration::ZERO);
            return Ok(Running { contender: self, upstream, process: None, address, bearer: key, took });
        }
        let address = free_address()?;
        let (mut command, bearer) = match self {
            Self::Gateway => (gateway(lab, address, upstream)?, TOKEN.to_owned()),
            Self::Nginx => (nginx(lab, address, upstream)?, key),
            Self::Direct | Self::Bare => (bare(lab, address, upstream), key),
        };
        let began = Instant::now();
        let process = Process::start(&mut command)?;
        wire::until_answering(address, &bearer)
            .map_err(|error| io::Error::new(error.kind(), format!("{self}: {error}")))?;
        Ok(Running {
            contender: self,
            upstream,
            process: Some(process),
            address,
            bearer,
            took: began.elapsed(),
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Bare => "bare axum+reqwest",
            Self::Gateway => "gateway",
        })
    }
}

/// A contender that answers.
pub(crate) struct Running<'a> {
    contender: Contender,
    upstream: &'a Upstream,
    /// None if it is the upstream itself.
    process: Option<Process>,
    address: SocketAddr,
    bearer: String,
    /// From its start to its first answer.
    pub(crate) took: Duration,
}

/// How long the lines of a load may take to arrive, and how often they are counted.
const LINES_WITHIN: Duration = Duration::from_secs(5);
const LINES_PAUSE: Duration = Duration::from_millis(10);

impl Running<'_> {
    /// What it has consumed so far.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        self.process.as_ref().unwrap_or(&self.upstream.process).usage()
    }

    /// Loads it; anything but complete answers is an error.
    pub(crate) async fn load(&self, lab: &Lab, plan: &[String]) -> io::Result<Report> {
        let report = self.try_load(lab, plan).await?;
        if report.failed() > 0 {
            let (failed, all, why) = (report.failed(), report.requests, &report.failures);
            return Err(io::Error::other(format!(
                "{}: {failed} of {all} requests failed: {why:?}",
                self.contender
            )));
        }
        // What is measured is the whole product, and its lines are part of it; the last ones come a moment later.
        if self.contender == Contender::Gateway {
            let wanted = u64::from(report.ok / 2);
            let written = async {
                while self.process.as_ref().map_or(0, Process::lines) < wanted {
                    tokio::time::sleep(LINES_PAUSE).await;
                }
            };
            if tokio::time::timeout(LINES_WITHIN, written).await.is_err() {
                return Err(io::Error::other("the gateway does not log its requests"));
            }
        }
        Ok(report)
    }

    /// Loads it; failures are part of the report.
    pub(crate) async fn try_load(&self, lab: &Lab, plan: &[String]) -> io::Result<Report> {
        lab.load(self.address, &self.bearer, plan).await
    }
}

/// The whole product: clients with a token, a pool of keys, the request log into a pipe, metrics, state on disk.
fn gateway(lab: &Lab, address: SocketAddr, upstream: &Upstream) -> io::Result<Command> {
    let file = gateway_config(lab, address, upstream, &json!({}))?;
    let mut command = lab.program("gateway");
    command.arg("--config").arg(file);
    Ok(command)
}

/// What a gateway is told, and `more`.
pub(crate) fn gateway_config(
    lab: &Lab,
    address: SocketAddr,
    upstream: &Upstream,
    more: &Value,
) -> io::Result<PathBuf> {
    let state = lab.file("state.json");
    let _ = fs::remove_file(&state);
    let mut config = json!({
        "server": {
            "host": address.ip(),
            "port": address.port(),
            "clients": [{"name": "another", "token": "the-token-of-another-client"}, {"name": "bench", "token": TOKEN}],
            "state_file": state,
            "drain_timeout_secs": 1,
        },
        "groups": [{
            "name": "pool",
            "api_keys": upstream.keys,
            "target_url": format!("http://{}/v1beta/openai/", upstream.address),
        }],
        // The quota test's windows last seconds: what its errors call a minute must not be believed.
        "quota": {"learn_limits": false},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    let file = lab.file("config.yaml");
    fs::write(&file, serde_json::to_string_pretty(&config)?)?;
    Ok(file)
}

fn bare(lab: &Lab, address: SocketAddr, upstream: &Upstream) -> Command {
    let mut command = lab.program("passthrough");
    command.args(["--listen", &address.to_string(), "--upstream", &format!("http://{}", upstream.address)]);
    command
}

/// As near to the work of the kernel as a proxy comes: two workers, kept connections, nothing buffered or logged.
fn nginx(lab: &Lab, address: SocketAddr, upstream: &Upstream) -> io::Result<Command> {
    let folder = lab.file("nginx");
    fs::create_dir_all(&folder)?;
    let (folder, target) = (folder.display(), upstream.address);
    let config = format!(
        "daemon off;
worker_processes 2;
worker_rlimit_nofile 16384;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 10000000;
    client_max_body_size 100m;
    client_body_buffer_size 256k;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream target {{
        server {target};
        keepalive 512;
        keepalive_requests 10000000;
    }}
    server {{
        listen {address} backlog=4096;
        location / {{
            proxy_pass http://target;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"
    );
    let file = lab.file("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new(std::env::var_os("NGINX").unwrap_or_else(|| "nginx".into()));
    command.arg("-c").arg(file).arg("-e").arg("stderr");
    Ok(command)
}
