//! A request that finds a live permit asks nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::{Client, Cluster, ClusterOptions, Crowd, Part, eventually};

use super::{MODEL, SOON, assert_kept_to, limited};

/// Twice of what the clients ask.
const RPM: u64 = 1_200;
const GATEWAYS: usize = 3;
const CLIENTS: u64 = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// One in so many requests may have waited for a lease.
const WAITED_OF: f64 = 100.0;

async fn start() -> (Cluster, Crowd) {
    let cluster = Cluster::start(World::pool(4, 1), ClusterOptions::new(limited(RPM))).await;
    let crowd = Crowd::start(cluster.front(), CLIENTS, PAUSE, MODEL, 5);
    // Gateways keep in hand what the last five seconds asked for.
    answered(&crowd, 250).await;
    (cluster, crowd)
}

/// Waits until so many more are answered.
async fn answered(crowd: &Crowd, more: u64) {
    let wanted = crowd.tally().of("200") + more;
    eventually("clients are answered", SOON, || async { (crowd.tally().of("200") >= wanted).then_some(()) })
        .await;
}

/// What all gateways count under this name.
async fn sum(cluster: &Cluster, name: &str) -> f64 {
    let mut sum = 0.0;
    for at in 0..GATEWAYS {
        sum += figure(&cluster.gateway(at), name).await;
    }
    sum
}

/// The sum over all labels.
async fn figure(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").await.expect("an answer").text;
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    let values: Vec<f64> = lines.filter_map(|(_, value)| value.parse().ok()).collect();
    assert!(!values.is_empty(), "no {name} in\n{text}");
    values.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_redis_nothing_and_hardly_ever_waits() {
    let (cluster, crowd) = start().await;
    let ports =
        |parts: &[Part]| -> BTreeSet<u16> { parts.iter().flat_map(|part| cluster.ports(*part)).collect() };
    let gateways = ports(&[0, 1, 2].map(Part::Gateway));
    let coordinators = ports(&[0, 1].map(Part::Coordinator));
    let monitor = cluster.redis().monitor().await.expect("Redis lets us listen");
    let (waits, requests) =
        (sum(&cluster, "keyfleet_lease_waits_total").await, sum(&cluster, "keyfleet_requests_total").await);
    answered(&crowd, 400).await;
    let told = monitor.told();
    drop(monitor);
    let waited = sum(&cluster, "keyfleet_lease_waits_total").await - waits;
    let requests = sum(&cluster, "keyfleet_requests_total").await - requests;
    let tally = crowd.stop().await;
    let from = |ports: &BTreeSet<u16>| told.iter().filter(|(port, _)| ports.contains(port)).count();
    assert!(from(&coordinators) > 0, "nobody was heard at all");
    assert_eq!(from(&gateways), 0, "of {} commands", told.len());
    assert!(requests >= 400.0 && waited * WAITED_OF <= requests, "{waited} of {requests} waited for a lease");
    assert_eq!(tally.ends.len(), 1, "every answer is a 200: {tally:?}");
    assert_kept_to(&cluster, RPM);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awaits_nothing_of_a_nats_that_stands_still() {
    let (cluster, crowd) = start().await;
    let waits = sum(&cluster, "keyfleet_lease_waits_total").await;
    cluster.pause(Part::Nats);
    let paused = std::time::Instant::now();
    // Shorter than a lease lives, and as much as is kept in hand.
    answered(&crowd, 100).await;
    let waited = sum(&cluster, "keyfleet_lease_waits_total").await - waits;
    cluster.resume(Part::Nats);
    let during = crowd.samples().into_iter().filter(|sample| sample.began >= paused);
    let slowest = during.map(|sample| sample.ended - sample.began).max();
    eprintln!("without NATS: {waited} requests waited, the slowest took {slowest:?}");
    answered(&crowd, 100).await;
    let tally = crowd.stop().await;
    assert_eq!(tally.ends.len(), 1, "every answer is a 200: {tally:?}");
    assert!(waited <= 0.0, "{waited} requests waited for a lease that could not come");
    assert_kept_to(&cluster, RPM);
    cluster.settled_as_seen().await;
}
