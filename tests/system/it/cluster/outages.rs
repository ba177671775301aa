//! NATS, Redis or both are away: quota in hand is used, nothing is exceeded, and every count is made up for.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Cluster, ClusterOptions, Crowd, Link, Part, eventually, judge, read};
use reqwest::Method;
use serde_json::json;

use super::{MODEL, SOON, assert_kept_to, chat, limited, take_all, used};

const RPM: u64 = 600;
/// Nobody may be left who can vouch for what Redis kept: then a minute and a lot's life pass first.
const BEYOND_QUARANTINE: Duration = Duration::from_secs(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nats_stop_no_request_on_live_quota_and_lose_no_count() {
    let mut cluster = Cluster::start(World::pool(3, 1), ClusterOptions::new(limited(RPM))).await;
    let crowd = Crowd::start(cluster.front(), 20, Duration::from_millis(500), MODEL, 2);
    eventually("clients are answered", SOON, || async { (crowd.tally().of("200") >= 80).then_some(()) })
        .await;
    let before = crowd.tally();
    cluster.kill(Part::Nats);
    // A lot lives for ten seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let during = crowd.tally();
    cluster.restart(Part::Nats).await;
    assert_eq!(before.ends.len(), 1, "{before:?}");
    assert!(during.of("200") > before.of("200") + 20, "requests do not go on: {before:?}, then {during:?}");
    assert!(during.failures().is_empty(), "{during:?}");

    let restarted = during.of("200");
    eventually("clients are answered again", SOON, || async {
        (crowd.tally().of("200") >= restarted + 200).then_some(())
    })
    .await;
    let tally = crowd.stop().await;
    assert!(tally.failures().is_empty(), "{tally:?}");
    assert_kept_to(&cluster, RPM);
    cluster.settled_as_seen().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nats_and_redis_leave_live_lots_then_refusals_and_then_everything_is_well() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(60))).await;
    // Warms up: demand makes gateways keep quota in hand.
    for at in 0..30 {
        assert_eq!(chat(&cluster, at % 3).await.status, 200);
    }
    cluster.kill(Part::Nats);
    cluster.kill(Part::Redis);
    let warm = used(&cluster);
    let down = Instant::now();
    let mut refused = None;
    while down.elapsed() < Duration::from_secs(14) {
        for gateway in 0..3 {
            let answer = chat(&cluster, gateway).await;
            assert!([200, 429].contains(&answer.status), "{} {}", answer.status, answer.text);
            if answer.status == 429 {
                assert!(!answer.header("retry-after").is_empty(), "a refusal says when to come back");
            }
            refused = Some(answer.status == 429);
            assert!(cluster.is_ready(gateway).await, "a gateway is not ready without NATS and Redis");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(used(&cluster) > warm, "no quota in hand was used");
    assert_eq!(refused, Some(true), "no lot lives so long");

    cluster.restart(Part::Nats).await;
    cluster.restart(Part::Redis).await;
    let dark = used(&cluster);
    eventually("quota is granted again", BEYOND_QUARANTINE, || async {
        chat(&cluster, 0).await;
        (used(&cluster) > dark + 5).then_some(())
    })
    .await;
    take_all(cluster.front(), Duration::from_secs(2)).await;
    assert_kept_to(&cluster, 60);
    cluster.settled_as_seen().await;
}

/// Whatever is in hand serves, even if it is the quota of few projects of many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_coordinators_leave_the_lots_of_few_projects_to_be_found() {
    const PROJECTS: usize = 60;
    /// What the session has in hand is more, and lives longer than they take.
    const REQUESTS: usize = 12;
    let mut config = limited(RPM);
    config["quota"] = json!({"when_unleased": "closed", "lease_wait_ms": 1_000});
    config["server"] = json!({"state_file": "", "session_affinity": "header"});
    let mut cluster = Cluster::start(World::pool(PROJECTS, 1), ClusterOptions::new(config).gateways(1)).await;
    // One session has one project, and what that needs is kept in hand.
    for _ in 0..60 {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}]});
        let request = cluster.gateway(0).request(Method::POST, "/v1/chat/completions");
        let request = request.bearer_auth("placeholder").header("x-keyfleet-session", "one");
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = read(request).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    for at in [0, 1] {
        cluster.kill(Part::Coordinator(at));
    }
    cluster.sim().forget();
    for _ in 0..REQUESTS {
        let answer = chat(&cluster, 0).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let projects: HashSet<_> =
        judge::buckets(&cluster.sim().log()).into_iter().map(|of| of.project).collect();
    assert!(projects.len() <= PROJECTS / 6, "nothing had to be searched for: {projects:?}");
}

/// A gateway that reaches nobody, in three ways; the others do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_gateways_links_concern_that_gateway_alone() {
    let cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(RPM)).linked()).await;
    for at in 0..30 {
        assert_eq!(chat(&cluster, at % 3).await.status, 200);
    }
    let lost = cluster.links(Part::Gateway(0));
    let until_well = || {
        eventually("the gateway gets quota again", SOON, || async {
            (chat(&cluster, 0).await.status == 200).then_some(())
        })
    };
    for break_links in [Link::swallow, Link::cut] {
        for link in lost {
            break_links(link);
        }
        eventually("what it had in hand is used up or lapsed", SOON, || async {
            assert_eq!(chat(&cluster, 1).await.status, 200, "the others do not notice");
            (chat(&cluster, 0).await.status == 429).then_some(())
        })
        .await;
        assert!(cluster.is_ready(0).await);
        for link in lost {
            link.heal();
        }
        until_well().await;
    }
    for link in lost {
        link.slow(Duration::from_millis(40));
    }
    for _ in 0..20 {
        assert_eq!(chat(&cluster, 0).await.status, 200, "slow is not lost");
    }
    for link in lost {
        link.heal();
    }
    assert_kept_to(&cluster, RPM);
    cluster.settled_as_seen().await;
}
