//! Another coordinator takes the lead, and no client notices.

use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Cluster, ClusterOptions, Crowd, Part, eventually};

use super::{MODEL, SOON, assert_kept_to, limited};

const RPM: u64 = 600;
/// Two seconds and 200 ms are promised; a machine that does much else at the time adds to them.
const AFTER_A_KILL: Duration = Duration::from_secs(4);
const AFTER_A_REQUEST: Duration = Duration::from_secs(1);

/// From now until the store has a newer term with a commit in it.
async fn taken_over(cluster: &Cluster, before: [u64; 3]) -> Duration {
    let began = Instant::now();
    eventually("another leads", SOON, || async {
        let now = cluster.redis().position().await.ok()?;
        (now[0] > before[0] && now[2] > before[2]).then_some(())
    })
    .await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fails_no_request_whether_the_leader_is_killed_or_told_to_end() {
    let mut cluster = Cluster::start(World::pool(4, 1), ClusterOptions::new(limited(RPM))).await;
    let crowd = Crowd::start(cluster.front(), 20, Duration::from_millis(500), MODEL, 1);
    let answered = |at_least: u64| {
        eventually("clients are answered", SOON, {
            let crowd = &crowd;
            move || {
                let enough = crowd.tally().of("200") >= at_least;
                async move { enough.then_some(()) }
            }
        })
    };
    // Gateways keep in hand what the last seconds asked for.
    answered(240).await;

    let leader = cluster.leader().await;
    let before = cluster.redis().position().await.expect("a position");
    cluster.kill(leader);
    let after_kill = taken_over(&cluster, before).await;
    cluster.restart(leader).await;
    answered(crowd.tally().of("200") + 40).await;

    let leader = cluster.leader().await;
    let before = cluster.redis().position().await.expect("a position");
    let told = Instant::now();
    let status = cluster.terminate(leader).await;
    taken_over(&cluster, before).await;
    let after_term = told.elapsed();
    assert!(status.success(), "{status}");
    answered(crowd.tally().of("200") + 40).await;

    let tally = crowd.stop().await;
    assert_eq!(tally.ends.len(), 1, "every answer is a 200: {tally:?}");
    assert_kept_to(&cluster, RPM);
    cluster.settled_as_seen().await;
    eprintln!("takeover after a kill {after_kill:?}, after SIGTERM and its end {after_term:?}");
    assert!(after_kill <= AFTER_A_KILL, "{after_kill:?} after a kill");
    assert!(after_term <= AFTER_A_REQUEST, "{after_term:?} after SIGTERM");
}

/// Beginning a term takes several answers of NATS, and longer than a claim to it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn succeeds_over_links_that_are_slow() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(RPM)).linked()).await;
    let both = [0, 1].map(Part::Coordinator);
    for part in both {
        let [nats, _] = cluster.links(part);
        nats.slow(Duration::from_millis(400));
        cluster.kill(part);
    }
    let before = cluster.redis().position().await.expect("a position");
    for part in both {
        cluster.revive(part);
    }
    taken_over(&cluster, before).await;
}
