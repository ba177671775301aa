//! An upstream as the real one is reached: HTTPS, and HTTP/2 by ALPN.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use keyfleet_simulator::{Action, Latency, Nth, Rule, World};
use keyfleet_tests::{Gateway, GatewayOptions, Link, Sim, eventually, read};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{MODEL, SOON, calls};

/// A gateway that trusts the certificate of this upstream and no other, which lies in the folder.
async fn trusting(sim: &Sim) -> (Gateway, TempDir) {
    trusting_with(sim, sim.config()).await
}

pub(super) async fn trusting_with(sim: &Sim, config: Value) -> (Gateway, TempDir) {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("trusted.pem");
    std::fs::write(&file, sim.certificate()).expect("the certificate is written");
    let mut options = GatewayOptions::new(config);
    options.env.push(("SSL_CERT_FILE".into(), file.display().to_string()));
    (Gateway::start_with(options).await, folder)
}

fn https(projects: usize) -> World {
    World { tls: true, ..World::pool(projects, 1) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_few_http2_connections() {
    let sim = Sim::start(https(4)).await;
    let (gateway, _folder) = trusting(&sim).await;
    let client = gateway.client();
    for answer in join_all((0..40).map(|at| client.chat(MODEL, at % 2 == 0))).await {
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text);
    }
    let log = sim.log();
    assert!(log.iter().all(|request| request.http2), "HTTP/1.1 was used");
    let connections: HashSet<_> = log.iter().map(|request| request.conn).collect();
    assert!(connections.len() <= 8, "{} connections", connections.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_begun_with_https_goes_on_with_us() {
    let sim = Sim::start(https(3)).await;
    let (gateway, _folder) = trusting(&sim).await;
    let start = gateway.client().request(Method::POST, "/upload/v1beta/files");
    let start = start.header("x-goog-api-key", "any").header("x-goog-upload-command", "start");
    let begun = read(start.body("{}")).await.expect("an answer");
    let url = begun.header("x-goog-upload-url");
    let path = url.strip_prefix(&gateway.url()).unwrap_or_else(|| panic!("{url}"));
    let rest = gateway.client().request(Method::POST, path).header("x-goog-upload-offset", 0);
    let rest = rest.header("x-goog-upload-command", "upload, finalize").body("x".repeat(3_000_000));
    let done = read(rest).await.expect("an answer");
    assert_eq!(done.json()["file"]["sizeBytes"], "3000000", "{}", done.text);
}

/// Google closes connections all the time, and says so before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_goodbye_costs_nobody_an_answer() {
    let sim = Sim::start(World { latency: Latency::Fixed { ttft_ms: 5, gap_ms: 2 }, ..https(4) }).await;
    let (gateway, _folder) = trusting(&sim).await;
    sim.rules(vec![Rule::new(Action::GoAway).nth(Nth::Every(7))]);
    let client = gateway.client();
    for _ in 0..8 {
        for answer in join_all((0..20).map(|at| client.chat(MODEL, at % 2 == 0))).await {
            let answer = answer.expect("an answer");
            assert_eq!((answer.status, answer.whole), (200, true), "{}", answer.text);
        }
    }
    let connections: HashSet<_> = sim.log().iter().map(|request| request.conn).collect();
    assert!(connections.len() > 8, "{} connections", connections.len());
}

/// Nobody knows who answers there, so no key is sent, and none is to blame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_vouches_for_is_the_fault_of_the_way_out() {
    let sim = Sim::start(https(6)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let answer = client.chat(MODEL, false).await.expect("an answer");
    assert!([502, 503].contains(&answer.status), "{} {}", answer.status, answer.text);
    assert!(answer.text.contains("cannot be reached"), "{}", answer.text);
    gateway.says("invalid peer certificate").await;
    eventually("nothing is tried any more", SOON, || async {
        let answer = client.chat(MODEL, false).await.expect("an answer");
        (answer.status == 503 && answer.header("x-keyfleet-attempts") == "0").then_some(())
    })
    .await;
    assert!(calls(&sim).is_empty(), "something was sent");
    let health = client.get("/health/detailed").await.expect("an answer").json();
    assert_eq!(health["keys_by_state"], json!({"perfect": 6}), "{health}");
}

/// What was drawn for a request counts as used when there is at last a connection for it, and no more can be had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_quota_lapses_while_it_connects_is_told_when_to_come_back() {
    /// Longer than a permit may wait to be used.
    const LATE: Duration = Duration::from_secs(1);
    let sim = Sim::start(https(1)).await;
    let port = sim.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let link = Link::to(port).await;
    link.swallow();
    let mut config = sim.config();
    config["groups"][0]["target_url"] = json!(format!("https://127.0.0.1:{}/v1beta/openai/", link.port()));
    config["limits"] = json!([{"rpm": 1}]);
    config["quota"]["lease_wait_ms"] = json!(2_000);
    let (gateway, _folder) = trusting_with(&sim, config).await;
    let mut requests = JoinSet::new();
    requests.spawn(gateway.client().chat(MODEL, false));
    requests.spawn(gateway.client().chat(MODEL, false));
    // This one had no quota; the other one waits for its connection.
    let first = requests.join_next().await;
    tokio::time::sleep(LATE).await;
    link.heal();
    // What the other one holds may come back at half of its life, until it is told to be spent.
    for (ended, soonest) in [(first, 4), (requests.join_next().await, 30)] {
        let answer = ended.expect("a request").expect("it ends").expect("an answer");
        assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (429, "0"), "{}", answer.text);
        let seconds: u64 = answer.header("retry-after").parse().expect("when to come back");
        assert!((soonest..=62).contains(&seconds), "{seconds}");
    }
    assert!(calls(&sim).iter().all(|call| call.status != 200), "it was sent without quota");
}
