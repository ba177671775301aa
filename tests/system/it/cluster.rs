//! Many processes, one decision: what holds while any of them is killed, paused or cut off.
//!
//! The upstream has no limits of its own here: it counts, and a scenario says what it may have counted.

mod alerts;
mod alone;
mod clients;
mod hot_path;
mod operators;
mod outages;
mod probes;
mod quotas;
mod redis;
mod replicas;
mod reports;
mod rolling;
mod starts;
mod strangers;
mod takeover;
mod traces;
mod uploads;

use std::time::{Duration, Instant};

use keyfleet_tests::{Answer, Cluster, Front, judge};
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const SOON: Duration = Duration::from_secs(20);

/// The same limit for every model of every project.
fn limited(rpm: u64) -> Value {
    json!({"limits": [{"models": "*", "rpm": rpm}]})
}

/// All attempts that the upstream has counted.
fn used(cluster: &Cluster) -> u64 {
    judge::buckets(&cluster.sim().log()).iter().map(|bucket| bucket.total).sum()
}

/// No bucket got more in any minute.
fn assert_kept_to(cluster: &Cluster, rpm: u64) {
    for bucket in judge::buckets(&cluster.sim().log()) {
        assert!(bucket.most <= rpm, "{bucket:?} of {rpm}");
    }
}

async fn chat(cluster: &Cluster, gateway: usize) -> Answer {
    cluster.gateway(gateway).chat(MODEL, false).await.expect("an answer")
}

/// Asks again and again through every gateway, for so long: whatever can be had is taken.
async fn take_all(front: &Front, length: Duration) {
    let mut random = fastrand::Rng::with_seed(1);
    let end = Instant::now() + length;
    while Instant::now() < end {
        let answer = front.pick(&mut random).chat(MODEL, false).await.expect("an answer");
        assert!([200, 429].contains(&answer.status), "{} {}", answer.status, answer.text);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
