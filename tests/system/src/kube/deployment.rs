//! A Deployment of gateways behind a Service.

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
        let pod =
            Pod::start(&self.cluster, self.started, &self.spec, &self.service.endpoints, &self.complaints);
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

async fn metric(ops: &Client, name: &str) -> Option<f64> {
    Figures::parse(&ops.get("/metrics").await.ok()?.text).sum(name)
}
