//! One pod: a gateway, and what a kubelet does to it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::service::Endpoints;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::cluster::process::{Process, Program};
use crate::gateway::free_port;

/// What the specification of a pod says about its life.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Between the decision to end a pod and its SIGTERM.
    pub pre_stop: Duration,
    /// From that decision until SIGKILL.
    pub grace: Duration,
    /// Nothing else is asked before it succeeds.
    pub startup: Probe,
    /// A pod that fails it is killed.
    pub liveness: Probe,
    /// A pod that fails it gets no new connections.
    pub readiness: Probe,
}

/// A GET that has to succeed.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Asked on the port for operators.
    pub ops: bool,
    /// The path.
    pub path: String,
    /// Between two of them.
    pub period: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// So many failures in a row count.
    pub failures: u32,
}

impl PodSpec {
    /// Reads the first container of a Deployment, as the API server has it.
    ///
    /// # Panics
    /// If it lacks a probe, a `preStop` that sleeps, or a grace period.
    pub fn of(deployment: &Value) -> Self {
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        let grace = pod["terminationGracePeriodSeconds"].as_u64();
        Self {
            pre_stop: Duration::from_secs(pre_stop.expect("a preStop that sleeps")),
            grace: Duration::from_secs(grace.expect("a grace period")),
            startup: Probe::of(&container["startupProbe"], &container["ports"]),
            liveness: Probe::of(&container["livenessProbe"], &container["ports"]),
            readiness: Probe::of(&container["readinessProbe"], &container["ports"]),
        }
    }

    /// The same in a world where everything takes a part of the time; what a probe may take stays.
    #[must_use]
    pub fn faster(mut self, times: u32) -> Self {
        for probe in [&mut self.startup, &mut self.liveness, &mut self.readiness] {
            probe.period /= times;
            // As long as before in all: processes do not start faster.
            probe.failures *= times;
        }
        // Readiness that is lost is acted upon after as many failures as before.
        self.readiness.failures /= times;
        self.pre_stop /= times;
        self.grace /= times;
        self
    }
}

impl Probe {
    fn of(probe: &Value, ports: &Value) -> Self {
        let get = &probe["httpGet"];
        let named = |name: &str| {
            let ports = ports.as_array().into_iter().flatten();
            ports.map(|port| &port["name"]).any(|port| port == name && get["port"] == name)
        };
        assert!(named("http") || named("ops"), "the port of a probe has a name: {probe}");
        let number = |name: &str, default: u64| probe[name].as_u64().unwrap_or(default);
        Self {
            ops: named("ops"),
            path: get["path"].as_str().expect("the path of a probe").to_owned(),
            period: Duration::from_secs(number("periodSeconds", 10)),
            timeout: Duration::from_secs(number("timeoutSeconds", 1)),
            failures: u32::try_from(number("failureThreshold", 3)).expect("a small number"),
        }
    }

    async fn succeeds(&self, clients: &Client, ops: &Client) -> bool {
        let client = if self.ops { ops } else { clients };
        let answer = tokio::time::timeout(self.timeout, client.get(&self.path)).await;
        answer.is_ok_and(|answer| answer.is_ok_and(|answer| (200..400).contains(&answer.status)))
    }
}

/// What went wrong with pods, for the end of a scenario.
pub(super) type Complaints = Arc<Mutex<Vec<String>>>;

/// A gateway that runs.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) number: usize,
    process: Process,
    pub(super) ops: Client,
    ready: watch::Receiver<bool>,
    kubelet: AbortHandle,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kubelet.abort();
    }
}

