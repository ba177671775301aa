//! Redis is restarted, replaced, or not there yet.

use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Cluster, ClusterOptions, Crowd, Part, Tally, eventually};
use serde_json::json;

use super::{MODEL, SOON, assert_kept_to, chat, limited, take_all, used};

/// What a coordinator says that does not believe what is stored.
const DOUBT: &str = "no quota of a minute is granted";
/// Far more than half a minute.
const LONG: Duration = Duration::from_secs(90);
/// A lot lives for ten seconds.
const BEYOND_LOTS: Duration = Duration::from_secs(12);

/// For five seconds nobody can write anything down. What gateways have in hand lasts longer, and whoever led goes on at
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_is_restarted_with_its_data_costs_no_request() {
    // Twenty clients ask forty times a second, which is three quarters of what may be asked.
    let rpm = 800;
    let mut cluster = Cluster::start(World::pool(4, 1), ClusterOptions::new(limited(rpm))).await;
    let crowd = Crowd::start(cluster.front(), 20, Duration::from_millis(500), MODEL, 3);
    let answered = |more: u64| {
        let before = crowd.tally().of("200");
        eventually("clients are answered", LONG, {
            let crowd = &crowd;
            move || {
                let enough = crowd.tally().of("200") >= before + more;
                async move { enough.then_some(()) }
            }
        })
    };
    // Gateways keep in hand what the last half minute taught them.
    answered(1_200).await;
    let warm = crowd.tally();
    let status = cluster.terminate(Part::Redis).await;
    assert!(status.success(), "{status}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.restart(Part::Redis).await;
    let back = Instant::now();
    cluster.leader().await;
    let led = back.elapsed();
    answered(200).await;
    let tally = crowd.stop().await;
    eprintln!("led {led:?} after Redis was back; {tally:?}");
    assert!(!cluster.coordinator_logs().contains(DOUBT), "nothing was lost, and yet it is suspected");
    assert!(tally.failures().is_empty(), "nothing but refusals: {tally:?}");
    // Two hundred were asked for meanwhile.
    let refused = |tally: &Tally| tally.ends.values().sum::<u64>() - tally.of("200");
    assert_eq!(refused(&tally), refused(&warm), "what was in hand did not last: {tally:?}");
    assert_kept_to(&cluster, rpm);
    cluster.settled_as_seen().await;
}

/// It has not heard of the last lots: whatever was granted in them may be used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_lagging_copy_takes_its_place_is_not_believed() {
    let rpm = 10;
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(rpm)).linked()).await;
    let copy = cluster.copy_redis().await;
    copy.promote().await;
    take_all(cluster.front(), Duration::from_secs(3)).await;
    assert!(used(&cluster) >= rpm, "only {} were let through", used(&cluster));
    cluster.lead_to_copy(&copy);
    cluster.kill(Part::Redis);
    eventually("the loss is noticed", SOON, || async {
        cluster.coordinator_logs().contains(DOUBT).then_some(())
    })
    .await;
    take_all(cluster.front(), BEYOND_LOTS).await;
    assert!(used(&cluster) <= 2 * rpm, "{} of {}", used(&cluster), 2 * rpm);
    assert_kept_to(&cluster, rpm);
}

/// A copy that has everything is as good as the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_copy_has_everything_is_believed() {
    let options = ClusterOptions::new(limited(60)).linked();
    let mut cluster = Cluster::start(World::pool(2, 1), options).await;
    for _ in 0..10 {
        assert_eq!(chat(&cluster, 0).await.status, 200);
    }
    let copy = cluster.copy_redis().await;
    cluster.kill(Part::Redis);
    copy.promote().await;
    cluster.lead_to_copy(&copy);
    eventually("new quota is granted", SOON, || async {
        chat(&cluster, 1).await;
        (used(&cluster) >= 60).then_some(())
    })
    .await;
    assert!(!cluster.coordinator_logs().contains(DOUBT), "nothing was lost, and yet it is suspected");
    take_all(cluster.front(), Duration::from_secs(2)).await;
    assert_kept_to(&cluster, 60);
}

/// A request that names what no gateway has heard of waits for an answer about it; the next ones do not wait as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_is_away_is_not_asked_for_owners_by_every_request() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(json!({})).gateways(1)).await;
    let gateway = cluster.gateway(0);
    let lookups = async || {
        let text = gateway.get("/metrics").await.expect("an answer").text;
        let figure = text.lines().find_map(|line| line.strip_prefix("keyfleet_owner_lookups_total "));
        figure.and_then(|figure| figure.parse::<u64>().ok()).expect("a figure")
    };
    let ask = async |name: String| gateway.get(&format!("/v1beta/files/{name}")).await.expect("an answer");
    ask("known-to-nobody".to_owned()).await;
    assert_eq!(lookups().await, 1);
    cluster.kill(Part::Redis);
    for number in 0..20 {
        ask(format!("known-to-nobody-{number}")).await;
    }
    let asked = lookups().await - 1;
    assert!((1..=5).contains(&asked), "{asked} of 20");
}
