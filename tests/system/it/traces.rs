//! What a collector of traces gets, and what happens to requests when it gets nothing.

mod cluster;
mod collectors;
mod sampling;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use keyfleet_simulator::{Family, Latency, Received, Rule, World};
use keyfleet_tests::{Answer, Collector, Gateway, GatewayOptions, Rotel, Sim, Span, read};
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
/// Between the chunks of an answer, of which there are five.
const GAP: Duration = Duration::from_millis(60);

/// A gateway with these variables, besides one by which spans do not wait long for company.
async fn gateway(config: Value, variables: &[(&str, &str)]) -> Gateway {
    let mut options = GatewayOptions::new(config);
    let variables = variables.iter().chain(&[("OTEL_BSP_SCHEDULE_DELAY", "50")]);
    options.env.extend(variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Gateway::start_with(options).await
}

/// A chat of a client that traces, if it says a `traceparent`.
async fn chat(gateway: &Gateway, traceparent: Option<&str>) -> Answer {
    let body =
        json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "client text"}]});
    let mut request = gateway
        .client()
        .request(reqwest::Method::POST, "/v1beta/openai/chat/completions?key=client-text")
        .header("content-type", "application/json")
        .header("x-request-id", "the-request")
        .body(body.to_string());
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent).header("tracestate", "vendor=1");
    }
    read(request).await.expect("an answer")
}

