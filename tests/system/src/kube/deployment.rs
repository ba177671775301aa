//! A Deployment of gateways behind a Service.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keyfleet_simulator::World;
use serde_json::Value;
use tokio::task::JoinSet;

use super::pod::{Complaints, Ended, Pod, PodSpec};
use super::service::Service;
use crate::client::Client;
use crate::cluster::{Cluster, ClusterOptions};
use crate::eventually::eventually;
use crate::figures::Figures;
use crate::gateway::binary;

const SOON: Duration = Duration::from_secs(30);

/// Gateways as pods, with NATS, Redis and coordinators as processes beside them.
#[derive(Debug)]
pub struct Deployment {
    /// The oldest first.
    pods: Vec<Pod>,
    ending: JoinSet<Ended>,
    /// Where pods that end tell how far they are.
    leaving: Vec<Client>,
    service: Service,
    spec: PodSpec,
    complaints: Complaints,
    started: usize,
    /// What new pods run, if it is not the gateway as it was built.
    build: Option<PathBuf>,
    cluster: Cluster,
}

impl Deployment {
    /// Starts so many pods and waits until the Service knows them. It hears of changes with this lag.
    pub async fn start(world: World, config: Value, replicas: usize, spec: PodSpec, lag: Duration) -> Self {
        let cluster = Cluster::start(world, ClusterOptions::new(config).gateways(0)).await;
        let mut deployment = Self {
            pods: Vec::new(),
            ending: JoinSet::new(),
            leaving: Vec::new(),
            service: Service::start(lag).await,
            spec,
            complaints: Complaints::default(),
            started: 0,
            build: None,
            cluster,
        };
        deployment.scale(replicas).await;
        deployment
    }

    /// Everything but the gateways, and what judges them.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A client of the Service that keeps its connections.
    pub fn client(&self) -> Client {
        self.service.client()
    }

    /// A client of the Service that makes a connection for every request.
    pub fn forgetful_client(&self) -> Client {
        self.service.forgetful_client()
    }

    /// How many pods there are that are not ending.
    pub fn replicas(&self) -> usize {
        self.pods.len()
    }

    /// What each of them says of itself: the sum of a metric.
    pub async fn metric(&self, name: &str) -> Vec<f64> {
        let mut figures = Vec::new();
        for pod in &self.pods {
            figures.push(metric(&pod.ops, name).await.expect("a pod that is ready tells its metrics"));
        }
        figures
    }

    /// The sum of a metric over the pods that are ending and still there.
    pub async fn metric_of_leaving(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for ops in &self.leaving {
            sum += metric(ops, name).await.unwrap_or_default();
        }
        sum
    }

    /// Waits until every pod that is to end says that it is draining, or has ended.
    pub async fn until_told_to_end(&self) {
        for ops in &self.leaving {
            eventually("a pod that ends is told so", SOON, || async {
                match ops.get("/health/ready").await {
                    Ok(answer) => (answer.status == 503).then_some(()),
                    Err(error) => error.is_connect().then_some(()),
                }
            })
            .await;
        }
    }

    /// As a `ReplicaSet` does it: new pods at once, or the youngest deleted at once, whatever a disruption budget says.
    /// Waits until new ones are ready and the Service knows them.
    pub async fn scale(&mut self, replicas: usize) {
        let before = self.pods.len();
        while self.pods.len() > replicas {
            let youngest = self.pods.len() - 1;
            self.delete(youngest);
        }
        while self.pods.len() < replicas {
            self.create();
        }
        for pod in self.pods.iter_mut().skip(before) {
            pod.until_ready().await;
        }
        if replicas > before {
            self.until_known().await;
        }
    }

    /// From now on, new pods run another build: the same program, which says that it was made of another commit.
    ///
    /// # Panics
    /// If the gateway does not know of what commit it was made.
    pub fn upgrade(&mut self, folder: &Path) {
        const OURS: &str = match option_env!("KEYFLEET_REVISION") {
            Some(revision) => revision,
            None => "",
        };
        let mut program = fs::read(binary("gateway")).expect("the gateway's binary");
        let next = next_revision(OURS);
        let places: Vec<_> = memchr::memmem::find_iter(&program, OURS).collect();
        assert!(
            !OURS.is_empty() && !places.is_empty(),
            "KEYFLEET_REVISION is not in the binary: build with cargo"
        );
        for at in places {
            program[at..at + OURS.len()].copy_from_slice(next.as_bytes());
        }
        let path = folder.join("gateway");
        fs::write(&path, program).expect("the next build");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it may be run");
        self.build = Some(path);
    }

    /// The commits that the pods say they were made of.
    pub async fn revisions(&self) -> Vec<String> {
        let mut revisions = Vec::new();
        for pod in &self.pods {
            let told = pod.ops.get("/metrics").await.expect("a pod that is ready tells its metrics").text;
            let (_, rest) = told.split_once("revision=\"").expect("its revision");
            revisions.push(rest.split('"').next().unwrap_or_default().to_owned());
        }
        revisions
    }

    /// Replaces every pod: a new one first, and when that is ready an old one goes (`maxSurge: 1, maxUnavailable: 0`).
    /// Does not wait for those that go, as the real thing does not.
    pub async fn roll(&mut self) {
        for _ in 0..self.pods.len() {
            self.create();
            self.youngest_ready().await;
            self.delete(0);
        }
    }

    /// `kubectl drain` of a node that has the oldest of these pods: each is evicted, and its replacement started
    /// elsewhere meanwhile. The disruption budget allows one pod less, so that the next eviction waits for that.
    pub async fn drain_node(&mut self, pods: usize) {
        for _ in 0..pods {
            self.delete(0);
            self.create();
            self.youngest_ready().await;
        }
    }

    /// The youngest pod ends without a word, and is not replaced.
    pub fn crash(&mut self) {
        self.pods.pop().expect("a pod").crash(&self.service.endpoints);
    }

    /// Waits until every pod that was to end has done so.
    ///
    /// # Panics
    /// If one had to be killed, ended with an error, or failed a probe.
    pub async fn settle(&mut self) {
        while let Some(ended) = self.ending.join_next().await {
            let Ended { number, in_time, log } = ended.expect("a pod's end");
            assert!(in_time, "pod {number} did not end well within its grace period\n{log}");
        }
        self.leaving.clear();
        let complaints = self.complaints.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(complaints.is_empty(), "{complaints:?}");
    }

    fn create(&mut self) {
        let pod = Pod::start(
            &self.cluster,
            self.started,
            self.build.as_deref(),
            &self.spec,
            &self.service.endpoints,
            &self.complaints,
        );
        self.pods.push(pod);
        self.started += 1;
    }

    fn delete(&mut self, at: usize) {
        let pod = self.pods.remove(at);
        self.leaving.push(pod.ops.clone());
        self.ending.spawn(pod.end(self.spec.clone(), self.service.endpoints.clone()));
    }

    async fn youngest_ready(&mut self) {
        self.pods.last_mut().expect("a pod").until_ready().await;
    }

    /// A pod that has just gone may still be known.
    async fn until_known(&self) {
        let wanted = self.pods.len();
        eventually("the service knows every pod", SOON, || async {
            (self.service.endpoints.count() >= wanted).then_some(())
        })
        .await;
    }
}

/// As long as the one before it.
fn next_revision(of: &str) -> String {
    of.chars().rev().collect()
}

async fn metric(ops: &Client, name: &str) -> Option<f64> {
    Figures::parse(&ops.get("/metrics").await.ok()?.text).sum(name)
}
