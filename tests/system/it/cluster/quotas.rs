//! A quota is never exceeded.

use std::time::Duration;

use keyfleet_simulator::World;
use keyfleet_tests::chaos::Kind;
use keyfleet_tests::{Chaos, Cluster, ClusterOptions, eventually};

use super::{SOON, assert_kept_to, chat, limited, take_all, used};

const RPM: u64 = 10;
/// Longer than a lot lives: what was handed out before is spent or written off.
const BEYOND_LOTS: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_while_any_part_is_killed() {
    let chaos = Chaos {
        replicas: 3,
        victims: Kind::ALL.to_vec(),
        every: Duration::from_secs(4),
        away: Duration::from_millis(300),
        clients: 30,
        projects: 4,
        ..Chaos::new(Duration::from_secs(75), 3)
    };
    let outcome = chaos.run().await;
    eprintln!("{outcome}");
    assert!(outcome.holds(), "{outcome}");
    // What the first minute allows is four fifths of it.
    assert!(outcome.used() >= 0.9, "the second minute's quota is hardly used:\n{outcome}");
    let unexpected: Vec<_> = outcome
        .tally
        .failures()
        .into_iter()
        .filter(|(end, _)| !["no connection", "no answer", "broken answer"].contains(end))
        .collect();
    assert!(unexpected.is_empty(), "beyond what a killed gateway cuts: {unexpected:?}\n{outcome}");
}

/// Nothing is forgotten, and the living go on at once. A leader that lost everything waits until it cannot matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_when_redis_forgets_everything() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(RPM))).await;
    take_all(cluster.front(), Duration::from_secs(3)).await;
    let before = used(&cluster);
    assert!(before >= RPM, "only {before} were let through");
    cluster.redis().ask(&["FLUSHALL"]).await.expect("Redis forgets");
    eventually("the loss is noticed", SOON, || async {
        cluster.coordinator_logs().contains("no quota of a minute is granted").then_some(())
    })
    .await;
    take_all(cluster.front(), BEYOND_LOTS).await;
    assert!(used(&cluster) <= 2 * RPM, "{} of {}", used(&cluster), 2 * RPM);

    // A kill of the leader in quarantine must not end it.
    let leader = cluster.leader().await;
    cluster.kill(leader);
    cluster.leader().await;
    take_all(cluster.front(), BEYOND_LOTS).await;
    assert!(used(&cluster) <= 2 * RPM, "{} of {}", used(&cluster), 2 * RPM);

    let blind = Duration::from_secs(100);
    let spent = used(&cluster);
    eventually("quota is granted again", blind, || async {
        chat(&cluster, 0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        (used(&cluster) > spent).then_some(())
    })
    .await;
    assert_kept_to(&cluster, RPM);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_granted_at_once_after_a_restart_of_redis_that_kept_its_data() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(60))).await;
    for _ in 0..10 {
        assert_eq!(chat(&cluster, 0).await.status, 200);
    }
    cluster.kill(keyfleet_tests::Part::Redis);
    cluster.restart(keyfleet_tests::Part::Redis).await;
    cluster.leader().await;
    // Far more than was handed out before.
    eventually("new quota is granted", SOON, || async {
        chat(&cluster, 1).await;
        (used(&cluster) >= 60).then_some(())
    })
    .await;
    // The next leader knows, too, that nothing was lost.
    let leader = cluster.leader().await;
    cluster.kill(leader);
    cluster.leader().await;
    eventually("the next leader grants quota", SOON, || async {
        chat(&cluster, 2).await;
        (used(&cluster) >= 80).then_some(())
    })
    .await;
    let logs = cluster.coordinator_logs();
    assert!(!logs.contains("no quota of a minute is granted"), "nothing was lost, and yet it is suspected");
    take_all(cluster.front(), Duration::from_secs(3)).await;
    assert_kept_to(&cluster, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_when_a_paused_leader_wakes_after_another_took_over() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(RPM))).await;
    for _ in 0..4 {
        assert_eq!(chat(&cluster, 0).await.status, 200);
    }
    let old = cluster.leader().await;
    let [epoch, ..] = cluster.redis().position().await.expect("a position");
    cluster.pause(old);
    eventually("another leads", SOON, || async {
        let [now, ..] = cluster.redis().position().await.ok()?;
        (now > epoch).then_some(())
    })
    .await;
    take_all(cluster.front(), BEYOND_LOTS).await;
    let [led, rev, commits] = cluster.redis().position().await.expect("a position");
    cluster.resume(old);
    take_all(cluster.front(), Duration::from_secs(3)).await;
    let used = used(&cluster);
    assert!((2 * RPM - 2..=2 * RPM).contains(&used), "{used} of {}", 2 * RPM);
    let now = cluster.redis().position().await.expect("a position");
    assert_eq!(now[0], led, "the one that slept took the lead from the one that worked");
    assert!(now[1] >= rev && now[2] >= commits, "{now:?} after revision {rev} and commit {commits}");
    assert_ne!(cluster.leader().await, old);

    // It stands by: when the other dies, it leads.
    let second = cluster.leader().await;
    cluster.kill(second);
    assert_eq!(cluster.leader().await, old);
    take_all(cluster.front(), Duration::from_secs(2)).await;
    assert_kept_to(&cluster, RPM);
}
