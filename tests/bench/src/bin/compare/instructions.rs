//! What a request costs in instructions, which are the same on a busy machine: without metrics, without quotas, with
//! them, as one of many replicas, and with traces. Each gateway runs in valgrind twice, with few and with many requests;
//! the difference is theirs.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use keyfleet_simulator::AnswerSpec;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::contender::{Contender, TOKEN, gateway_config};
use crate::lab::{Lab, free_address};
use crate::process::Process;
use crate::table::{Gate, Row};
use crate::upstream::Upstream;
use crate::wire;

const GATEWAY: &str = "gateway";
/// The same, but requests are not counted.
const UNCOUNTED: &str = "gateway-uncounted";
const FEW: u32 = 400;
const MANY: u32 = 2_400;
const CONNECTIONS: u32 = 4;
/// Valgrind writes down what it counted when the program ends.
const END_WITHIN: Duration = Duration::from_mins(1);
const LEASE_WAIT_MS: u64 = 10_000;
/// Far more than is asked.
const PER_MINUTE: u64 = 1_000_000;

pub(crate) async fn instructions(lab: &Lab) -> io::Result<Vec<Row>> {
    let upstream = Upstream::simulator(lab, AnswerSpec::default())?;
    // A gateway in valgrind is slow: while its leases are cold, requests wait for them instead of being refused.
    let quota = json!({"learn_limits": false, "lease_wait_ms": LEASE_WAIT_MS});
    let limits =
        json!([{"models": "*", "rpm": PER_MINUTE, "tpm": 1_000 * PER_MINUTE, "rpd": 1_000 * PER_MINUTE}]);
    let uncounted = per_request(lab, UNCOUNTED, &upstream, &json!({"quota": quota})).await?;
    let without = per_request(lab, GATEWAY, &upstream, &json!({"quota": quota})).await?;
    let alone = per_request(lab, GATEWAY, &upstream, &json!({"limits": limits, "quota": quota})).await?;
    let collector = Collector::start()?;
    let traced = |ratio: f64| {
        let telemetry = json!({"endpoint": collector.url, "sampling_ratio": ratio});
        json!({"quota": quota, "telemetry": telemetry})
    };
    let sampled = per_request(lab, GATEWAY, &upstream, &traced(0.1)).await?;
    let whole = per_request(lab, GATEWAY, &upstream, &traced(1.0)).await?;
    let cluster = Servers::start(lab)?;
    let mut shared = cluster.config();
    shared["limits"] = limits;
    shared["quota"] = quota.clone();
    let _coordinator = coordinator(lab, &upstream, &shared)?;
    let replica = per_request(lab, GATEWAY, &upstream, &shared).await?;
    let of_gateway = |figure: f64| [(Contender::Gateway, figure)].into();
    let gate = |figure: f64| Gate::at_most(figure / without, 1.10, 1.05, 3, "×");
    Ok(vec![
        Row::new("instructions per request, built without metrics", of_gateway(uncounted), 0),
        Row::new("instructions per request, no quotas (÷ without metrics)", of_gateway(without), 0)
            .gated(Gate::at_most(without / uncounted, 1.05, 1.02, 3, "×")),
        Row::new("instructions per request, three quotas (÷ none)", of_gateway(alone), 0).gated(gate(alone)),
        Row::new(
            "instructions per request, three quotas shared with other replicas (÷ none)",
            of_gateway(replica),
            0,
        )
        .gated(gate(replica)),
        Row::new("instructions per request, one trace in ten (÷ without metrics)", of_gateway(sampled), 0)
            .gated(Gate::at_most(sampled / uncounted, 1.10, 1.05, 3, "×")),
        Row::new("instructions per request, every trace", of_gateway(whole), 0),
    ])
}

/// What one more request costs a gateway with this in its configuration.
async fn per_request(lab: &Lab, program: &str, upstream: &Upstream, more: &Value) -> io::Result<f64> {
    let few = count(lab, program, upstream, more, FEW).await?;
    let many = count(lab, program, upstream, more, MANY).await?;
    let figure = (many - few) / f64::from(MANY - FEW);
    eprintln!("instructions: {figure:.0} per request");
    Ok(figure)
}

