//! Input tokens: estimated before a request, known after it.

use std::time::Duration;

use keyfleet_simulator::{Action, Limit, Received, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, eventually, steady_load, uses};
use serde_json::{Value, json};

use super::{MINUTE, MODEL, SOON, assert_never_refused, calls, limited};

const TPM: u64 = 6_000;
const PER_SECOND: u64 = 4;
const LENGTH: Duration = Duration::from_secs(75);
/// A report, and with it what the answers have told, goes to the coordinator every second.
const IN_FLIGHT: u64 = 2 * PER_SECOND;

fn body(bytes: usize) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "x".repeat(bytes)}]})
}

async fn ask(client: &Client, bytes: usize) -> Answer {
    client.post("/v1/chat/completions", &body(bytes)).await.expect("an answer")
}

/// As the simulator counts them.
fn tokens(call: &Received) -> u64 {
    call.body_len as u64 / 4
}

/// The upstream is sent a little more than the client sent, so every estimate is too small. What the answers tell of it
/// is made up for: only that of the requests in flight is exceeded.
pub(super) async fn three_times_the_load() {
    const BYTES: usize = 200;
    let sim = Sim::start(World::pool(1, 2)).await;
    let mut config = limited(&sim, &json!({"tpm": TPM}));
    config["server"]["top_p"] = json!(0.123_456_789_012_345_6);
    let gateway = Gateway::start(config).await;
    let client = gateway.client();
    let request = body(BYTES);
    let answers = steady_load(PER_SECOND, LENGTH, || client.post("/v1/chat/completions", &request)).await;
    assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status)));

    let log = calls(&sim);
    let estimate = request.to_string().len().div_ceil(4) as u64;
    let missed = tokens(&log[0]) - estimate;
    assert!(missed >= 5, "the estimates are {missed} tokens too small");
    let found = uses(&log, MINUTE, TPM + IN_FLIGHT * missed, tokens);
    assert!(found.iter().all(|of| of.fullest <= 1.0), "{found:?}, {missed} missed in each");
    let used = uses(&log, MINUTE, TPM, tokens)[0].fullest;
    println!("tokens: the fullest minute held {used} of the quota; {missed} were missed in each request");
    assert!(used > 0.9, "only {used} of the quota");
}

/// What an interaction tells of its tokens is charged, in a stream as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_of_an_interaction_are_made_up_for() {
    const LARGE: u64 = 1_000_000;
    let limit = Limit { model: "*".into(), tpm: Some(2 * LARGE), ..Limit::default() };
    for stream in [false, true] {
        let sim = Sim::start(World::pool(1, 1).limited(&limit)).await;
        let gateway = Gateway::start(limited(&sim, &json!({"tpm": LARGE}))).await;
        let usage = json!({"total_input_tokens": LARGE, "total_output_tokens": 1, "total_tokens": LARGE + 1});
        let made = json!({"id": "i", "status": "completed", "usage": usage});
        let event = json!({"event_type": "interaction.completed", "interaction": made});
        let text = if stream { format!("data: {event}\n\n") } else { made.to_string() };
        let kind = if stream { "text/event-stream" } else { "application/json" };
        let told =
            Action::Status { status: 200, body: text, headers: Vec::new(), content_type: Some(kind.into()) };
        sim.rules(vec![Rule::new(told).path("/interactions").times(1)]);
        let body = json!({"model": MODEL, "input": "Say something.", "stream": stream});
        let ask = || gateway.client().post("/v1beta/interactions", &body);
        assert_eq!(ask().await.expect("an answer").status, 200);
        // By their size alone a hundred thousand of these requests would fit.
        eventually("the quota is known to be spent", SOON, || async {
            (ask().await.expect("an answer").status == 429).then_some(())
        })
        .await;
        assert_never_refused(&calls(&sim));
    }
}

/// What is too much for the quota says nothing against what is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_large_is_in_nobodys_way() {
    let limit = Limit { model: "*".into(), tpm: Some(TPM), ..Limit::default() };
    let sim = Sim::start(World::pool(1, 1).limited(&limit)).await;
    let gateway = Gateway::start(limited(&sim, &json!({"tpm": TPM}))).await;
    let client = gateway.client();
    for _ in 0..3 {
        let large = ask(&client, 40_000).await;
        assert_eq!((large.status, large.header("x-should-retry")), (400, "false"), "{}", large.text);
        assert!(large.text.contains("larger than the limit") && large.header("retry-after").is_empty());
        let small = ask(&client, 400).await;
        assert_eq!(small.status, 200, "{}", small.text);
    }
    let log = calls(&sim);
    assert_never_refused(&log);
    assert_eq!(log.len(), 3, "the large ones were not tried");
}
