//! What a request costs in instructions, which are the same on a busy machine: without quotas, with them, and as one of
//! many replicas. Each gateway runs in valgrind twice, with few and with many requests; the difference is theirs.

use std::fs;
use std::io;
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
    let without = per_request(lab, &upstream, &json!({"quota": quota})).await?;
    let alone = per_request(lab, &upstream, &json!({"limits": limits, "quota": quota})).await?;
    let cluster = Servers::start(lab)?;
    let mut shared = cluster.config();
    shared["limits"] = limits;
    shared["quota"] = quota;
    let _coordinator = coordinator(lab, &upstream, &shared)?;
    let replica = per_request(lab, &upstream, &shared).await?;
    let of_gateway = |figure: f64| [(Contender::Gateway, figure)].into();
    let gate = |figure: f64| Gate::at_most(figure / without, 1.10, 1.05, 3, "×");
    Ok(vec![
        Row::new("instructions per request, no quotas", of_gateway(without), 0),
        Row::new("instructions per request, three quotas (÷ none)", of_gateway(alone), 0).gated(gate(alone)),
        Row::new(
            "instructions per request, three quotas shared with other replicas (÷ none)",
            of_gateway(replica),
            0,
        )
        .gated(gate(replica)),
    ])
}

/// What one more request costs a gateway with this in its configuration.
async fn per_request(lab: &Lab, upstream: &Upstream, more: &Value) -> io::Result<f64> {
    let few = count(lab, upstream, more, FEW).await?;
    let many = count(lab, upstream, more, MANY).await?;
    let figure = (many - few) / f64::from(MANY - FEW);
    eprintln!("instructions: {figure:.0} per request");
    Ok(figure)
}

/// All instructions of a gateway that starts, answers so many requests, and ends.
async fn count(lab: &Lab, upstream: &Upstream, more: &Value, requests: u32) -> io::Result<f64> {
    let address = free_address()?;
    let config = gateway_config(lab, address, upstream, more)?;
    let counted = lab.file("callgrind");
    let _ = fs::remove_file(&counted);
    let gateway = Counted::start(lab, &config, &counted)?;
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
    fn start(lab: &Lab, config: &Path, counted: &Path) -> io::Result<Self> {
        let mut command = Command::new(std::env::var_os("VALGRIND").unwrap_or_else(|| "valgrind".into()));
        let mut out = std::ffi::OsString::from("--callgrind-out-file=");
        out.push(counted);
        command.args(["--quiet", "--tool=callgrind"]).arg(out);
        command.arg(lab.program("gateway").get_program()).arg("--config").arg(config);
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
