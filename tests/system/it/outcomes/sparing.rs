//! What is still tried when little is left: a pool of one key, and a minute without tokens.

use keyfleet_simulator::{Family, Limit, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim};
use serde_json::json;

use super::{MODEL, calls, chat};

/// The second retry would go to another key. Where there is none, the only one has had time to recover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_key_gets_every_retry() {
    let sim = Sim::start(World::pool(1, 1)).await;
    sim.rules(vec![Rule::family(Family::Overloaded).path("chat/completions").times(2)]);
    let gateway = Gateway::start(sim.config()).await;
    let answer = chat(&gateway.client(), MODEL).await;
    assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (200, "3"), "{}", answer.text);
    let log = calls(&sim);
    let statuses: Vec<_> = log.iter().map(|request| request.status).collect();
    assert_eq!(statuses, [503, 503, 200]);
    assert!(log[2].mono_us - log[1].mono_us >= 100_000, "after a back-off");
}

/// The same, where the other keys are known to be of no use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_usable_key_gets_every_retry() {
    let sim = Sim::start(World::pool(2, 2)).await;
    sim.rules(vec![Rule::family(Family::PerDay429).project("p1").model(MODEL)]);
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for _ in 0..4 {
        assert_eq!(chat(&client, MODEL).await.status, 200);
    }
    // They take turns: the one that served last is asked after the other one.
    let dead = calls(&sim).pop().and_then(|request| request.key_id).expect("a key");
    let busy = if dead == "k3" { "k4" } else { "k3" };
    sim.rules(vec![
        Rule::family(Family::ApiKeyInvalid).key(&dead),
        Rule::family(Family::Overloaded).key(busy).path("chat/completions").times(2),
    ]);
    let answer = chat(&client, MODEL).await;
    assert_eq!((answer.status, answer.header("x-keyfleet-key")), (200, busy), "{}", answer.text);
}

async fn ask(client: &Client, words: usize) -> Answer {
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "word ".repeat(words)}]});
    client.post("/v1/chat/completions", &body).await.expect("an answer")
}

/// A request that is too large for what is left of the minute says nothing against one of a tenth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_requests_pass_in_a_minute_without_tokens() {
    let limit = Limit { model: "*".into(), tpm: Some(3_000), ..Limit::default() };
    let sim = Sim::start(World::pool(2, 2).limited(&limit)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for _ in 0..2 {
        assert_eq!(ask(&client, 1_900).await.status, 200);
    }
    let mut seen = None;
    for _ in 0..2 {
        let refused = ask(&client, 1_900).await;
        assert_eq!(refused.status, 429, "{}", refused.text);
        assert!(!refused.header("retry-after").is_empty());
        let calls = calls(&sim).len();
        assert_eq!(*seen.get_or_insert(calls), calls, "a project that has refused once is not asked again");
    }
    sim.forget();
    let never = ask(&client, 4_000).await;
    assert_eq!((never.status, never.header("x-should-retry")), (400, "false"), "{}", never.text);
    assert_eq!(calls(&sim).len(), 0, "the limit is known from the refusals");
    for _ in 0..4 {
        let answer = ask(&client, 200).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    assert_eq!(ask(&client, 1_500).await.status, 429, "not much smaller than what was refused");
    let (served, refused): (Vec<_>, Vec<_>) = calls(&sim).into_iter().partition(|call| call.status == 200);
    // A project that had its part already is asked in vain if the other one's lease is late.
    assert!(served.len() == 4 && refused.len() <= 1, "{refused:#?}");
    let served: Vec<_> = served.into_iter().filter_map(|call| call.project).collect();
    assert!(served.contains(&"p1".to_owned()) && served.contains(&"p2".to_owned()), "{served:?}");
}

/// What a body refers to has tokens that its size does not show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_not_small_that_refers_to_something() {
    let limit = Limit { model: "*".into(), tpm: Some(3_000), ..Limit::default() };
    let sim = Sim::start(World::pool(1, 1).limited(&limit)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    assert_eq!(ask(&client, 1_900).await.status, 200);
    assert_eq!(ask(&client, 1_900).await.status, 429);
    sim.forget();
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hi"}],
        "extra_body": {"google": {"cached_content": "cachedContents/large"}},
    });
    let answer = client.post("/v1/chat/completions", &body).await.expect("an answer");
    assert_eq!(answer.status, 429, "{}", answer.text);
    assert!(calls(&sim).is_empty());
}
