//! Collectors that do not take spans.

use std::fs;
use std::time::{Duration, Instant};

use keyfleet_simulator::World;
use keyfleet_tests::{Collector, Door, Figures, Gateway, Rotel, Sim, eventually};
use serde_json::json;

use super::{chat, gateway};

const SOON: Duration = Duration::from_secs(20);
/// More than wait in the queue of these gateways.
const REQUESTS: usize = 40;

/// Whether there is a thread that sends spans.
fn traces(gateway: &Gateway) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("the process is alive");
    let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.flatten().any(|thread| name(thread).trim() == "traces")
}

/// How often the log says this.
fn said(gateway: &Gateway, text: &str) -> usize {
    gateway.logs().matches(text).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_costs_no_request_and_no_end() {
    let collector = Collector::start_hanging().await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16".to_owned()),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4".to_owned()),
    ];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut gateway = gateway(sim.config(), &variables).await;
    assert_eq!(chat(&gateway, None).await.status, 200);
    collector.asked(1).await;
    for _ in 0..REQUESTS {
        assert_eq!(chat(&gateway, None).await.status, 200, "while the collector holds on to the first spans");
    }
    gateway.signal("TERM");
    assert!(gateway.exit().await.success());
    gateway.says("did not take the last spans in time").await;
    let log = gateway.logs();
    let last = log.lines().find(|line| line.contains("did not take the last spans")).unwrap_or_default();
    let last: serde_json::Value = serde_json::from_str(last).expect("a line of JSON");
    // Four of each request.
    assert_eq!(last["dropped"].as_u64(), Some(4 * (REQUESTS as u64 + 1)), "{last}");
}

