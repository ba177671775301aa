//! Whose quota it is, and what it costs to keep to it.

use std::time::Duration;

use keyfleet_simulator::{Limit, World};
use keyfleet_tests::{Gateway, Sim, eventually, steady_load};
use serde_json::json;

use super::{MODEL, SOON, assert_never_refused, assert_requests_kept, calls, limited, served};

const OTHER_MODEL: &str = "gemini-2.5-pro";
const IN_FORCE: &str = "the configuration was read again and is in force";

/// Each project has a quota for each model, whatever the number of its keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_have_quotas_of_their_own_and_keys_of_a_project_share_them() {
    const RPM: u64 = 3;
    let sim = Sim::start(World::pool(1, 2).limited(&Limit::rpm(RPM))).await;
    let gateway = Gateway::start(limited(&sim, &json!({"rpm": RPM}))).await;
    for model in [MODEL, OTHER_MODEL] {
        assert_eq!(served(&gateway.client(), model, 6).await, 3, "{model}");
    }
    let log = calls(&sim);
    let uses = assert_requests_kept(&log, RPM);
    assert_eq!(uses.len(), 2, "{uses:?}");
    assert_never_refused(&log);
    let keys: std::collections::HashSet<_> = log.iter().map(|call| &call.key_id).collect();
    assert_eq!(keys.len(), 2, "both keys serve");
}

/// With permits in hand there is nothing to wait for. The first requests, and those of a demand that grows, may have to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_find_a_permit_do_not_wait() {
    const PER_SECOND: u64 = 20;
    let sim = Sim::start(World::pool(2, 1)).await;
    let gateway = Gateway::start(limited(&sim, &json!({"rpm": 100_000, "tpm": 100_000_000}))).await;
    let client = gateway.client();
    let load = |seconds| steady_load(PER_SECOND, Duration::from_secs(seconds), || client.chat(MODEL, false));
    let waits = async || gateway.metric("keyfleet_lease_waits_total").await.expect("it is counted");
    load(3).await;
    let before = waits().await;
    assert!(before >= 1.0, "the first request waits");
    let answers = load(8).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(waits().await.to_string(), before.to_string(), "of {} requests", answers.len());
}

/// Permits that are out may still be used; nothing is granted beyond the new limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_lowered_holds_from_then_on() {
    // Two lots: each is at most a need and a quarter of what is left.
    const IN_HAND: usize = 12;
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut gateway = Gateway::start(limited(&sim, &json!({"rpm": 30}))).await;
    assert_eq!(served(&gateway.client(), MODEL, 5).await, 5);
    gateway.write_config(&limited(&sim, &json!({"rpm": 6})));
    gateway.signal("HUP");
    gateway.says(IN_FORCE).await;
    let more = eventually("it is refused", SOON, || async {
        let more = served(&gateway.client(), MODEL, 20).await;
        (more < 20).then_some(more)
    })
    .await;
    assert!((1..=1 + IN_HAND).contains(&more), "{more} more than the 5 of 6");
    assert_eq!(served(&gateway.client(), MODEL, 5).await, 0);
    assert_eq!(calls(&sim).len(), 5 + more);
}

/// What a larger limit allows is there at once, not when the first permits of the smaller one come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_raised_is_used_at_once() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut gateway = Gateway::start(limited(&sim, &json!({"rpm": 3}))).await;
    assert_eq!(served(&gateway.client(), MODEL, 6).await, 3);
    gateway.write_config(&limited(&sim, &json!({"rpm": 30})));
    gateway.signal("HUP");
    gateway.says(IN_FORCE).await;
    eventually("more is served", SOON, || async {
        (served(&gateway.client(), MODEL, 5).await == 5).then_some(())
    })
    .await;
    assert_requests_kept(&calls(&sim), 30);
}
