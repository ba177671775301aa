//! Bar 3: a model's bad half minute costs bounded upstream calls, no key, and is over when it is over.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually, steady_load};

const MODEL: &str = "gemini-2.5-flash";
const OTHER_MODEL: &str = "gemini-2.5-pro";
const STORM: Duration = Duration::from_secs(30);
const PER_SECOND: u64 = 20;
const KEYS: usize = 6;
/// One call and `internal_retries`.
const CALLS_PER_REQUEST: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_bounded_and_leaves_nothing_behind() {
    let sim = Sim::start(World::pool(KEYS, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    sim.rules(vec![Rule::family(Family::Overloaded).model(MODEL)]);

    let answers = steady_load(PER_SECOND, STORM, || client.chat(MODEL, false)).await;
    for answer in &answers {
        assert_eq!(answer.status, 503, "the model's own status: {}", answer.text);
    }
    let upstream = sim.log().len();
    assert!(upstream <= answers.len() * CALLS_PER_REQUEST, "{upstream} calls for {} requests", answers.len());
    assert!(upstream * 2 <= answers.len(), "the breaker stayed shut: {upstream} calls for {}", answers.len());
    let other = client.chat(OTHER_MODEL, false).await.expect("an answer");
    assert_eq!(other.status, 200, "another model suffers: {}", other.text);

    sim.rules(Vec::new());
    let end = Instant::now();
    eventually("service is back", Duration::from_secs(5), || {
        let answer = client.chat(MODEL, false);
        async move { answer.await.is_ok_and(|answer| answer.status == 200).then_some(()) }
    })
    .await;
    let restored = end.elapsed();
    for _ in 0..PER_SECOND {
        let answer = client.chat(MODEL, false).await.expect("an answer");
        assert_eq!(answer.status, 200, "{restored:?} after the storm: {}", answer.text);
    }

    sim.forget();
    eventually("every key is in use again", Duration::from_secs(30), || {
        let answer = client.chat(MODEL, false);
        let sim = &sim;
        async move {
            answer.await.expect("an answer");
            let used: HashSet<_> = sim.log().into_iter().filter_map(|request| request.key_id).collect();
            (used.len() == KEYS).then_some(())
        }
    })
    .await;
}
