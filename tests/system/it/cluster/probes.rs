//! What is blocked is tried by one request of the whole fleet, and nobody waits for it.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Cluster, ClusterOptions, eventually};
use serde_json::json;

use super::{MODEL, SOON};

const STORMY: &str = "gemini-2.5-pro";
/// Of the breaker, before the first trial request.
const RECOVERY: Duration = Duration::from_secs(3);
/// Long enough for three trial requests.
const STORM: Duration = Duration::from_secs(16);

/// Asks every gateway for a model, again and again, while `goes_on`; all statuses.
async fn ask_all(cluster: &Cluster, model: &str, goes_on: impl Fn() -> bool) -> Vec<u16> {
    let ask = async |gateway: usize| {
        let mut statuses = Vec::new();
        while goes_on() {
            let answer = cluster.gateway(gateway).chat(model, false).await.expect("an answer");
            statuses.push(answer.status);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        statuses
    };
    let (a, b, c) = tokio::join!(ask(0), ask(1), ask(2));
    [a, b, c].concat()
}

/// When each attempt for a model arrived upstream, in order.
fn arrivals(cluster: &Cluster, model: &str) -> Vec<Duration> {
    let log = cluster.sim().log().into_iter().filter(|request| request.model.as_deref() == Some(model));
    let mut arrivals: Vec<_> = log.map(|request| Duration::from_micros(request.mono_us)).collect();
    arrivals.sort();
    arrivals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_one_at_a_time() {
    let recovery = RECOVERY.as_secs();
    let config = json!({
        "temporary_block_minutes": 1,
        "circuit_breaker": {"failure_threshold": 3, "recovery_timeout_secs": recovery},
    });
    let cluster = Cluster::start(World::pool(3, 1), ClusterOptions::new(config)).await;
    let bad = cluster.sim().config()["groups"][0]["api_keys"][0]["id"].as_str().expect("an id").to_owned();
    let of_bad = |cluster: &Cluster| {
        let log = cluster.sim().log();
        log.iter().filter(|request| request.key_id.as_deref() == Some(&bad)).count()
    };
    let refused = Rule::family(Family::MultipleCredentials).key(&bad);
    cluster.sim().rules(vec![refused.clone(), Rule::family(Family::Overloaded).model(STORMY)]);

    // A key rests for a minute because it failed by its own fault.
    eventually("every gateway leaves the key alone", SOON, || async {
        for gateway in 0..3 {
            assert_eq!(cluster.gateway(gateway).chat(MODEL, false).await.expect("an answer").status, 200);
        }
        let mut known = 0;
        for gateway in 0..3 {
            let health = cluster.gateway(gateway).get("/health/detailed").await.expect("an answer").json();
            let keys = health["keys"].as_array().expect("keys");
            let bad = keys.iter().find(|key| key["id"] == bad.as_str()).expect("the key");
            known += usize::from(!bad["blocks"].as_array().expect("blocks").is_empty());
        }
        (known == 3).then_some(())
    })
    .await;
    cluster.sim().forget();

    // Meanwhile a model is overloaded: its breaker opens, and is tried after 3, 6 and more seconds.
    let began = Instant::now();
    let statuses = ask_all(&cluster, STORMY, || began.elapsed() < STORM).await;
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    let arrivals = arrivals(&cluster, STORMY);
    let calm = arrivals
        .windows(2)
        .position(|pair| pair[1] > pair[0] + RECOVERY / 2)
        .expect("a calm after the storm");
    let probes = &arrivals[calm + 1..];
    eprintln!("{} attempts in the storm, then {:?}", calm + 1, probes);
    assert!((2..=3).contains(&probes.len()), "{probes:?}");
    let apart = probes.windows(2).all(|pair| pair[1] > pair[0] + RECOVERY);
    assert!(apart, "several replicas tried: {probes:?}");
    cluster.sim().rules(vec![refused]);
    for gateway in 0..3 {
        eventually("the model is used again", SOON, || async {
            (cluster.gateway(gateway).chat(STORMY, false).await.expect("an answer").status == 200)
                .then_some(())
        })
        .await;
    }

    // The key is tried by one of the three, and then not for two minutes.
    assert_eq!(of_bad(&cluster), 0);
    let limit = Instant::now() + Duration::from_secs(90);
    let statuses = ask_all(&cluster, MODEL, || of_bad(&cluster) == 0 && Instant::now() < limit).await;
    assert!(statuses.iter().all(|status| *status == 200), "somebody waited for a probe");
    let began = Instant::now();
    let statuses = ask_all(&cluster, MODEL, || began.elapsed() < Duration::from_secs(5)).await;
    assert!(statuses.iter().all(|status| *status == 200), "somebody waited for a probe");
    assert_eq!(of_bad(&cluster), 1, "one probe, and no more");
}
