//! Which request took a key out: its client's trace is known to the coordinator, and nothing else of what it said.

use async_nats::HeaderValue;
use futures_util::StreamExt as _;
use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Answer, Cluster, ClusterOptions, Part, eventually, read};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{MODEL, SOON};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The next chat meets a key that was found in public; the one after it does not.
async fn meet_a_dead_key(cluster: &Cluster, traceparent: &str) -> Answer {
    cluster.sim().rules(vec![Rule::family(Family::Leaked).path("chat/completions").times(1)]);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "client text"}]});
    let request = cluster
        .gateway(0)
        .request(reqwest::Method::POST, "/v1/chat/completions")
        .bearer_auth("placeholder")
        .header("traceparent", traceparent)
        .header("tracestate", "client=text")
        .header("baggage", "client=text")
        .header("x-request-id", "client-text")
        .header("content-type", "application/json")
        .body(body.to_string());
    read(request).await.expect("an answer")
}

/// The lines of a log that say this.
fn lines(log: &str, what: &str) -> Vec<Value> {
    log.lines()
        .filter(|line| line.contains(what))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_request_that_meets_a_dead_key_are_in_the_coordinators_log() {
    let cluster = Cluster::start(World::pool(4, 1), ClusterOptions::new(json!({}))).await;
    let mut hints = cluster.overhear("rl.v1.hint.0").await.expect("a subscription");
    // One that is none, and must leave no trace; what it decides is said before the other's is.
    let stranger = format!("00-{TRACE}-{SPAN}-01-client-text");
    let traced = format!("00-{TRACE}-{SPAN}-01");
    for (traceparent, said) in [(stranger.as_str(), 0), (traced.as_str(), 1)] {
        let answer = meet_a_dead_key(&cluster, traceparent).await;
        assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (200, "2"), "{}", answer.text);
        let hint = timeout(SOON, hints.next()).await.ok().flatten().expect("the other gateways hear of it");
        let headers = hint.headers.unwrap_or_default();
        let carried: Vec<_> = headers.get_all("traceparent").map(HeaderValue::as_str).collect();
        assert_eq!(carried, vec![traced.as_str(); said], "{headers:?}");
        cluster.settled_as_seen().await;
        let log = || async {
            let log = cluster.coordinator_logs();
            (lines(&log, TRACE).len() == said).then_some(log)
        };
        let log = eventually("the coordinator says why", SOON, log).await;
        for line in lines(&log, TRACE) {
            let told = ["scope", "cause", "trace_ids"].map(|name| line[name].as_str().unwrap_or_default());
            assert_eq!(told, ["key", "leaked", TRACE], "{line}");
        }
        assert!(!log.contains("client") && !log.contains(SPAN) && !log.contains(MODEL), "{log}");
    }
    let of_gateway = || async {
        let requests = lines(&cluster.log(Part::Gateway(0)), "\"message\":\"request\"");
        (requests.len() == 2).then_some(requests)
    };
    let requests = eventually("both requests are logged", SOON, of_gateway).await;
    let shown: Vec<_> = requests.iter().map(|line| line["trace_id"].clone()).collect();
    assert_eq!(shown, [Value::Null, json!(TRACE)]);
    assert!(!cluster.log(Part::Gateway(0)).contains(SPAN));
}
