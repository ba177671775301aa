//! Bar 4: clients that go away leave nothing behind, here and upstream.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use keyfleet_simulator::{AnswerSpec, Latency, World};
use keyfleet_tests::{Gateway, Sim, eventually};

const MODEL: &str = "gemini-2.5-flash";
const WARM_UP: usize = 300;
const ABORTED: usize = 10_000;
const AT_ONCE: usize = 50;
/// What an allocator may keep; a leak of 1 KiB per stream would be 10 MiB.
const GROWTH_KIB: u64 = 8 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_streams_leave_nothing() {
    let mut world = World::pool(4, 1);
    world.answer = AnswerSpec { chunks: 1_000, ..AnswerSpec::default() };
    world.log_capacity = 2 * ABORTED;
    world.latency = Latency::Fixed { ttft_ms: 5, gap_ms: 100 };
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;

    abort(&gateway, WARM_UP).await;
    settled(&sim).await;
    let memory = gateway.resident_kib();
    let descriptors = gateway.descriptors();

    abort(&gateway, ABORTED).await;
    settled(&sim).await;
    eventually("the sockets are closed", Duration::from_secs(10), || {
        let open = gateway.descriptors();
        async move { (open <= descriptors + 2).then_some(()) }
    })
    .await;
    let metrics = gateway.client().get("/metrics").await.expect("an answer").text;
    assert!(metrics.contains("keyfleet_inflight_requests 0"), "requests are still counted as running");
    let after = gateway.resident_kib();
    assert!(
        after <= memory + GROWTH_KIB,
        "memory went from {memory} to {after} KiB in {ABORTED} aborted streams"
    );

    let gone = sim.log().iter().filter(|request| request.client_gone).count();
    assert!(gone >= ABORTED, "only {gone} upstream calls were given up");
}

/// Opens streams, reads a piece of each and goes away.
async fn abort(gateway: &Gateway, count: usize) {
    let client = gateway.client();
    stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, |_| async {
            let body = serde_json::json!({
                "model": MODEL, "stream": true, "messages": [{"role": "user", "content": "Say something long."}],
            });
            let request = client.request(reqwest::Method::POST, "/v1/chat/completions").bearer_auth("placeholder");
            let mut response = request.body(body.to_string()).send().await.expect("an answer");
            assert_eq!(response.status(), 200);
            response.chunk().await.expect("a first chunk");
        })
        .await;
}

/// Upstream nothing runs any more: every call ended or was given up, long before its stream would have.
async fn settled(sim: &Sim) {
    eventually("every upstream call has ended", Duration::from_secs(10), || {
        let running = sim.log().iter().filter(|request| !request.done && !request.client_gone).count();
        async move { (running == 0).then_some(()) }
    })
    .await;
}
