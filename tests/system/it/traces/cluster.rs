//! From a request to the coordinator's decision about its key.

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Cluster, ClusterOptions, Collector, Part, Span};
use serde_json::{Value, json};

use super::{MODEL, SPAN, TRACE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinators_handling_is_linked_to_the_attempt_that_failed() {
    let collector = Collector::start().await;
    let config = json!({"telemetry": {"endpoint": collector.url()}});
    let cluster = Cluster::start(World::pool(4, 1), ClusterOptions::new(config).gateways(1)).await;
    cluster.sim().rules(vec![Rule::family(Family::Leaked).path("chat/completions").times(1)]);
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}]});
    let request = cluster
        .gateway(0)
        .request(reqwest::Method::POST, "/v1/chat/completions")
        .bearer_auth("placeholder")
        .header("traceparent", format!("00-{TRACE}-{SPAN}-01"))
        .header("content-type", "application/json")
        .body(body.to_string());
    let answer = keyfleet_tests::read(request).await.expect("an answer");
    assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (200, "2"), "{}", answer.text);
    collector.saw(1, |span| span.kind == "consumer").await;
    let is_attempt = |span: &Span| span.name.starts_with("chat");
    collector.saw(2, is_attempt).await;
    let spans = collector.saw(1, |span| span.name.starts_with("send")).await;
    let attempt = spans.iter().find(|span| is_attempt(span) && span.failed).expect("the attempt that failed");
    assert_eq!(attempt.get("keyfleet.cooldown.open_ended"), true, "{attempt:#?}");
    let log = cluster.log(Part::Gateway(0));
    let line = log.lines().find(|line| line.contains("out of rotation")).expect("a line about the key");
    let line: Value = serde_json::from_str(line).expect("a line of JSON");
    assert_eq!((&line["trace_id"], &line["span_id"]), (&json!(TRACE), &json!(attempt.id)), "{line}");
    let sending: Vec<_> = spans.iter().filter(|span| span.name == "send rl.v1.ev").collect();
    assert_eq!(sending.len(), 1, "{spans:#?}");
    assert_eq!((sending[0].kind, sending[0].service.as_str()), ("client", "keyfleet-gateway"));
    assert_eq!(sending[0].links, [(TRACE.to_owned(), attempt.id.clone())], "as the handling is");
    assert!(sending[0].parent.is_empty() && sending[0].trace != TRACE && !sending[0].failed, "{sending:#?}");
    let handling: Vec<_> = spans.iter().filter(|span| span.kind == "consumer").collect();
    assert_eq!(handling.len(), 1, "{spans:#?}");
    let handling = handling[0];
    assert_eq!(
        (handling.name.as_str(), handling.service.as_str()),
        ("process report", "keyfleet-coordinator")
    );
    assert_eq!(handling.links, [(TRACE.to_owned(), attempt.id.clone())]);
    assert!(
        handling.parent.is_empty() && handling.trace != TRACE,
        "a batch is nobody's child: {handling:#?}"
    );
    assert_eq!(handling.events.len(), 1, "{handling:#?}");
    let (name, _, decided) = &handling.events[0];
    assert_eq!(
        (name.as_str(), &decided["keyfleet.key.id"]),
        ("keyfleet.blocked", &attempt.get("keyfleet.key.id"))
    );
    assert_eq!(decided["keyfleet.outcome.cause"], "leaked");
}
