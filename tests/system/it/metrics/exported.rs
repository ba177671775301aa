//! What a collector of metrics gets, by option: what a scraper reads.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Family, Nth, Rule, World};
use keyfleet_tests::{
    Cluster, ClusterOptions, Collector, Figures, Gateway, GatewayOptions, Part, Rotel, Sim, eventually, judge,
};
use serde_json::{Value, json};

use super::{MODEL, SOON, figures};

const REQUESTS: usize = 30;
const GATEWAY: &str = "keyfleet-gateway";

async fn gateway(config: Value, variables: &[(&str, &str)]) -> Gateway {
    let mut options = GatewayOptions::new(config);
    options.env.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Gateway::start_with(options).await
}

/// Some of these go wrong.
async fn ask(sim: &Sim, gateway: &Gateway) {
    sim.rules(vec![Rule::family(Family::TooLong).path("chat/completions").nth(Nth::Every(5))]);
    for n in 0..REQUESTS {
        let answer = gateway.client().chat(MODEL, n % 2 == 0).await.expect("an answer");
        assert!([200, 400].contains(&answer.status), "{}", answer.text);
    }
}

/// What only requests change.
fn of_requests(figures: &Figures) -> std::collections::BTreeSet<String> {
    let names = [
        "requests_total",
        "inflight_requests",
        "request_duration_seconds",
        "time_to_first_byte_seconds",
        "time_between_chunks_seconds",
        "upstream_attempts_total",
        "upstream_duration_seconds",
        "tokens_total",
        "request_token_count",
        "build_info",
    ];
    let is_one = |name: &str| {
        let name = name.strip_prefix("keyfleet_").unwrap_or_default();
        names.iter().any(|one| name.starts_with(one))
    };
    figures.lines(is_one)
}

/// The collector knows what the gateway tells, and both what the upstream saw.
async fn assert_told(sim: &Sim, gateway: &Gateway, collector: &Collector) {
    let told = eventually("the collector knows all that a scraper reads", SOON, || async {
        let told = collector.figures(GATEWAY)?;
        let read = figures(&gateway.client()).await;
        let names = told.names().into_iter().filter(|name| *name != "target_info").collect();
        let is_all = of_requests(&told) == of_requests(&read) && read.names() == names;
        (is_all && told.sum("keyfleet_inflight_requests") == Some(0.0)).then_some(told)
    })
    .await;
    assert!(of_requests(&told).len() > 100, "with every bucket of every histogram");
    let instances = told.values("target_info", "service.instance.id");
    assert!(instances.iter().all(|id| id.len() == 36) && instances.len() == 1, "{instances:?}");
    assert_counts(sim, &told);
}

