//! What a client may ask for is one limit, however many gateways it asks.

use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Answer, Client, Cluster, ClusterOptions, Part, eventually, read};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{MODEL, SOON, assert_kept_to, used};

const TOKEN: &str = "client-token-of-alpha";
const OTHER: &str = "client-token-of-beta";
const OTHER_MODEL: &str = "gemini-2.5-pro";
const LIMIT: u64 = 40;
/// Longer than a lot lives.
const BEYOND_LOTS: Duration = Duration::from_secs(13);

fn limited(requests: u64, more: &Value) -> ClusterOptions {
    let clients = json!([{"name": "alpha", "token": TOKEN}, {"name": "beta", "token": OTHER}]);
    let mut config = json!({
        "server": {"state_file": "", "clients": clients},
        "rate_limit": {"requests_per_minute": requests},
        // A busy machine is no refusal.
        "quota": {"lease_wait_ms": 1_000},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    ClusterOptions::new(config)
}

async fn ask(gateway: &Client, token: &str, model: &str) -> Answer {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Say something."}]});
    let request = gateway.request(Method::POST, "/v1/chat/completions").bearer_auth(token);
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer = read(request).await.expect("an answer");
    assert!([200, 429].contains(&answer.status), "{} {}", answer.status, answer.text);
    if answer.status == 429 {
        assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
        let seconds: u64 = answer.header("retry-after").parse().expect("when to come back");
        assert!((1..=62).contains(&seconds), "{seconds}");
    }
    answer
}

/// Asks these gateways without a pause between answers, four at a time each, for so long.
async fn hammer(cluster: &Cluster, gateways: &[usize], length: Duration) {
    let mut callers = JoinSet::new();
    let end = Instant::now() + length;
    for gateway in gateways.iter().flat_map(|gateway| [*gateway; 4]) {
        let gateway = cluster.gateway(gateway);
        callers.spawn(async move {
            while Instant::now() < end {
                ask(&gateway, TOKEN, MODEL).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    callers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn have_one_limit_whatever_the_number_of_gateways() {
    let cluster = Cluster::start(World::pool(1, 1), limited(LIMIT, &json!({}))).await;
    hammer(&cluster, &[0, 1, 2], Duration::from_secs(10)).await;
    let first = used(&cluster);
    assert!((LIMIT * 9 / 10..=LIMIT).contains(&first), "{first} of {LIMIT} within seconds");
    let other = ask(&cluster.gateway(0), OTHER, OTHER_MODEL).await;
    assert_eq!(other.status, 200, "another client suffers: {}", other.text);
    hammer(&cluster, &[0, 1, 2], Duration::from_secs(62)).await;
    assert_kept_to(&cluster, LIMIT);
    let both = used(&cluster) - 1;
    assert!((LIMIT * 18 / 10..=LIMIT * 2).contains(&both), "{both} of {} in two minutes", LIMIT * 2);
    let metrics = cluster.gateway(0).get("/metrics").await.expect("an answer").text;
    for result in ["admitted", "refused"] {
        let line = format!("keyfleet_rate_limited_requests_total{{by=\"client\",result=\"{result}\"}}");
        let counted = metrics.lines().find_map(|shown| shown.strip_prefix(&line)?.trim().parse::<u64>().ok());
        assert!(counted.is_some_and(|count| count > 0), "{line} in {metrics}");
    }
}

/// What a gateway kept in hand goes to where the client is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn find_their_whole_limit_where_they_ask() {
    let cluster = Cluster::start(World::pool(1, 1), limited(LIMIT, &json!({}))).await;
    let deserted = cluster.gateway(0);
    for _ in 0..12 {
        assert_eq!(ask(&deserted, TOKEN, MODEL).await.status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What the first one has in hand lapses after ten seconds, and the other asks again every five.
    eventually("the other gets what is left", SOON, || async {
        hammer(&cluster, &[1], Duration::from_millis(500)).await;
        (used(&cluster) >= LIMIT * 9 / 10).then_some(())
    })
    .await;
    assert_kept_to(&cluster, LIMIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn have_another_limit_at_once_when_the_operator_says_so() {
    let mut cluster = Cluster::start(World::pool(1, 1), limited(3, &json!({}))).await;
    hammer(&cluster, &[0, 1, 2], Duration::from_secs(3)).await;
    assert_eq!(used(&cluster), 3);
    cluster.reconfigure(|config| config["rate_limit"]["requests_per_minute"] = json!(8));
    eventually("more comes in", SOON, || async {
        hammer(&cluster, &[0, 1, 2], Duration::from_millis(500)).await;
        (used(&cluster) >= 8).then_some(())
    })
    .await;
    assert_kept_to(&cluster, 8);
}

/// The limit is the operator's: without anybody to lease it, it is kept, unless it is said to give way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_refused_or_let_in_without_a_coordinator_as_the_operator_chose() {
    for (chosen, status) in [("closed", 429), ("open", 200)] {
        let more = json!({"quota": {"lease_wait_ms": 1_000, "when_unleased": chosen}});
        let mut cluster = Cluster::start(World::pool(1, 1), limited(600, &more).gateways(1)).await;
        let gateway = cluster.gateway(0);
        assert_eq!(ask(&gateway, TOKEN, MODEL).await.status, 200);
        for coordinator in 0..2 {
            cluster.kill(Part::Coordinator(coordinator));
        }
        let alone = Instant::now();
        eventually("what was in hand is spent or over", SOON, || async {
            let answer = ask(&gateway, TOKEN, MODEL).await;
            assert!(chosen == "closed" || answer.status == 200, "{}", answer.text);
            (alone.elapsed() > BEYOND_LOTS && answer.status == status).then_some(())
        })
        .await;
        cluster.restart(Part::Coordinator(0)).await;
        eventually("it is leased again", SOON, || async {
            (ask(&gateway, TOKEN, MODEL).await.status == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_name_are_counted_by_each_gateway_for_itself() {
    let config = json!({"rate_limit": {"requests_per_minute": 1, "burst_size": 3}});
    let cluster = Cluster::start(World::pool(1, 1), ClusterOptions::new(config)).await;
    for gateway in 0..3 {
        let gateway = cluster.gateway(gateway);
        for _ in 0..3 {
            assert_eq!(ask(&gateway, TOKEN, MODEL).await.status, 200);
        }
        assert_eq!(ask(&gateway, TOKEN, MODEL).await.status, 429);
    }
    assert_eq!(used(&cluster), 9);
}