/// So many requests, and how long they took.
async fn asked(gateway: &Gateway) -> Duration {
    let began = Instant::now();
    for _ in 0..REQUESTS {
        assert_eq!(chat(gateway, None).await.status, 200);
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stands_still_costs_no_time_and_gets_spans_again() {
    let collector = Collector::start().await;
    let rotel = Rotel::start(&collector).await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let mut config = sim.config();
    config["telemetry"] = json!({"endpoint": rotel.url(), "protocol": "grpc"});
    let variables = [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "200"),
    ];
    let gateway = gateway(config, &variables).await;
    assert_eq!(chat(&gateway, None).await.status, 200);
    collector.saw(4, |_| true).await;
    let well = asked(&gateway).await;
    rotel.pause();
    let still = asked(&gateway).await;
    gateway.says("the trace collector does not take spans").await;
    assert!(still < 10 * well, "{still:?}, and {well:?} when all is well");
    let metrics = gateway.client().get("/metrics").await.expect("an answer").text;
    let dropped = Figures::parse(&metrics).sum("keyfleet_dropped_spans_total");
    // Four of each request, of which the queue takes four requests.
    assert!(dropped >= Some(100.0), "{dropped:?}");
    rotel.resume();
    let before = collector.spans().len();
    eventually("spans arrive again", SOON, || {
        let (answer, collector) = (chat(&gateway, None), &collector);
        async move {
            assert_eq!(answer.await.status, 200);
            (collector.spans().len() > before + 16).then_some(())
        }
    })
    .await;
    gateway.says("the trace collector takes spans again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_refuses_is_told_of_once_and_again_when_it_is_well() {
    let refusing = Collector::start_refusing().await;
    let port = refusing.port();
    let sim = Sim::start(World::pool(2, 1)).await;
    let url = format!("http://operator:collector-password@127.0.0.1:{port}");
    let mut config = sim.config();
    config["telemetry"] = json!({"endpoint": url});
    let gateway = gateway(config, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "200")]).await;
    let away = "the trace collector does not take spans";
    for batch in 1..=3 {
        assert_eq!(chat(&gateway, None).await.status, 200);
        refusing.asked(batch).await;
    }
    gateway.says(away).await;
    refusing.stop().await;
    // And away: also when it cannot be reached.
    assert_eq!(chat(&gateway, None).await.status, 200);
    let collector = Collector::start_on(port).await;
    let spans = eventually("spans arrive", SOON, || {
        let (answer, collector) = (chat(&gateway, None), &collector);
        async move {
            assert_eq!(answer.await.status, 200);
            Some(collector.spans()).filter(|spans| !spans.is_empty())
        }
    });
    assert!(spans.await.iter().all(|span| span.service == "keyfleet-gateway"));
    // `operator:collector-password`
    let login = "Basic b3BlcmF0b3I6Y29sbGVjdG9yLXBhc3N3b3Jk";
    assert!(collector.headers().iter().all(|headers| headers["authorization"] == login));
    gateway.says("the trace collector takes spans again").await;
    assert_eq!((said(&gateway, away), said(&gateway, "takes spans again")), (1, 1));
    assert!(!gateway.logs().contains("collector-password"), "{}", gateway.logs());
    assert!(!gateway.subcommand("print-config").contains("collector-password"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_nothing_without_an_endpoint_or_when_it_is_switched_off() {
    let collector = Collector::start().await;
    let sim = Sim::start(World::pool(2, 1)).await;
    let url = collector.url();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let off = [
        vec![],
        vec![endpoint, ("OTEL_SDK_DISABLED", "true")],
        vec![endpoint, ("OTEL_TRACES_EXPORTER", "none")],
    ];
    for variables in off {
        let mut gateway = gateway(sim.config(), &variables).await;
        assert_eq!(chat(&gateway, None).await.status, 200);
        assert!(!traces(&gateway), "{variables:?}");
        gateway.signal("TERM");
        assert!(gateway.exit().await.success());
        assert!(!gateway.logs().contains("trace_id"), "{}", gateway.logs());
    }
    assert!(collector.headers().is_empty());
    let mut on = gateway(sim.config(), &[endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "600000")]).await;
    assert!(traces(&on));
    assert_eq!(chat(&on, None).await.status, 200);
    on.signal("TERM");
    assert!(on.exit().await.success());
    assert_eq!(collector.spans().len(), 4, "what waits is sent at the end");
}

/// Over both protocols, with an authority that the system does not know; the collector wants to know who we are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_behind_certificates_gets_spans_and_metrics_by_the_standards_variables() {
    let collector = Collector::start().await;
    let rotel = Rotel::start(&collector).await;
    let sim = Sim::start(World::pool(2, 1)).await;
    for (protocol, port) in [("http/protobuf", collector.port()), ("grpc", rotel.port())] {
        let door = Door::before(port).await;
        let (url, authority) = (door.url(), door.authority().display().to_string());
        let [certificate, key] = door.identity().map(|path| path.display().to_string());
        let service = format!("behind-{}", &protocol[..4]);
        let all = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_SERVICE_NAME", &service),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &authority),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &certificate),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &key),
        ];
        let without =
            |name: &str| all.iter().filter(|(other, _)| *other != name).copied().collect::<Vec<_>>();
        // A stranger: with one file too few.
        let stranger = gateway(sim.config(), &without("OTEL_EXPORTER_OTLP_CERTIFICATE")).await;
        assert_eq!(chat(&stranger, None).await.status, 200);
        stranger.says("the trace collector does not take spans").await;
        stranger.says("the collector does not take metrics").await;
        let half = gateway(sim.config(), &without("OTEL_EXPORTER_OTLP_CLIENT_KEY")).await;
        half.says("there are no traces: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE").await;
        half.says("no metrics are exported: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE").await;
        assert_eq!(chat(&half, None).await.status, 200);
        assert!(collector.spans().iter().all(|span| span.service != service), "{protocol}");
        assert!(collector.figures(&service).is_none(), "{protocol}");
        let known = gateway(sim.config(), &all).await;
        assert_eq!(chat(&known, None).await.status, 200);
        collector.saw(4, |span| span.service == service).await;
        eventually("metrics arrive", SOON, || async { collector.figures(&service) }).await;
    }
}
