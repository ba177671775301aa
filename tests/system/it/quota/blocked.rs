//! A quota that is spent, of a key that is blocked or too small as well.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Gateway, Sim};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{MINUTE, MODEL, SOON, calls, chat, come_back_in, limited};

/// The upstream says that the day is used up, and that one request may try in a second. The minute allows it none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_request_waits_for_the_quota_of_its_minute() {
    let mut world = World::pool(1, 1);
    world.window_ms = 1_000;
    let sim = Sim::start(world).await;
    sim.rules(vec![Rule::family(Family::PerDay429).model(MODEL)]);
    let gateway = Gateway::start(limited(&sim, &json!({"rpm": 1}))).await;
    let began = Instant::now();
    // From well before the trial is due until well after that.
    while began.elapsed() < Duration::from_secs(4) {
        let answer = timeout(SOON, chat(&gateway.client())).await.expect("an answer in time");
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert!(come_back_in(&answer) >= MINUTE, "the day is over only at midnight");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(calls(&sim).len(), 1, "the minute's request");
}

/// A key that a request is too large for has no say in when another one is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_too_small_does_not_shorten_the_wait_for_another() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let mut config = sim.config();
    config["quota"]["lease_wait_ms"] = json!(2_000);
    config["projects"] = json!([
        {"id": "p1", "limits": [{"tpm": 1_000}]},
        {"id": "p2", "limits": [{"rpm": 1}]},
    ]);
    let gateway = Gateway::start(config).await;
    let large = json!({"model": MODEL, "messages": [{"role": "user", "content": "x".repeat(40_000)}]});
    for expected in [200, 429, 429, 429] {
        let answer = gateway.client().post("/v1/chat/completions", &large).await.expect("an answer");
        assert_eq!(answer.status, expected, "{}", answer.text);
        assert!(expected == 200 || come_back_in(&answer) > MINUTE / 2, "{}", answer.header("retry-after"));
    }
    assert_eq!(calls(&sim).len(), 1);
}
