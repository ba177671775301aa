//! One model has one quota, however its name is spelled, and under whichever name it is asked for.

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Client, Gateway, Sim, read};
use reqwest::Method;
use serde_json::json;

use super::{MODEL, assert_requests_kept, calls, come_back_in, limited};

const OTHER_MODEL: &str = "gemini-2.5-pro";

async fn post(client: &Client, path: &str, body: String) -> keyfleet_tests::Answer {
    let request = client.request(Method::POST, path).bearer_auth("placeholder");
    read(request.header("content-type", "application/json").body(body)).await.expect("an answer")
}

fn contents() -> String {
    json!({"contents": [{"role": "user", "parts": [{"text": "Say something."}]}]}).to_string()
}

/// The upstream reads every spelling as the same model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spelling_of_a_model_draws_from_the_same_quota() {
    const RPM: u64 = 3;
    let chat = |key: &str, model: &str| {
        let messages = r#"[{"role":"user","content":"Say something."}]"#;
        ("/v1/chat/completions", format!(r#"{{"{key}":"{model}","messages":{messages}}}"#))
    };
    let spellings = [
        ("/v1beta/models/gemini-2.5-flash:generateContent", contents()),
        ("/v1beta/models/gemini%2D2.5-flash:generateContent", contents()),
        ("/v1beta/models/%67emini-2%2e5-flash%3AgenerateContent", contents()),
        ("/v1beta/models%2Fgemini-2.5-flash:generateContent", contents()),
        chat("model", r"gem\u0069ni-2.5-flash"),
        chat(r"mod\u0065l", MODEL),
        chat("model", r"models\/gemini-2.5-flash"),
        chat(r"\u006dodel", r"\u006dodels/gemini-2.5-flash"),
    ];
    // The first one of a gateway finds the whole quota there, whichever spelling it is.
    for first in 0..spellings.len() {
        // Its limits are the gateway's alone: nothing but the count keeps a request from it.
        let sim = Sim::start(World::pool(2, 1)).await;
        let gateway = Gateway::start(limited(&sim, &json!({"models": MODEL, "rpm": RPM}))).await;
        let mut served = 0;
        for (path, body) in spellings.iter().cycle().skip(first).take(spellings.len() + 2) {
            let answer = post(&gateway.client(), path, body.clone()).await;
            assert!([200, 429].contains(&answer.status), "{path} {body}: {} {}", answer.status, answer.text);
            assert!(answer.status == 200 || !come_back_in(&answer).is_zero());
            served += u64::from(answer.status == 200);
        }
        let uses = assert_requests_kept(&calls(&sim), RPM);
        assert!(uses.iter().all(|of| of.model == MODEL), "{uses:?}");
        assert_eq!((served, uses.len()), (2 * RPM, 2), "{uses:?}");
    }
}

/// What is counted apart is counted apart with the other model too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counting_tokens_with_another_model_costs_none_of_its_quota() {
    let sim = Sim::start(World::pool(1, 1)).await;
    sim.rules(vec![Rule::family(Family::PerMinute429).path(&format!("{MODEL}:countTokens"))]);
    let mut config = limited(&sim, &json!({"models": OTHER_MODEL, "rpm": 1}));
    config["fallbacks"] = json!({MODEL: [OTHER_MODEL]});
    let gateway = Gateway::start(config).await;
    let client = gateway.client();
    for _ in 0..3 {
        let counted = post(&client, &format!("/v1beta/models/{MODEL}:countTokens"), contents()).await;
        assert_eq!(
            (counted.status, counted.header("x-keyfleet-model")),
            (200, OTHER_MODEL),
            "{}",
            counted.text
        );
    }
    for expected in [200, 429] {
        let path = format!("/v1beta/models/{OTHER_MODEL}:generateContent");
        let answer = post(&client, &path, contents()).await;
        assert_eq!(answer.status, expected, "{}", answer.text);
    }
    let generated =
        calls(&sim).iter().filter(|call| call.path_and_query.ends_with(":generateContent")).count();
    assert_eq!(generated, 1);
}
