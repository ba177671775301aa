//! Answers that end badly.

use futures_util::future::join_all;
use keyfleet_simulator::{Action, AnswerSpec, Family, World};
use keyfleet_tests::{Answer, Gateway, Sim, eventually};
use serde_json::{Value, json};

use super::{Form, SOON, alike, calls, events, fault};

/// Checks that a stream of events ended with one error that a client can read, and with nothing that says "done".
fn assert_ends_with_error(form: Form, answer: &Answer, told: &str) -> Value {
    assert!(answer.whole, "the body ends as it should: {told}");
    assert!(!answer.text.contains("[DONE]"), "a failed stream is not done: {told}");
    let mut events = events(&answer.text);
    let last = events.pop().expect("an event");
    let error = &last["error"];
    assert!(error["code"].is_u64() && error["message"].is_string(), "the last event is an error: {told}");
    assert!(events.iter().all(|event| event["error"].is_null()), "one error: {told}");
    let kind = if form.is_chat() { &error["type"] } else { &error["status"] };
    assert!(kind.is_string(), "in the dialect of its surface: {told}");
    error.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_a_stream_is_its_last_event() {
    let sim = Sim::start(World::pool(24, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for (family, status) in [(Family::Overloaded, 503), (Family::PerMinute429, 429), (Family::Suspended, 403)]
    {
        let event = |after_chunks, wrapped| Action::ErrorEvent { after_chunks, family, wrapped };
        let broken =
            [event(1, false), event(3, false), event(2, true), Action::RawTail { after_chunks: 2, family }];
        for action in broken {
            for form in Form::EVENTS {
                sim.rules(vec![fault(action.clone()).times(1)]);
                sim.forget();
                let answer = form.ask(&gateway).await;
                let told = format!("{form:?} {action:?}: {}", answer.text);
                assert_eq!(answer.status, 200, "{told}");
                let error = assert_ends_with_error(form, &answer, &told);
                assert_eq!(error["code"], status, "the upstream's own: {told}");
                let name = if form.is_chat() { &error["type"] } else { &error["status"] };
                let expected = match (form.is_chat(), family) {
                    (true, Family::Overloaded) => "upstream_error",
                    (true, Family::PerMinute429) => "rate_limit_error",
                    (true, _) => "permission_error",
                    (false, Family::Overloaded) => "UNAVAILABLE",
                    (false, Family::PerMinute429) => "RESOURCE_EXHAUSTED",
                    (false, _) => "PERMISSION_DENIED",
                };
                assert_eq!(name, expected, "{told}");
                assert_eq!(calls(&sim).len(), 1, "nothing is tried again once the client has seen something");
            }
        }
    }
}

/// What has been found inside a stream counts as much as what comes with a status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_error_in_a_stream_closes_the_project() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let action = Action::ErrorEvent { after_chunks: 1, family: Family::PerMinute429, wrapped: false };
    sim.rules(vec![fault(action).times(1)]);
    let gateway = Gateway::start(sim.config()).await;
    Form::ChatEvents.ask(&gateway).await;
    let closed = calls(&sim)[0].project.clone();
    sim.forget();
    for _ in 0..6 {
        assert_eq!(Form::ChatPlain.ask(&gateway).await.status, 200);
    }
    assert!(calls(&sim).iter().all(|request| request.project != closed));
}

/// A stream that has begun is no success yet: a key whose streams all break is used less and less, while those of others
/// come through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_streams_break_loses_its_share() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let action = Action::ErrorEvent { after_chunks: 1, family: Family::Internal, wrapped: false };
    sim.rules(vec![fault(action).key("k1")]);
    let mut config = sim.config();
    // Else the key would soon be blocked altogether.
    config["max_failures_threshold"] = json!(1_000_000);
    let gateway = Gateway::start(config).await;
    eventually("the other key gets far more", 2 * SOON, || async {
        sim.forget();
        for _ in 0..40 {
            assert_eq!(Form::ChatEvents.ask(&gateway).await.status, 200);
        }
        let broken = calls(&sim).iter().filter(|request| request.key_id.as_deref() == Some("k1")).count();
        (broken <= 12).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_before_the_answer_is_another_keys_chance() {
    let sim = Sim::start(World::pool(20, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for family in [Family::Overloaded, Family::PerMinute429] {
        let event = |wrapped| Action::ErrorEvent { after_chunks: 0, family, wrapped };
        for action in [event(false), event(true), Action::RawTail { after_chunks: 0, family }] {
            for form in Form::EVENTS {
                retried(&sim, &gateway, form, &action).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_answer_is_no_answer() {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    for form in Form::ALL {
        for action in [Action::EmptyStream, Action::Empty200] {
            retried(&sim, &gateway, form, &action).await;
        }
    }
    for form in [Form::ChatPlain, Form::ChatEvents] {
        retried(&sim, &gateway, form, &Action::EmptyCandidates).await;
    }
    // The native surface says why it gives no candidate, and that is an answer.
    for form in [Form::NativePlain, Form::NativeEvents, Form::NativeArray] {
        sim.rules(vec![fault(Action::EmptyCandidates)]);
        sim.forget();
        let answer = form.ask(&gateway).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{form:?}: {}", answer.text);
        assert!(answer.text.contains("blockReason"), "{form:?}: {}", answer.text);
        assert_eq!(calls(&sim).len(), 1, "{form:?}");
    }
    for (form, action) in [(Form::ChatEvents, Action::EmptyStream), (Form::NativePlain, Action::Empty200)] {
        sim.rules(vec![fault(action)]);
        sim.forget();
        let answer = form.ask(&gateway).await;
        assert_eq!(answer.status, 502, "{form:?}: {}", answer.text);
        assert_eq!(calls(&sim).len(), 3, "one call and two more");
        // Otherwise the next form would meet an open breaker.
        sim.rules(Vec::new());
        assert_eq!(form.ask(&gateway).await.status, 200);
    }
}

/// The first call fails, the client never knows.
async fn retried(sim: &Sim, gateway: &Gateway, form: Form, action: &Action) {
    sim.rules(Vec::new());
    let good = form.ask_directly(sim).await;
    sim.rules(vec![fault(action.clone()).times(1)]);
    sim.forget();
    let answer = form.ask(gateway).await;
    let told = format!("{form:?} {action:?}: {} {}", answer.status, answer.text);
    assert_eq!((answer.status, answer.whole), (200, true), "{told}");
    assert_eq!(alike(&answer.text), alike(&good.text), "{told}");
    assert_eq!(calls(sim).len(), 2, "{told}");
}

/// Wherever an answer breaks off, the client gets a whole one, or knows that it has not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_cut_anywhere_is_never_taken_for_a_whole_one() {
    join_all(Form::ALL.map(cut_anywhere)).await;
}

async fn cut_anywhere(form: Form) {
    let sim = Sim::start(World::pool(3, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let good = form.ask_directly(&sim).await.text;
    for bytes in (0..good.len()).step_by(37).chain([good.len() - 1]) {
        sim.rules(vec![fault(Action::TruncateAt { bytes }).times(1)]);
        let answer = form.ask(&gateway).await;
        let told = format!("{form:?} cut at {bytes} of {}: {} {}", good.len(), answer.status, answer.text);
        assert_eq!(answer.status, 200, "{told}");
        if answer.whole && alike(&answer.text) == alike(&good) {
            continue;
        }
        match form {
            Form::ChatPlain | Form::NativePlain => assert!(!answer.whole, "{told}"),
            Form::NativeArray if !answer.whole => {}
            Form::NativeArray => {
                let parsed = answer.json();
                let last = parsed.as_array().and_then(|list| list.last()).expect("a list");
                assert_eq!(last["error"]["code"], 502, "{told}");
            }
            Form::ChatEvents | Form::NativeEvents => {
                assert_ends_with_error(form, &answer, &told);
            }
        }
    }
}

/// What is too large to be held back breaks off where the upstream does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_that_breaks_off_does_not_end() {
    let mut world = World::pool(3, 1);
    world.answer = AnswerSpec { plain_bytes: 400_000, ..AnswerSpec::default() };
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    for form in [Form::ChatPlain, Form::NativePlain] {
        sim.rules(Vec::new());
        let good = form.ask(&gateway).await;
        assert!(good.whole && good.text.len() > 400_000, "{form:?}: {}", good.text.len());
        sim.rules(vec![fault(Action::TruncateAt { bytes: 300_000 })]);
        sim.forget();
        let answer = form.ask(&gateway).await;
        assert_eq!((answer.status, answer.whole), (200, false), "{form:?}: {}", answer.text.len());
        assert_eq!(calls(&sim).len(), 1, "{form:?}: the client had seen a part of it");
    }
}
