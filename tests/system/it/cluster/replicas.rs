//! Gateways are replicas of one another.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Client, Cluster, ClusterOptions, Crowd, Part, eventually, read};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, SOON, assert_kept_to, chat, limited, take_all, used};

/// Ten times what is seen on a busy machine.
const SPREAD_WITHIN: Duration = Duration::from_millis(500);
const CONTENT: &str = "What the file says.";

/// Whether a gateway keeps away from the only project there is.
async fn avoids(client: &Client) -> bool {
    let health = client.get("/health/detailed").await.expect("an answer").json();
    health["keys"][0]["blocks"].as_array().is_some_and(|blocks| !blocks.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn know_at_once_what_one_of_them_was_refused() {
    let cluster = Cluster::start(World::pool(1, 1), ClusterOptions::new(json!({}))).await;
    for gateway in 0..3 {
        assert_eq!(chat(&cluster, gateway).await.status, 200);
    }
    cluster.sim().rules(vec![Rule::family(Family::PerMinute429).times(1).path("/chat/")]);
    let refused = chat(&cluster, 0).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    let began = Instant::now();
    for gateway in [1, 2] {
        let client = cluster.gateway(gateway);
        while !avoids(&client).await {
            assert!(began.elapsed() < SPREAD_WITHIN, "gateway {gateway} has not heard of it");
        }
    }
    eprintln!("the others knew after {:?}", began.elapsed());
    let before = used(&cluster);
    for gateway in 0..3 {
        let answer = chat(&cluster, gateway).await;
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert!(!answer.header("retry-after").is_empty(), "a refusal says when to come back");
    }
    assert_eq!(used(&cluster), before, "somebody asked all the same");
}

async fn send(client: &Client, method: Method, path: &str, body: Option<Value>) -> keyfleet_tests::Answer {
    let request = client.request(method, path).header("x-goog-api-key", "placeholder");
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    read(request).await.expect("an answer")
}

/// Uploads a file in one request; its name.
async fn upload(client: &Client) -> (String, String) {
    let begin = client
        .request(Method::POST, "/upload/v1beta/files")
        .header("x-goog-api-key", "placeholder")
        .header("x-goog-upload-protocol", "resumable")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-length", CONTENT.len())
        .header("x-goog-upload-header-content-type", "text/plain")
        .body(json!({"file": {"display_name": "a file"}}).to_string());
    let begun = read(begin).await.expect("an answer");
    let url = begun.header("x-goog-upload-url");
    let (origin, path) = url.split_at(url.get(8..).and_then(|rest| rest.find('/')).expect("a path") + 8);
    let finish = Client::new(origin.to_owned())
        .request(Method::POST, path)
        .header("x-goog-upload-command", "upload, finalize")
        .header("x-goog-upload-offset", 0)
        .body(CONTENT);
    let file = read(finish).await.expect("an answer").json()["file"].clone();
    let text = |field: &str| file[field].as_str().expect("a text").to_owned();
    (text("name"), text("uri"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn find_each_others_files_at_once_and_after_a_restart() {
    let mut cluster = Cluster::start(World::pool(8, 1), ClusterOptions::new(json!({}))).await;
    for round in 0..12 {
        let (name, uri) = upload(&cluster.gateway(round % 3)).await;
        for other in [(round + 1) % 3, (round + 2) % 3] {
            let client = cluster.gateway(other);
            let got = send(&client, Method::GET, &format!("/v1beta/{name}"), None).await;
            assert_eq!(got.status, 200, "round {round}, gateway {other}: {}", got.text);
            let parts = json!([{"fileData": {"fileUri": uri, "mimeType": "text/plain"}}, {"text": "What?"}]);
            let body = json!({"contents": [{"role": "user", "parts": parts}]});
            let path = format!("/v1beta/models/{MODEL}:generateContent");
            let answer = send(&client, Method::POST, &path, Some(body)).await;
            assert_eq!(answer.status, 200, "round {round}, gateway {other}: {}", answer.text);
        }
    }
    let wrong: Vec<_> = cluster.sim().log().into_iter().filter(|request| request.status >= 400).collect();
    assert!(wrong.is_empty(), "somebody else's project was asked: {wrong:?}");

    // Nobody who was there is there any more.
    let (name, _) = upload(&cluster.gateway(0)).await;
    for part in [0, 1, 2].map(Part::Gateway).into_iter().chain([0, 1].map(Part::Coordinator)) {
        cluster.kill(part);
    }
    for part in [Part::Coordinator(0), Part::Gateway(1)] {
        cluster.restart(part).await;
    }
    let got = send(&cluster.gateway(1), Method::GET, &format!("/v1beta/{name}"), None).await;
    assert_eq!(got.status, 200, "{}", got.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn come_and_go_and_no_request_fails() {
    let options = ClusterOptions::new(limited(600)).gateways(1);
    let mut cluster = Cluster::start(World::pool(3, 1), options).await;
    let crowd = Crowd::start(cluster.front(), 15, Duration::from_millis(500), MODEL, 4);
    let more = async |n: u64| {
        let wanted = crowd.tally().of("200") + n;
        eventually("clients are answered", SOON, || async {
            (crowd.tally().of("200") >= wanted).then_some(())
        })
        .await;
    };
    more(60).await;
    for _ in 1..5 {
        cluster.grow().await;
    }
    more(120).await;
    for _ in 2..5 {
        cluster.shrink().await;
    }
    more(60).await;
    let tally = crowd.stop().await;
    assert_eq!(tally.ends.len(), 1, "every answer is a 200: {tally:?}");
    assert_kept_to(&cluster, 600);
    // Those that went have reported everything first.
    cluster.settled_as_seen().await;
}

/// What is changed in the file holds for leases that gateways ask for and for what they send, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_a_limit_that_is_raised_while_they_run() {
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(limited(10))).await;
    take_all(cluster.front(), Duration::from_secs(3)).await;
    let before = used(&cluster);
    assert!((18..=20).contains(&before), "{before} of 20");
    cluster.reconfigure(|config| config["limits"] = limited(30)["limits"].clone());
    eventually("the new limit is used", SOON, || async {
        for gateway in 0..3 {
            chat(&cluster, gateway).await;
        }
        (used(&cluster) >= 56).then_some(())
    })
    .await;
    take_all(cluster.front(), Duration::from_secs(2)).await;
    assert_kept_to(&cluster, 30);
    cluster.settled_as_seen().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_ready_with_a_whole_snapshot_and_stay_so() {
    let mut cluster = Cluster::start(World::pool(1, 1), ClusterOptions::new(limited(600)).gateways(2)).await;
    cluster.kill(Part::Gateway(0));
    cluster.kill(Part::Redis);
    cluster.revive(Part::Gateway(0));
    // Long enough for a gateway that does not wait to say that it is ready.
    let early = Instant::now();
    while early.elapsed() < Duration::from_secs(3) {
        assert!(!cluster.is_ready(0).await, "ready without having read anything");
        assert!(cluster.is_ready(1).await, "no longer ready because Redis is away");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.restart(Part::Redis).await;
    cluster.until_ready(0).await;

    for gone in [Part::Coordinator(0), Part::Coordinator(1), Part::Nats, Part::Redis] {
        cluster.kill(gone);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            assert!(cluster.is_ready(0).await && cluster.is_ready(1).await, "not ready without {gone:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