/// The lines of requests in the log.
fn lines(gateway: &Gateway) -> Vec<Value> {
    let log = gateway.logs();
    let lines = log.lines().filter(|line| line.contains("\"message\":\"request\""));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Two keys; the first attempt meets a spent quota, the second an overload.
async fn two_keys_that_stumble() -> Sim {
    let latency = Latency::Fixed { ttft_ms: 30, gap_ms: u64::try_from(GAP.as_millis()).expect("a gap") };
    let sim = Sim::start(World { latency, ..World::pool(2, 1) }).await;
    let stumble = |family| Rule::family(family).path("chat/completions").times(1);
    sim.rules(vec![stumble(Family::PerMinute429), stumble(Family::Overloaded)]);
    sim
}

/// What came upstream, other than what the prober asks.
fn chats(sim: &Sim) -> Vec<Received> {
    sim.log().into_iter().filter(|request| request.path_and_query.ends_with("chat/completions")).collect()
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_request_of_three_attempts_over_two_keys_is_told_span_by_span() {
    let collector = Collector::start().await;
    let (url, headers) = (collector.url(), "x-tenant=ours");
    let sim = two_keys_that_stumble().await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", headers),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ];
    let gateway = gateway(sim.config(), &variables).await;
    assert_told(&gateway, &sim, &collector).await;
    let sent = collector.headers();
    let carries =
        |sent: &HeaderMap, name: &str, value: &str| sent.get(name).is_some_and(|found| found == value);
    let all = |name, value| sent.iter().all(|sent| carries(sent, name, value));
    assert!(all("x-tenant", "ours") && all("content-encoding", "gzip"), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_collector_gets_the_same_over_grpc() {
    let collector = Collector::start().await;
    let rotel = Rotel::start(&collector).await;
    let sim = two_keys_that_stumble().await;
    let mut config = sim.config();
    config["telemetry"] = json!({"endpoint": rotel.url(), "protocol": "grpc"});
    let gateway = gateway(config, &[]).await;
    assert_told(&gateway, &sim, &collector).await;
}

/// Asks once, and looks at every span.
async fn assert_told(gateway: &Gateway, sim: &Sim, collector: &Collector) {
    let (asked_at, began) = (nanos(SystemTime::now()), Instant::now());
    let answer = chat(gateway, Some(&format!("00-{TRACE}-{SPAN}-01"))).await;
    assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (200, "3"), "{}", answer.text);
    let mut spans = collector.saw(8, |span| span.trace == TRACE).await;
    // They end behind the last byte, when the client may have it already.
    let (told_at, took) = (nanos(SystemTime::now()), began.elapsed());
    // The coordinator is in the same process, and handles the failures in traces of its own.
    spans.retain(|span| span.kind != "consumer");
    assert_eq!(spans.len(), 8, "{spans:#?}");
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    assert_eq!(ids.len(), 8, "each has a name of its own: {spans:#?}");
    for span in &spans {
        assert_eq!((span.trace.as_str(), span.state.as_str()), (TRACE, "vendor=1"), "{span:#?}");
        assert!(asked_at <= span.start && span.start <= span.end && span.end <= told_at, "{span:#?}");
        let said = format!("{span:?}");
        assert!(!said.contains("client text") && !said.contains("client-text"), "{said}");
        assert!(sim.secrets().iter().all(|secret| !said.contains(secret)), "{said}");
    }
    let of_kind = |kind: &str| spans.iter().filter(|span| span.kind == kind).collect::<Vec<_>>();
    assert_eq!(of_kind("server").len(), 1, "{spans:#?}");
    let server = of_kind("server")[0];
    assert_request(server, took);
    for span in spans.iter().filter(|span| span.kind != "server") {
        assert_eq!(span.parent, server.id, "{span:#?}");
        assert!(server.start <= span.start && span.end <= server.end, "{span:#?}");
    }
    let mut inner = of_kind("internal");
    inner.sort_by_key(|span| span.start);
    let names: Vec<_> = inner.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["admission", "key choice", "key choice", "key choice"]);
    let mut attempts = of_kind("client");
    attempts.sort_by_key(|span| span.start);
    assert_attempts(&attempts, sim);
    assert_answer(&attempts, &answer);
    let chosen: Vec<_> = inner[1..].iter().map(|span| span.get("keyfleet.key.id")).collect();
    let used: Vec<_> = attempts.iter().map(|span| span.get("keyfleet.key.id")).collect();
    assert_eq!(chosen, used);
    assert_eq!(attempts[2].end, server.end, "both end with the last byte");
}

fn assert_request(server: &Span, took: Duration) {
    assert_eq!((server.name.as_str(), server.parent.as_str()), ("POST /v1/chat/completions", SPAN));
    assert!(!server.failed, "{server:#?}");
    let expected = [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/chat/completions")),
        ("http.response.status_code", json!(200)),
        ("url.path", json!("/v1beta/openai/chat/completions")),
        ("keyfleet.request.id", json!("the-request")),
        ("keyfleet.attempts", json!(3)),
        ("keyfleet.request.model", json!(MODEL)),
        ("gen_ai.request.model", Value::Null),
        ("error.type", Value::Null),
    ];
    for (name, value) in expected {
        assert_eq!(server.get(name), value, "{name}");
    }
    assert_first_chunk(server);
    let lasted = Duration::from_nanos(server.end - server.start);
    assert!(
        lasted >= 4 * GAP && lasted <= took,
        "it ends with the stream, not with its head: {lasted:?} of {took:?}"
    );
}

/// The event is there, well before the last chunk.
fn assert_first_chunk(span: &Span) {
    let names: Vec<_> = span.events.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["gen_ai.first_chunk"]);
    let at = span.events[0].1;
    assert!(span.start < at && Duration::from_nanos(span.end - at) >= 3 * GAP, "{span:#?}");
}

fn assert_attempts(attempts: &[&Span], sim: &Sim) {
    let asked: Vec<_> = chats(sim).iter().map(|request| json!(request.key_id)).collect();
    let used: Vec<_> = attempts.iter().map(|span| span.get("keyfleet.key.id")).collect();
    assert_eq!(used, asked, "as the upstream saw it");
    assert!(used[0] != used[1] && used[1] == used[2], "two keys: {used:?}");
    let port: i64 = sim.url().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    for span in attempts {
        assert_eq!(span.name, format!("chat {MODEL}"));
        let expected = [
            ("gen_ai.operation.name", json!("chat")),
            ("gen_ai.provider.name", json!("gcp.gemini")),
            ("gen_ai.request.model", json!(MODEL)),
            ("gen_ai.request.stream", json!(true)),
            ("server.address", json!("127.0.0.1")),
            ("server.port", json!(port)),
        ];
        for (name, value) in expected {
            assert_eq!(span.get(name), value, "{name} of {span:#?}");
        }
    }
    let told = |name: &str| attempts.iter().map(|span| span.get(name)).collect::<Vec<_>>();
    assert_eq!(told("http.request.resend_count"), [Value::Null, json!(1), json!(2)]);
    assert_eq!(told("http.response.status_code"), [json!(429), json!(503), json!(200)]);
    assert_eq!(told("error.type"), [json!("429"), json!("503"), Value::Null]);
    assert_eq!(told("keyfleet.outcome.scope"), [json!("bucket"), json!("model"), Value::Null]);
    assert_eq!(told("keyfleet.outcome.cause")[2], Value::Null);
    let cooldown = told("keyfleet.cooldown");
    assert!(cooldown[0].as_f64().is_some_and(|seconds| seconds > 0.0), "{cooldown:?}");
    assert_eq!(cooldown[2], Value::Null);
    let failed: Vec<_> = attempts.iter().map(|span| span.failed).collect();
    assert_eq!(failed, [true, true, false]);
    let tokens = (told("gen_ai.usage.input_tokens"), told("gen_ai.usage.output_tokens"));
    assert!(tokens.0[..2].iter().chain(&tokens.1[..2]).all(Value::is_null), "{tokens:?}");
    assert!(tokens.0[2].as_i64() > Some(0) && tokens.1[2].as_i64() > Some(0), "{tokens:?}");
    assert!(attempts[2].get("gen_ai.response.time_to_first_chunk").as_f64() > Some(0.0));
    assert_first_chunk(attempts[2]);
    assert!(attempts[0].end <= attempts[1].start && attempts[1].end <= attempts[2].start);
}

/// The last attempt tells of its answer what the client read there, and the others nothing.
fn assert_answer(attempts: &[&Span], answer: &Answer) {
    let events = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events.filter_map(|event| serde_json::from_str(event).ok()).collect();
    let reasons = events.iter().map(|event| &event["choices"][0]["finish_reason"]);
    let reasons: Vec<_> = reasons.filter(|reason| reason.is_string()).cloned().collect();
    assert!(events[0]["id"].is_string() && reasons == [json!("stop")], "{}", answer.text);
    for (name, told) in [
        ("gen_ai.response.model", json!(MODEL)),
        ("gen_ai.response.id", events[0]["id"].clone()),
        ("gen_ai.response.finish_reasons", json!(reasons)),
    ] {
        let said: Vec<_> = attempts.iter().map(|span| span.get(name)).collect();
        assert_eq!(said, [Value::Null, Value::Null, told], "{name}");
    }
}
