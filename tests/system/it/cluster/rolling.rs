//! Everything is replaced, one part after the other, under load: no client notices.

use std::time::Duration;

use keyfleet_simulator::{Action, Rule, World};
use keyfleet_tests::{Balancer, Cluster, ClusterOptions, Crowd, Front, Part, Wish, eventually};
use serde_json::json;

use super::{SOON, assert_kept_to};

/// Four fifths of it are more than is asked; the rest is kept for times without a coordinator.
const RPM: u64 = 600;
const GATEWAYS: usize = 3;
const LONG: &str = "gemini-2.5-pro";
/// Answers, short streams, and some streams that outlast what is done to the cluster.
const WISHES: &[Wish] = &[
    Wish { model: "gemini-2.5-flash", stream: false },
    Wish { model: "gemini-2.5-flash", stream: false },
    Wish { model: "gemini-2.5-flash", stream: true },
    Wish { model: "gemini-2.5-flash", stream: true },
    Wish { model: LONG, stream: true },
];
const STREAM_MS: u64 = 6_000;
const CLIENTS: u64 = 30;
const PAUSE: Duration = Duration::from_millis(500);
/// How long a server that is replaced is away.
const AWAY: Duration = Duration::from_secs(5);

struct Scene {
    cluster: Cluster,
    /// Each has connections of its own.
    clients: Vec<Crowd>,
    _balancer: Balancer,
}

impl Scene {
    async fn start() -> Self {
        let config = json!({
            "limits": [{"models": "*", "rpm": RPM}],
            "quota": {"when_unleased": "reserve(0.2)", "max_replicas": GATEWAYS},
        });
        let options = ClusterOptions::new(config).gateways(GATEWAYS);
        let cluster = Cluster::start(World::pool(4, 1), options).await;
        let pause = Action::StallMidStream { after_chunks: 2, ms: Some(STREAM_MS) };
        cluster.sim().rules(vec![Rule::new(pause).model(LONG)]);
        let balancer = cluster.balancer().await;
        let client = |seed| Crowd::wishing(&Front::to(balancer.client()), 1, PAUSE, WISHES, seed);
        let scene = Self { cluster, clients: (0..CLIENTS).map(client).collect(), _balancer: balancer };
        // Gateways keep in hand what the last seconds asked for.
        scene.answered(150).await;
        scene
    }

    fn so_far(&self) -> u64 {
        self.clients.iter().map(|client| client.tally().of("200")).sum()
    }

    /// Waits until so many more are answered.
    async fn answered(&self, more: u64) {
        let wanted = self.so_far() + more;
        eventually("clients are answered", SOON, || async { (self.so_far() >= wanted).then_some(()) }).await;
    }

    /// A clean end, and a start that finds what was there.
    async fn replace(&mut self, part: Part, away: Duration) {
        let status = self.cluster.terminate(part).await;
        assert!(part == Part::Nats || status.success(), "{part:?}: {status}");
        tokio::time::sleep(away).await;
        self.cluster.restart(part).await;
        self.answered(60).await;
    }

    async fn end(self) {
        for client in self.clients {
            let tally = client.stop().await;
            assert_eq!(tally.ends.len(), 1, "every answer is a 200, whole: {tally:?}");
        }
        assert_kept_to(&self.cluster, RPM);
        self.cluster.settled_as_seen().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_gateways_and_coordinators_fails_no_request() {
    let mut scene = Scene::start().await;
    for part in (0..GATEWAYS).map(Part::Gateway).chain([0, 1].map(Part::Coordinator)) {
        scene.replace(part, Duration::ZERO).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_nats_fails_no_request() {
    let mut scene = Scene::start().await;
    scene.replace(Part::Nats, AWAY).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_redis_fails_no_request() {
    let mut scene = Scene::start().await;
    scene.replace(Part::Redis, AWAY).await;
    // Beyond the life of what was in hand before.
    for _ in 0..4 {
        scene.answered(60).await;
    }
    scene.end().await;
}