/// All instructions of a gateway that starts, answers so many requests, and ends.
async fn count(
    lab: &Lab,
    program: &str,
    upstream: &Upstream,
    more: &Value,
    requests: u32,
) -> io::Result<f64> {
    let address = free_address()?;
    let config = gateway_config(lab, address, upstream, more)?;
    let counted = lab.file("callgrind");
    let _ = fs::remove_file(&counted);
    let gateway = Counted::start(&lab.program(program), &config, &counted)?;
    wire::until_answering(address, TOKEN)?;
    let plan =
        ["closed".to_owned(), format!("--connections={CONNECTIONS}"), format!("--requests={requests}")];
    let report = lab.load(address, TOKEN, &plan).await?;
    if report.failed() > 0 {
        return Err(io::Error::other(format!("instructions: {:?}", report.failures)));
    }
    gateway.end()?;
    let text = fs::read_to_string(&counted)?;
    let total =
        text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    let total = total.and_then(|total| total.trim().parse().ok());
    total.ok_or_else(|| io::Error::other("valgrind does not say how many instructions it counted"))
}

/// A gateway in valgrind.
struct Counted(Child);

impl Counted {
    fn start(gateway: &Command, config: &Path, counted: &Path) -> io::Result<Self> {
        let mut command = Command::new(std::env::var_os("VALGRIND").unwrap_or_else(|| "valgrind".into()));
        let mut out = std::ffi::OsString::from("--callgrind-out-file=");
        out.push(counted);
        command.args(["--quiet", "--tool=callgrind"]).arg(out);
        command.arg(gateway.get_program()).arg("--config").arg(config);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// Asks it to end, and waits until it has.
    fn end(mut self) -> io::Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let deadline = Instant::now() + END_WITHIN;
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(io::Error::other("the gateway in valgrind does not end"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // An error: it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes whatever is sent to it over HTTP, and says that this is well.
struct Collector {
    url: String,
}

impl Collector {
    /// It ends with this process.
    fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // An error: the gateway has ended.
                thread::spawn(move || drop(Self::take(connection)));
            }
        });
        Ok(Self { url })
    }

    fn take(connection: TcpStream) -> io::Result<()> {
        let mut answers = connection.try_clone()?;
        let mut requests = BufReader::new(connection);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if requests.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line.trim().is_empty() {
                    break;
                }
                let header =
                    line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                length = header.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(length);
            }
            io::copy(&mut requests.by_ref().take(length), &mut io::sink())?;
            answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        }
    }
}

/// What replicas share.
struct Servers {
    _nats: Process,
    _redis: Process,
    nats: String,
    redis: String,
}

impl Servers {
    fn start(lab: &Lab) -> io::Result<Self> {
        let program = |variable: &str, usual: &str| {
            Command::new(std::env::var_os(variable).unwrap_or_else(|| usual.into()))
        };
        let (nats, redis) = (free_address()?, free_address()?);
        let folder = |name: &str| -> io::Result<PathBuf> {
            let folder = lab.file(name);
            fs::create_dir_all(&folder)?;
            Ok(folder)
        };
        let mut command = program("NATS_SERVER", "nats-server");
        command.args(["-a", &nats.ip().to_string(), "-p", &nats.port().to_string(), "-js", "-sd"]);
        let nats_server = Process::start(command.arg(folder("nats")?))?;
        let mut command = program("REDIS_SERVER", "redis-server");
        command.args(["--bind", &redis.ip().to_string(), "--port", &redis.port().to_string(), "--dir"]);
        let redis_server =
            Process::start(command.arg(folder("redis")?).args(["--save", "", "--appendonly", "yes"]))?;
        wire::until_listening(nats)?;
        wire::until_listening(redis)?;
        Ok(Self {
            _nats: nats_server,
            _redis: redis_server,
            nats: format!("nats://{nats}"),
            redis: format!("redis://{redis}"),
        })
    }

    fn config(&self) -> Value {
        json!({"nats_url": self.nats, "redis_url": self.redis})
    }
}

fn coordinator(lab: &Lab, upstream: &Upstream, shared: &Value) -> io::Result<Process> {
    let address = free_address()?;
    let config = gateway_config(lab, address, upstream, shared)?;
    let own = lab.file("coordinator.yaml");
    fs::rename(config, &own)?;
    let mut command = lab.program("coordinator");
    let process = Process::start(command.arg("-c").arg(own).args(["-p", &address.port().to_string()]))?;
    wire::until_listening(address)?;
    Ok(process)
}
