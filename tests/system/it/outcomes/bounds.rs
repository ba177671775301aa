//! What ends an answer or a quota without anybody's fault: the caller's own time, what is spent, what models share.

use std::time::Duration;

use keyfleet_simulator::{Action, Limit, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, eventually, read};
use serde_json::json;

use super::{MODEL, OTHER_MODEL, calls, chat, generate, native};

const SOON: Duration = Duration::from_secs(20);

async fn hurried(client: &Client, path: &str) -> Answer {
    let body = json!({"contents": [{"role": "user", "parts": [{"text": "Say something."}]}]});
    let request = client.request(reqwest::Method::POST, &format!("/v1beta/models/{MODEL}:{path}"));
    let request = request.header("x-goog-api-key", "placeholder").header("x-server-timeout", "1");
    read(request.body(body.to_string())).await.expect("an answer")
}

/// A client in a hurry must not close a model to everybody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_the_caller_has_set_is_its_own_affair() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for (path, action) in [
        ("generateContent", Action::StallBeforeHeaders { ms: None }),
        ("streamGenerateContent?alt=sse", Action::StallMidStream { after_chunks: 2, ms: None }),
    ] {
        sim.rules(vec![Rule::new(action).path("enerateContent")]);
        sim.forget();
        // More of them than failures in a row open the model's breaker.
        let answers = futures_util::future::join_all((0..8).map(|_| hurried(&client, path))).await;
        for answer in answers {
            let error = "Deadline expired before operation could complete.";
            assert!(answer.text.contains(error), "{path}: {} {}", answer.status, answer.text);
            assert_eq!(answer.status, if path == "generateContent" { 504 } else { 200 });
            assert_eq!(answer.header("x-keyfleet-attempts"), "1", "{path}: nobody waits for another answer");
        }
        assert!(calls(&sim).iter().all(|request| request.header("x-server-timeout") == Some("1")));
        sim.rules(Vec::new());
        let next = native(&client, MODEL).await;
        assert_eq!((next.status, next.header("x-keyfleet-attempts")), (200, "1"), "{}", next.text);
    }
}

/// The same answer without such a limit, or before it, is the upstream's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_the_upstreams_own_is_tried_again() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for timeout in [None, Some("600")] {
        sim.rules(vec![Rule::family(keyfleet_simulator::Family::Deadline).path("enerateContent").times(1)]);
        let request = generate(&client, MODEL).header("x-goog-api-key", "placeholder");
        let request =
            timeout.into_iter().fold(request, |request, time| request.header("x-server-timeout", time));
        let answer = read(request).await.expect("an answer");
        assert_eq!((answer.status, answer.header("x-keyfleet-attempts")), (200, "2"), "{timeout:?}");
    }
}

/// A project that has spent too much in ten minutes is back in ten minutes, not when an account has been filled up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_that_spends_too_fast_pauses_and_returns() {
    let mut world = World::pool(2, 2);
    world.projects[0].spend_limit = Some(1);
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for _ in 0..12 {
        let answer = chat(&client, MODEL).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let of_first = |status: u16| {
        let log = calls(&sim);
        log.iter().filter(|r| r.project.as_deref() == Some("p1") && r.status == status).count()
    };
    assert_eq!(of_first(200), 1, "one answer was more than it may spend");
    assert!((1..=2).contains(&of_first(429)), "{} wasted calls", of_first(429));
    sim.advance_ms(600_000);
    sim.forget();
    eventually("the project serves again", SOON, || async {
        assert_eq!(chat(&client, MODEL).await.status, 200);
        (of_first(200) > 0).then_some(())
    })
    .await;
}

/// What one model uses is missing to another: each finds that out once, and no client does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_models_share_are_missed_by_each_of_them_once() {
    let mut world = World::pool(2, 2);
    world.projects[0].shared_tpm = Some(60);
    world.projects[1].limits = vec![Limit { model: "*".into(), tpm: Some(1_000_000), ..Limit::default() }];
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for _ in 0..10 {
        for model in [MODEL, OTHER_MODEL] {
            let answer = chat(&client, model).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
    for model in [MODEL, OTHER_MODEL] {
        let log = calls(&sim);
        let asked = log.iter().filter(|r| r.model.as_deref() == Some(model));
        let wasted = asked.filter(|request| request.status == 429).count();
        assert_eq!(wasted, 1, "{model}");
    }
    assert!(sim.stats().bucket("p1", "*").max_tokens_in_window <= 60);
}

/// Whoever asks for few tokens, or for what is not allowed, gets an answer that says nothing but that. It is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_words_is_passed_on_with_its_reason() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for (reason, compat_reason) in [("MAX_TOKENS", "length"), ("SAFETY", "SAFETY"), ("STOP", "stop")] {
        sim.rules(vec![Rule::new(Action::Blank { finish_reason: reason.into() })]);
        for stream in [false, true] {
            sim.forget();
            let answer = client.chat(MODEL, stream).await.expect("an answer");
            let told = format!("\"finish_reason\":\"{compat_reason}\"");
            assert!(answer.status == 200 && answer.text.contains(&told), "{reason}: {}", answer.text);
            assert_eq!(answer.text.contains("[DONE]"), stream);
            let answer = native(&client, MODEL).await;
            assert_eq!(answer.json()["candidates"][0]["finishReason"], reason, "{}", answer.text);
            assert_eq!(calls(&sim).len(), 2, "{reason} was asked for again");
        }
    }
}
