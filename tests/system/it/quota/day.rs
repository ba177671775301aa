//! The requests of a day.

use std::time::Duration;

use keyfleet_simulator::{Limit, World};
use keyfleet_tests::{Gateway, Sim};
use serde_json::json;

use super::{MODEL, assert_never_refused, calls, chat, come_back_in, limited, served};

const RPD: u64 = 5;

async fn start() -> (Sim, Gateway) {
    let limit = Limit { model: "*".into(), rpd: Some(RPD), ..Limit::default() };
    let sim = Sim::start(World::pool(1, 2).limited(&limit)).await;
    let mut config = limited(&sim, &json!({"rpd": RPD}));
    config["server"]["state_file"] = json!("state.json");
    let gateway = Gateway::start(config).await;
    (sim, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_has_its_requests_and_a_restart_brings_none_back() {
    let (sim, mut gateway) = start().await;
    for expected in [3, 2, 0] {
        assert_eq!(served(&gateway.client(), MODEL, 3).await, expected);
        gateway.signal("TERM");
        gateway.restart().await;
    }
    let refused = chat(&gateway.client()).await;
    let day = Duration::from_hours(25) + Duration::from_mins(3);
    assert!(come_back_in(&refused) <= day, "{}", refused.header("retry-after"));
    let log = calls(&sim);
    assert_eq!(log.len(), 5);
    assert_never_refused(&log);
}

/// A crash may take permits along that a process had in hand ahead of its need. It brings none back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_brings_nothing_of_the_day_back() {
    let (sim, mut gateway) = start().await;
    assert_eq!(served(&gateway.client(), MODEL, 3).await, 3);
    gateway.signal("KILL");
    gateway.restart().await;
    let rest = served(&gateway.client(), MODEL, 4).await;
    assert!(rest <= 2, "{rest} after the crash");
    let log = calls(&sim);
    assert_eq!(log.len(), 3 + rest);
    assert_never_refused(&log);
}
