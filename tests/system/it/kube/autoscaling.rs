//! Pods follow the streams that are open, by the autoscaler's own arithmetic on what pods say of themselves.

use std::time::Duration;

use keyfleet_simulator::{Action, Rule, World};
use keyfleet_tests::{Autoscaler, Crowd, Deployment, Front, Wish, eventually, judge};
use serde_json::json;

use super::{FASTER, LAG, LONG, MODEL, Release};

/// The streams that a pod is to have.
const TARGET: f64 = 10.0;
/// Of one project and the model that has a limit.
const RPM: u64 = 40;
const PROJECTS: usize = 3;
const STREAM_MS: u64 = 1_000;
/// Clients who take whatever quota there is.
const EAGER: u64 = 4;
const IN_FLIGHT: &str = "keyfleet_inflight_requests";
const SOON: Duration = Duration::from_secs(30);

/// Clients with a stream each, as many as there are to be.
struct Demand {
    front: Front,
    clients: Vec<Crowd>,
    leaving: Vec<tokio::task::JoinHandle<keyfleet_tests::Tally>>,
}

impl Demand {
    fn set(&mut self, streams: usize) {
        let wish = Wish { model: LONG, stream: true };
        for seed in self.clients.len()..streams {
            let seed = seed as u64;
            self.clients.push(Crowd::wishing(&self.front, 1, Duration::from_millis(20), &[wish], seed));
        }
        let gone = self.clients.split_off(streams.min(self.clients.len()));
        self.leaving.extend(gone.into_iter().map(|client| tokio::spawn(client.stop())));
    }

    /// All that became of their requests.
    async fn end(mut self) -> Vec<String> {
        self.set(0);
        let mut ends = Vec::new();
        for client in self.leaving {
            ends.extend(client.await.expect("a client ends").ends.into_keys());
        }
        ends.sort();
        ends.dedup();
        ends
    }
}

/// How many streams are wanted, minute by minute: a rise, a dip that is shorter than the window, and an end.
fn wanted(now: Duration) -> usize {
    let minute = usize::try_from(now.as_secs() / 60).unwrap_or_default();
    let wave = [0, 5, 3, 7, 0, 6, 2][minute % 7];
    match minute {
        0 => 29,
        1..5 | 8..10 => 93 + wave,
        5..8 => 40 + wave,
        _ => 8 + wave,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_follow_the_load_without_flapping_and_share_one_quota() {
    let release = Release::install(&["--set", "autoscaling.enabled=true"]).await;
    let object = release.object("horizontalpodautoscalers");
    let [fewest, most] = ["minReplicas", "maxReplicas"].map(|name| object["spec"][name].as_u64());
    assert_eq!((fewest, most), (Some(2), Some(10)), "what this load is made for");
    let pod = release.pod().faster(FASTER);
    let config = json!({"limits": [{"models": MODEL, "rpm": RPM}]});
    let mut deployment = Deployment::start(World::pool(PROJECTS, 1), config, 3, pod, LAG / 10).await;
    let pause = Action::StallMidStream { after_chunks: 2, ms: Some(STREAM_MS) };
    deployment.cluster().sim().rules(vec![Rule::new(pause).model(LONG)]);
    let front = Front::to(deployment.client());
    let mut demand = Demand { front: front.clone(), clients: Vec::new(), leaving: Vec::new() };
    let eager = Front::to(deployment.forgetful_client());
    let eager = Crowd::start(&eager, EAGER, Duration::from_millis(100), MODEL, 7);

    let mut scaler = Autoscaler::of(&object, TARGET);
    let mut history = vec![deployment.replicas()];
    let (mut now, mut before, mut scaled) = (Duration::ZERO, 0, true);
    while now < Duration::from_mins(36) {
        let streams = wanted(now);
        demand.set(streams);
        let replicas = deployment.replicas();
        if streams != before || scaled {
            settled(&deployment, streams).await;
        }
        before = streams;
        let decided = scaler.decide(now, &deployment.metric(IN_FLIGHT).await);
        scaled = decided != replicas;
        if scaled {
            eprintln!("{now:?}: {streams} streams, {replicas} -> {decided} pods");
            deployment.scale(decided).await;
            history.push(decided);
        }
        now += Autoscaler::SYNC;
    }
    deployment.settle().await;
    let tally = eager.stop().await;
    let ends = demand.end().await;
    let buckets = judge::buckets(&deployment.cluster().sim().log());
    let limited: Vec<_> = buckets.iter().filter(|bucket| bucket.model == MODEL).collect();
    eprintln!("{history:?}; {:?}; {limited:?}", tally.ends);

    assert_eq!(ends, ["200"], "every stream is whole");
    assert!(tally.failures().is_empty(), "{tally:?}");
    assert_eq!(limited.len(), PROJECTS);
    assert!(limited.iter().all(|bucket| bucket.most <= RPM), "{limited:?}");
    assert!(tally.of("429") > tally.of("200"), "nobody was short of quota: {tally:?}");
    let rises = history.windows(2).map(|pair| pair[1] > pair[0]);
    let turns = rises.clone().zip(rises.skip(1)).filter(|(one, next)| one != next).count();
    assert_eq!((history.iter().max(), history.last(), turns), (Some(&10), Some(&2), 1), "{history:?}");
}

/// Waits until pods have about these streams: those of pods that end are nobody's to count.
#[expect(clippy::cast_precision_loss, reason = "a few streams")]
async fn settled(deployment: &Deployment, streams: usize) {
    eventually("the streams are open", SOON, || async {
        let open: f64 = deployment.metric(IN_FLIGHT).await.iter().sum();
        ((open - streams as f64).abs() <= EAGER as f64 + streams as f64 * 0.05).then_some(())
    })
    .await;
}
