//! Bar 2: what the quotas allow is used, and what they forbid is not tried.

mod blocked;
mod buckets;
mod day;
mod first;
mod minute;
mod spelled;
mod tokens;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use keyfleet_simulator::{KeyState, Limit, Received, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, Use, steady_load, uses};
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const PROJECTS: usize = 12;
const RPM: u64 = 10;
/// The simulator's "minute".
const WINDOW: Duration = Duration::from_secs(5);
const WINDOWS: u64 = 3;
/// How long after a refusal another request can still have been on its way.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// Far more than anything here takes on an idle machine.
const SOON: Duration = Duration::from_secs(15);
/// What Gemini counts requests and tokens by.
const MINUTE: Duration = Duration::from_mins(1);

/// The simulator's configuration, with these limits for every project and model.
fn limited(sim: &Sim, limits: &Value) -> Value {
    let mut config = sim.config();
    config["limits"] = json!([limits]);
    config
}

/// The model calls of clients; the prober's are none.
fn calls(sim: &Sim) -> Vec<Received> {
    let mut log = sim.log();
    log.retain(|request| request.method == "POST");
    log
}

async fn chat(client: &Client) -> Answer {
    client.chat(MODEL, false).await.expect("an answer")
}

/// Of so many requests, one after the other, those that were served. The others were refused in the right way.
async fn served(client: &Client, model: &str, requests: usize) -> usize {
    let mut served = 0;
    for _ in 0..requests {
        let answer = client.chat(model, false).await.expect("an answer");
        assert!([200, 429].contains(&answer.status), "{} {}", answer.status, answer.text);
        assert!(answer.status == 200 || come_back_in(&answer) > Duration::ZERO);
        served += usize::from(answer.status == 200);
    }
    served
}

fn come_back_in(answer: &Answer) -> Duration {
    let seconds = answer.header("retry-after").parse();
    Duration::from_secs(seconds.expect("a refusal says when to come back"))
}

/// No window of a minute held more requests than this.
fn assert_requests_kept(log: &[Received], limit: u64) -> Vec<Use> {
    let found = uses(log, MINUTE, limit, |_| 1);
    assert!(found.iter().all(|of| of.fullest <= 1.0), "more than {limit} in a minute: {found:?}");
    found
}

fn assert_never_refused(log: &[Received]) {
    let refused = log.iter().filter(|call| call.status == 429).count();
    assert_eq!(refused, 0, "the upstream refused {refused} of {} calls", log.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_living_keys_of_fifty_are_enough() {
    let mut world = World::pool(50, 1);
    for (at, key) in world.keys.iter_mut().enumerate() {
        if at % 10 != 9 {
            key.state = KeyState::Invalid;
        }
    }
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    for _ in 0..10 {
        let answer = gateway.client().chat(MODEL, false).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    // Not by a request twice; the prober may look at each on its own.
    let mut refused: Vec<_> = sim.log().into_iter().filter(|request| request.status == 400).collect();
    refused.retain(|request| request.path_and_query.ends_with("/chat/completions"));
    let keys: HashSet<_> = refused.iter().filter_map(|request| request.key_id.clone()).collect();
    assert_eq!(keys.len(), refused.len(), "a dead key was tried again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_the_load_uses_the_quotas_and_wastes_nothing() {
    let mut world = World::pool(PROJECTS, 1).limited(&Limit::rpm(RPM));
    world.window_ms = u64::try_from(WINDOW.as_millis()).expect("a short window");
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;

    let possible = RPM * PROJECTS as u64 * WINDOWS;
    let seconds = WINDOW.as_secs() * WINDOWS;
    let client = gateway.client();
    let answers =
        steady_load(2 * possible / seconds, Duration::from_secs(seconds), || client.chat(MODEL, false)).await;

    let accepted = answers.iter().filter(|answer| answer.status == 200).count() as u64;
    let other: Vec<_> = answers.iter().filter(|answer| ![200, 429].contains(&answer.status)).collect();
    assert!(other.is_empty(), "neither answered nor refused: {} {}", other[0].status, other[0].text);
    assert!(accepted * 100 >= possible * 95, "{accepted} of {possible} possible answers");
    for answer in answers.iter().filter(|answer| answer.status == 429) {
        let after: u64 = answer.header("retry-after").parse().expect("a refusal says when to come back");
        assert!(after <= WINDOW.as_secs() + 2, "come back after {after} s of a window of {WINDOW:?}");
    }
    assert_no_call_inside_a_window(&sim.log());
}

/// No request follows a refusal within the same window, but those that were on their way.
fn assert_no_call_inside_a_window(log: &[Received]) {
    struct Bucket {
        begins: Duration,
        refused: Option<Duration>,
        wasted: u32,
    }
    let mut buckets: HashMap<&str, Bucket> = HashMap::new();
    for request in log {
        let project = request.project.as_deref().expect("every key is known");
        let at = Duration::from_micros(request.mono_us);
        let fresh = Bucket { begins: at, refused: None, wasted: 0 };
        let bucket = buckets.entry(project).or_insert_with(|| Bucket { ..fresh });
        if at >= bucket.begins + WINDOW {
            *bucket = Bucket { begins: at, refused: None, wasted: 0 };
        }
        if let Some(refused) = bucket.refused {
            let late = at.saturating_sub(refused);
            assert!(late <= IN_FLIGHT, "{project} was called {late:?} after its refusal, inside the window");
        }
        if request.status == 429 {
            bucket.refused.get_or_insert(at);
            bucket.wasted += 1;
            assert!(bucket.wasted <= 3, "{project}: {} refusals in one window", bucket.wasted);
        }
    }
}
