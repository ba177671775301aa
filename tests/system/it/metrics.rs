//! What a scraper reads is true, complete, bounded and without secrets, in both formats.

mod alone;
mod exported;
mod prometheus;
mod told;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use futures_util::stream::{self, StreamExt as _};
use keyfleet_simulator::{AnswerSpec, Family, Latency, Nth, Received, Rule, World};
use keyfleet_tests::{
    Answer, Client, Cluster, ClusterOptions, Figures, Gateway, Sim, eventually, judge, read,
};
use serde_json::json;

use super::surface::SOON;

const MODEL: &str = "gemini-2.5-flash";
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

async fn scrape(client: &Client, accept: &str) -> Answer {
    let request = client.request(reqwest::Method::GET, "/metrics").header("accept", accept);
    read(request).await.expect("an answer")
}

async fn figures(client: &Client) -> Figures {
    Figures::parse(&scrape(client, "").await.text)
}

/// The sum over the gateways of a cluster.
async fn sum(cluster: &Cluster, gateways: usize, name: &str) -> f64 {
    let mut sum = 0.0;
    for at in 0..gateways {
        sum += figures(&cluster.gateway(at)).await.sum(name).unwrap_or_default();
    }
    sum
}

/// What Prometheus has to say about a text.
fn promtool(arguments: &[&str], text: &str) -> String {
    let program = std::env::var("KEYFLEET_TEST_PROMTOOL").expect("KEYFLEET_TEST_PROMTOOL: run scripts/test");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool starts");
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[expect(clippy::cast_precision_loss, reason = "counts of a scenario are small")]
fn count(log: &[Received], condition: impl Fn(&Received) -> bool) -> f64 {
    judge::generations(log).filter(|request| condition(request)).count() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_over_the_gateways_are_what_the_upstream_saw() {
    const REQUESTS: usize = 300;
    let cluster = Cluster::start(World::pool(6, 1), ClusterOptions::new(json!({}))).await;
    cluster.sim().rules(vec![
        Rule::family(Family::Overloaded).path("chat/completions").nth(Nth::Every(7)),
        Rule::family(Family::TooLong).path("chat/completions").nth(Nth::Every(11)),
    ]);
    let gateways = [0, 1, 2].map(|at| cluster.gateway(at));
    let answers: Vec<Answer> = stream::iter(0..REQUESTS)
        .map(|n| gateways[n % 3].chat(MODEL, n % 2 == 0))
        .buffer_unordered(12)
        .map(|answer| answer.expect("an answer"))
        .collect()
        .await;
    let of = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    let all = format!("keyfleet_requests_total{{route=\"chat_completions\",model=\"{MODEL}\"}}");
    eventually("all requests are over", SOON, || async {
        let running = sum(&cluster, 3, "keyfleet_inflight_requests").await;
        (running.to_string() == "0").then_some(())
    })
    .await;
    // A model's first requests of each gateway are not the model's yet, if they fail.
    let routed = sum(&cluster, 3, "keyfleet_requests_total{route=\"chat_completions\"}").await;
    assert_eq!(routed.to_string(), REQUESTS.to_string());
    assert!(sum(&cluster, 3, &all).await >= 200.0);
    for (status, fault) in [(200, "none"), (400, "client"), (503, "upstream")] {
        let name = format!("keyfleet_requests_total{{status=\"{status}\",fault=\"{fault}\"}}");
        assert_eq!(sum(&cluster, 3, &name).await.to_string(), of(status).to_string(), "{name}");
    }
    assert!(of(200) > 200 && of(400) > 5, "{} and {}", of(200), of(400));
    let log = cluster.sim().log();
    for (outcome, seen) in [
        ("answered", count(&log, |request| request.status == 200)),
        ("overloaded", count(&log, |request| request.status == 503)),
        ("bad_request", count(&log, |request| request.status == 400)),
    ] {
        let name = format!("keyfleet_upstream_attempts_total{{outcome=\"{outcome}\"}}");
        assert_eq!(sum(&cluster, 3, &name).await.to_string(), seen.to_string(), "{name}");
        assert!(seen > 5.0, "{outcome}");
    }
    let attempts = count(&log, |_| true).to_string();
    for name in ["keyfleet_upstream_attempts_total", "keyfleet_upstream_duration_seconds_count"] {
        assert_eq!(sum(&cluster, 3, name).await.to_string(), attempts, "{name}");
    }
    for (name, counted) in [
        ("keyfleet_request_duration_seconds_count", REQUESTS),
        ("keyfleet_time_to_first_byte_seconds_count", of(200)),
        ("keyfleet_request_token_count_count{direction=\"input\"}", of(200)),
    ] {
        assert_eq!(sum(&cluster, 3, name).await.to_string(), counted.to_string(), "{name}");
    }
    tokens_are_those_of_the_answers(&cluster, &answers).await;
}

/// Every answer tells how many tokens it took; streamed ones tell in their last event.
async fn tokens_are_those_of_the_answers(cluster: &Cluster, answers: &[Answer]) {
    for (direction, field) in [("input", "\"prompt_tokens\":"), ("output", "\"completion_tokens\":")] {
        let told = answers.iter().filter_map(|answer| {
            let (_, rest) = answer.text.rsplit_once(field)?;
            rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
        });
        let told: u64 = told.sum();
        let name = format!("keyfleet_tokens_total{{direction=\"{direction}\"}}");
        assert_eq!(sum(cluster, 3, &name).await.to_string(), told.to_string(), "{name}");
        let name = format!("keyfleet_request_token_count_sum{{direction=\"{direction}\"}}");
        assert_eq!(sum(cluster, 3, &name).await.to_string(), told.to_string(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_formats_are_told_and_exemplars_lead_to_traces() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for (trace, flags) in [(TRACE, "01"), ("0af7651916cd43dd8448eb211c80319c", "00")] {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
        let request = gateway.client().request(reqwest::Method::POST, "/v1/chat/completions");
        let request = request.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-{flags}"));
        let answer = read(request.bearer_auth("x").body(body.to_string())).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let client = gateway.client();
    let open = scrape(&client, OPENMETRICS).await;
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.text.ends_with("\n# EOF\n"), "{}", open.text);
    for name in ["request_duration", "upstream_duration", "time_to_first_byte"] {
        let start = format!("keyfleet_{name}_seconds_bucket");
        let lines: Vec<_> = open.text.lines().filter(|line| line.starts_with(&start)).collect();
        let exemplar = format!(" # {{trace_id=\"{TRACE}\"}} ");
        assert_eq!(lines.iter().filter(|line| line.contains(&exemplar)).count(), 1, "{lines:?}");
        assert_eq!(lines.iter().filter(|line| line.contains(" # ")).count(), 1, "of sampled traces only");
    }
    let plain = scrape(&client, "*/*").await;
    assert_eq!(plain.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!plain.text.contains("EOF") && !plain.text.contains(TRACE), "{}", plain.text);
    assert_eq!(Figures::parse(&plain.text).names(), Figures::parse(&open.text).names());
    assert_eq!(promtool(&["check", "metrics"], &plain.text), "");
}

/// A client that invents names, statuses that an upstream invents, and a model that there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_names_are_one() {
    const HOSTILE: usize = 10_000;
    let sim = Sim::start(World::pool(2, 1)).await;
    let mut config = sim.config();
    config["limits"] = json!([{"models": "*", "rpm": 100_000, "rpd": 1_000_000}]);
    let gateway = Gateway::start(config).await;
    assert_eq!(gateway.client().chat(MODEL, true).await.expect("an answer").status, 200);
    let secret = sim.secrets().remove(0);
    let before = figures(&gateway.client()).await.len();
    let client = gateway.client();
    stream::iter(0..HOSTILE)
        .map(|n| {
            let client = client.clone();
            let name = match n % 5 {
                0 => format!("{secret}-{n}"),
                1 => format!("a\"}} {n}\n# TYPE x counter\nx"),
                _ => format!("hostile-{n}"),
            };
            async move {
                match n % 3 {
                    0 => client.get(&format!("/v1beta/invented-{n}")).await,
                    _ => client.chat(&name, n % 2 == 0).await,
                }
            }
        })
        .buffer_unordered(32)
        .for_each(|answer| async {
            assert!(answer.expect("an answer").status >= 400);
        })
        .await;
    let text = scrape(&gateway.client(), "").await.text;
    let after = Figures::parse(&text);
    let models = after.values("keyfleet_requests_total", "model");
    assert_eq!(models, BTreeSet::from([MODEL, "none", "other"]), "{text}");
    let counted = after.sum("keyfleet_requests_total").unwrap_or_default();
    assert_eq!(counted.to_string(), (HOSTILE + 1).to_string());
    assert!(after.len() < before + 200, "{before} samples became {}", after.len());
    for name in ["used", "leased", "limit"] {
        let models = after.values(&format!("keyfleet_coordinator_quota_{name}"), "model");
        assert!(models.is_subset(&BTreeSet::from([MODEL, "other"])), "{models:?}");
    }
    assert!(!text.contains(&secret) && !text.contains("hostile") && !text.contains("invented"), "{text}");
    assert_eq!(promtool(&["check", "metrics"], &text), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_within_a_stream_and_clients_that_go_away_are_seen() {
    let mut world = World::pool(2, 1);
    world.answer = AnswerSpec { chunks: 5, ..AnswerSpec::default() };
    world.latency = Latency::Fixed { ttft_ms: 10, gap_ms: 200 };
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    assert_eq!(client.chat(MODEL, true).await.expect("an answer").status, 200);
    sim.change(|world| world.latency = Latency::Fixed { ttft_ms: 60_000, gap_ms: 1 });
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let request = client.request(reqwest::Method::POST, "/v1/chat/completions").bearer_auth("x").body(body);
    let impatient = tokio::spawn(request.send());
    assert!(
        sim.saw(SOON, |request| request.status == 0 && request.method == "POST").await,
        "the second request arrives"
    );
    impatient.abort();
    let told = eventually("the client's end is seen", SOON, || async {
        let told = figures(&client).await;
        (told.sum("keyfleet_requests_total{status=\"499\",fault=\"client\"}") == Some(1.0)).then_some(told)
    })
    .await;
    assert_eq!(told.sum("keyfleet_upstream_attempts_total{outcome=\"abandoned\"}"), Some(1.0));
    assert_eq!(told.sum("keyfleet_inflight_requests"), Some(0.0));
    let of_gaps = |what: &str| told.sum(&format!("keyfleet_time_between_chunks_seconds_{what}"));
    // The pause before the first piece is none between pieces.
    assert!(of_gaps("count") >= Some(3.0) && of_gaps("sum") >= Some(0.6), "{told:?}");
    let short = of_gaps("bucket{le=\"0.08\"}").zip(of_gaps("count"));
    assert!(short.is_some_and(|(short, all)| all - short >= 3.0), "{told:?}");
}