impl Pod {
    pub(super) fn start(
        cluster: &Cluster,
        number: usize,
        build: Option<&Path>,
        spec: &PodSpec,
        endpoints: &Endpoints,
        complaints: &Complaints,
    ) -> Self {
        let (port, ops) = (free_port(), free_port());
        let mut arguments = vec!["serve".to_owned(), "-c".to_owned(), "config.yaml".to_owned()];
        arguments.extend(["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned));
        let folder = cluster.prepare(&format!("pod-{number}"), port, |config| {
            config["server"]["ops_port"] = json!(ops);
        });
        let program = build.map_or(Program::Ours("gateway"), |path| Program::Build(path.to_owned()));
        let process = Process::start(program, arguments, folder, port);
        let ops = Client::new(format!("http://127.0.0.1:{ops}"));
        let (told, ready) = watch::channel(false);
        let kubelet = Kubelet {
            spec: spec.clone(),
            port,
            clients: Client::new(process.url()),
            ops: ops.clone(),
            endpoints: endpoints.clone(),
            ready: told,
            complaints: complaints.clone(),
        };
        let kubelet = tokio::spawn(kubelet.watch(number)).abort_handle();
        Self { number, process, ops, ready, kubelet }
    }

    pub(super) async fn until_ready(&mut self) {
        let ready = self.ready.wait_for(|ready| *ready);
        let ready = tokio::time::timeout(Duration::from_mins(1), ready).await;
        let ready = ready.is_ok_and(|told| told.is_ok());
        assert!(ready, "pod {} is not ready: {}", self.number, self.process.log());
    }

    /// Ends at once, without a word.
    pub(super) fn crash(mut self, endpoints: &Endpoints) {
        self.kubelet.abort();
        endpoints.remove(self.process.port);
        self.process.kill();
    }

    /// What the kubelet and the endpoints' controller do, at the same time, to a pod that is deleted.
    pub(super) async fn end(mut self, spec: PodSpec, endpoints: Endpoints) -> Ended {
        self.kubelet.abort();
        endpoints.remove(self.process.port);
        tokio::time::sleep(spec.pre_stop).await;
        self.process.signal(Signal::TERM);
        let patience = spec.grace.saturating_sub(spec.pre_stop);
        let in_time = self.process.exit_within(patience).await.is_some_and(|status| status.success());
        self.process.kill();
        Ended { number: self.number, in_time, log: self.process.log() }
    }
}

/// A pod that is no more.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) number: usize,
    /// It ended by itself, well, within its grace period.
    pub(super) in_time: bool,
    pub(super) log: String,
}

struct Kubelet {
    spec: PodSpec,
    port: u16,
    clients: Client,
    ops: Client,
    endpoints: Endpoints,
    ready: watch::Sender<bool>,
    complaints: Complaints,
}

impl Kubelet {
    async fn watch(self, number: usize) {
        let complain = |what: &str| {
            let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
            complaints.push(format!("pod {number} {what}"));
        };
        let mut refused = 0;
        while !self.spec.startup.succeeds(&self.clients, &self.ops).await {
            refused += 1;
            if refused >= self.spec.startup.failures {
                return complain("was not started in time");
            }
            tokio::time::sleep(self.spec.startup.period).await;
        }
        tokio::join!(self.watch_readiness(), async {
            let mut failed = 0;
            while failed < self.spec.liveness.failures {
                tokio::time::sleep(self.spec.liveness.period).await;
                let lives = self.spec.liveness.succeeds(&self.clients, &self.ops).await;
                failed = if lives { 0 } else { failed + 1 };
            }
            complain("would have been killed: it did not answer");
        });
    }

    async fn watch_readiness(&self) {
        let mut failed = 0;
        loop {
            let succeeds = self.spec.readiness.succeeds(&self.clients, &self.ops).await;
            failed = if succeeds { 0 } else { failed + 1 };
            let is = *self.ready.borrow();
            if succeeds && !is {
                self.endpoints.add(self.port);
                self.ready.send_replace(true);
            } else if is && failed >= self.spec.readiness.failures {
                self.endpoints.remove(self.port);
                self.ready.send_replace(false);
            }
            tokio::time::sleep(self.spec.readiness.period).await;
        }
    }
}
