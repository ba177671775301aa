//! Which traces are kept, and what is told of the others and to others.

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Collector, Sim};
use serde_json::Value;

use super::{MODEL, SPAN, TRACE, chat, chats, gateway, lines};

/// A trace that its client keeps, and one that it does not.
fn parent(sampled: bool) -> String {
    format!("00-{TRACE}-{SPAN}-{:02x}", u8::from(sampled))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_decides_for_its_traces_and_the_sampler_for_ours() {
    let collector = Collector::start().await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let url = collector.url();
    let variables = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{url}/v1/traces")),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off".to_owned()),
        ("OTEL_SERVICE_NAME", "ours".to_owned()),
    ];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut gateway = gateway(sim.config(), &variables).await;
    sim.rules(vec![Rule::family(Family::BadRequest).path("chat/completions").times(1)]);
    assert_eq!(chat(&gateway, None).await.status, 400, "begins here, and is not kept");
    assert_eq!(chat(&gateway, Some(&parent(false))).await.status, 200);
    assert_eq!(chat(&gateway, Some(&parent(true))).await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.exit().await.success());
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "of the one that its client keeps: {spans:#?}");
    assert!(spans.iter().all(|span| span.trace == TRACE && span.service == "ours"), "{spans:#?}");
    let server = spans.iter().find(|span| span.kind == "server").expect("the request");
    let lines = lines(&gateway);
    let shown =
        |name: &str| lines.iter().map(|line| line[name].as_str().unwrap_or_default()).collect::<Vec<_>>();
    let (traces, ids) = (shown("trace_id"), shown("span_id"));
    assert_eq!((traces[0].len(), &traces[1..]), (32, &[TRACE, TRACE][..]), "every line has one: {lines:?}");
    assert!(traces[0] != TRACE && lines[0]["status"] == 400, "{lines:?}");
    assert!(ids.iter().all(|id| id.len() == 16 && *id != SPAN), "{ids:?}");
    assert_eq!(ids[2], server.id, "by which the span is found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_hears_of_the_trace_only_by_option() {
    let collector = Collector::start().await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let url = collector.url();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    for told in [false, true] {
        sim.forget();
        let mut config = sim.config();
        config["telemetry"]["propagate_upstream"] = told.into();
        let mut gateway = gateway(config, &[endpoint]).await;
        assert_eq!(chat(&gateway, Some(&parent(true))).await.status, 200);
        gateway.signal("TERM");
        assert!(gateway.exit().await.success());
        let spans = collector.spans();
        let attempt = spans.iter().rfind(|span| span.name == format!("chat {MODEL}")).expect("the attempt");
        let seen = chats(&sim);
        assert_eq!(seen.len(), 1, "{seen:?}");
        let said = (seen[0].header("traceparent"), seen[0].header("tracestate"));
        let step = format!("00-{TRACE}-{}-01", attempt.id);
        assert_eq!(said, if told { (Some(step.as_str()), Some("vendor=1")) } else { (None, None) });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_secrets_of_clients_are_no_part_of_what_is_told() {
    let collector = Collector::start().await;
    let sim = Sim::start(World::pool(1, 1)).await;
    let url = collector.url();
    let mut config = sim.config();
    config["server"]["clients"] =
        serde_json::json!([{"name": "the-client", "token": "client-token-a1b2c3d4"}]);
    let gateway = gateway(config, &[("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str())]).await;
    let secret = sim.secrets()[0].clone();
    let path = format!("/v1beta/models/{secret}:generateContent?key=client-token-a1b2c3d4");
    let answer = gateway.client().post(&path, &serde_json::json!({"contents": []})).await.expect("an answer");
    assert!(answer.status >= 400, "{}", answer.text);
    let refused = gateway.client().get("/v1/models").await.expect("an answer");
    assert_eq!(refused.status, 401);
    let spans = collector.saw(2, |span| span.kind == "server").await;
    let said = format!("{spans:?}");
    assert!(!said.contains(&secret) && !said.contains("client-token-a1b2c3d4"), "{said}");
    let of = |name: &str| {
        spans.iter().find(|span| span.kind == "server" && span.name == name).expect("the request")
    };
    let asked = of("POST /v1beta/models/{model}:generateContent");
    assert_eq!(asked.get("http.response.status_code"), answer.status);
    let refused = of("GET /v1/models");
    assert_eq!((refused.get("keyfleet.client.name"), refused.failed), (Value::Null, false));
    let admission = spans.iter().find(|span| span.name == "admission" && span.parent == refused.id);
    assert!(admission.is_some_and(|admission| admission.failed), "{spans:#?}");
}