/// As the upstream saw it.
fn assert_counts(sim: &Sim, told: &Figures) {
    let log = sim.log();
    let all = judge::generations(&log).count();
    let failed = judge::generations(&log).filter(|request| request.status == 400).count();
    assert!(all == REQUESTS && failed > 3, "{failed} of {all}");
    for (name, count) in [
        ("keyfleet_requests_total", all),
        ("keyfleet_requests_total{status=\"400\",fault=\"client\"}", failed),
        ("keyfleet_upstream_attempts_total", all),
        ("keyfleet_upstream_attempts_total{outcome=\"answered\"}", all - failed),
        ("keyfleet_upstream_duration_seconds_count", all),
        ("keyfleet_time_to_first_byte_seconds_bucket{le=\"+Inf\"}", all - failed),
    ] {
        assert_eq!(told.sum(name).map(|sum| sum.to_string()), Some(count.to_string()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_told_what_a_scraper_reads() {
    let collector = Collector::start().await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let endpoint = format!("{}/v1/metrics", collector.url());
    let variables = [
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=our%20own"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
    ];
    let gateway = gateway(sim.config(), &variables).await;
    ask(&sim, &gateway).await;
    assert_told(&sim, &gateway, &collector).await;
    let sent = collector.headers();
    assert!(
        sent.iter().all(|sent| sent["x-tenant"] == "our own" && sent["content-encoding"] == "gzip"),
        "{sent:?}"
    );
    assert!(collector.spans().is_empty(), "an endpoint of metrics is none for traces");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_collector_is_told_the_same_over_grpc() {
    let collector = Collector::start().await;
    let rotel = Rotel::start(&collector).await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let mut config = sim.config();
    config["telemetry"] = json!({"endpoint": rotel.url(), "protocol": "grpc", "metrics": true});
    let variables = [("OTEL_METRIC_EXPORT_INTERVAL", "100"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")];
    let gateway = gateway(config, &variables).await;
    ask(&sim, &gateway).await;
    assert_told(&sim, &gateway, &collector).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_process_is_told_and_nothing_without_being_asked() {
    let collector = Collector::start().await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let url = collector.url();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let exporter = |name| [endpoint, ("OTEL_METRICS_EXPORTER", name)];
    for variables in [&[endpoint][..], &exporter("none")] {
        let mut silent = gateway(sim.config(), variables).await;
        assert_eq!(silent.client().chat(MODEL, false).await.expect("an answer").status, 200);
        silent.signal("TERM");
        assert!(silent.exit().await.success());
    }
    assert!(collector.figures(GATEWAY).is_none(), "an endpoint alone is for traces");
    sim.forget();
    // The interval is a minute.
    let mut gateway = gateway(sim.config(), &exporter("otlp")).await;
    ask(&sim, &gateway).await;
    gateway.signal("TERM");
    assert!(gateway.exit().await.success());
    assert_counts(&sim, &collector.figures(GATEWAY).expect("the last figures"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_is_told_of_and_costs_no_request_and_no_end() {
    let hanging = Collector::start_hanging().await;
    let port = hanging.port();
    let sim = Sim::start(World::pool(2, 1)).await;
    let mut config = sim.config();
    config["telemetry"] = json!({"endpoint": format!("http://operator:collector-password@127.0.0.1:{port}")});
    let variables = [
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "50"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "200"),
    ];
    let mut gateway = gateway(config, &variables).await;
    ask(&sim, &gateway).await;
    hanging.asked(3).await;
    let failed = || async {
        let read = figures(&gateway.client()).await;
        read.sum("keyfleet_failed_metric_exports_total").filter(|failed| *failed >= 2.0)
    };
    eventually("failed exports are counted", SOON, failed).await;
    let away = "the collector does not take metrics";
    gateway.says(away).await;
    hanging.stop().await;
    let collector = Collector::start_on(port).await;
    gateway.says("the collector takes metrics again").await;
    assert_told(&sim, &gateway, &collector).await;
    assert_eq!(gateway.logs().matches(away).count(), 1, "{}", gateway.logs());
    assert!(!gateway.logs().contains("collector-password"), "{}", gateway.logs());
    collector.stop().await;
    let _hanging = Collector::start_hanging_on(port).await;
    gateway.signal("TERM");
    let began = Instant::now();
    assert!(gateway.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    gateway.says("did not take the last metrics in time").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_export_theirs() {
    let collector = Collector::start().await;
    let config = json!({"telemetry": {"endpoint": collector.url(), "metrics": true}});
    let mut cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(config).gateways(1)).await;
    assert_eq!(cluster.gateway(0).chat(MODEL, false).await.expect("an answer").status, 200);
    let leader = cluster.leader().await;
    let Part::Coordinator(at) = leader else { panic!("{leader:?} leads") };
    let read = figures(&cluster.coordinator(at)).await;
    cluster.terminate(leader).await;
    let told = collector.figures("keyfleet-coordinator").expect("the last figures");
    assert_eq!(
        told.sum("keyfleet_coordinator_takeovers_total"),
        read.sum("keyfleet_coordinator_takeovers_total")
    );
    assert!(told.sum("keyfleet_coordinator_commits_total") >= read.sum("keyfleet_coordinator_commits_total"));
    assert!(told.sum("process_start_time_seconds") == read.sum("process_start_time_seconds"));
}
