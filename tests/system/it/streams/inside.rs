//! Errors that come with a 200, wherever a client would take one for success.

use std::time::Duration;

use keyfleet_simulator::{Action, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, eventually, read};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Form, MODEL, calls, fault};

/// A 200 with this body.
fn body(content_type: &str, body: impl Into<String>) -> Action {
    Action::Status {
        status: 200,
        body: body.into(),
        headers: Vec::new(),
        content_type: Some(content_type.into()),
    }
}

fn json_body(text: impl Into<String>) -> Rule {
    fault(body("application/json; charset=UTF-8", text))
}

fn events_body(text: impl Into<String>) -> Rule {
    fault(body("text/event-stream", text))
}

/// An error in Google's words.
fn google(code: u16, status: &str, message: &str) -> Value {
    json!({"error": {"code": code, "message": message, "status": status}})
}

async fn start(projects: usize) -> (Sim, Gateway) {
    let sim = Sim::start(World::pool(projects, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    (sim, gateway)
}

async fn ask(client: &Client, path: &str, body: &Value) -> Answer {
    let request = client.request(Method::POST, path);
    let request = if path.contains("/openai/") {
        request.bearer_auth("placeholder")
    } else {
        request.header("x-goog-api-key", "placeholder")
    };
    read(request.header("content-type", "application/json").body(body.to_string())).await.expect("an answer")
}

fn interaction(stream: bool) -> Value {
    json!({"model": MODEL, "input": "Say something.", "stream": stream})
}

const INTERACTIONS: &str = "/v1beta/interactions";

/// Calls that are neither chat nor generation.
fn others() -> Vec<(&'static str, Value)> {
    let contents = json!([{"role": "user", "parts": [{"text": "x"}]}]);
    let content = json!({"parts": [{"text": "x"}]});
    vec![
        ("/v1beta/openai/embeddings", json!({"model": "gemini-embedding-001", "input": "x"})),
        ("/v1beta/openai/images/generations", json!({"model": "imagen-4.0-generate-001", "prompt": "x"})),
        ("/v1beta/openai/batches", json!({"endpoint": "/v1/chat/completions", "input_file_id": "x"})),
        ("/v1beta/models/gemini-2.5-flash:countTokens", json!({"contents": contents})),
        ("/v1beta/models/gemini-embedding-001:embedContent", json!({"content": content})),
        ("/v1beta/models/gemini-2.5-flash:batchGenerateContent", json!({"batch": {"displayName": "x"}})),
        ("/v1beta/cachedContents", json!({"model": "models/gemini-2.5-flash", "contents": contents})),
        (INTERACTIONS, interaction(false)),
    ]
}

/// The data of every event, and whether each has an end; names of events may stand before it.
fn data(text: &str) -> Vec<Value> {
    let all = text.strip_suffix("\n\n").expect("the last event has an end");
    let data = |event: &str| {
        let lines: Vec<_> = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(lines.len(), 1, "one line of data in {event:?}");
        serde_json::from_str(lines[0]).expect("JSON")
    };
    all.split("\n\n").map(data).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_any_json_is_another_keys_chance() {
    let (sim, gateway) = start(24).await;
    for (path, request) in others() {
        for error in [
            google(503, "UNAVAILABLE", "The model is overloaded.").to_string(),
            format!("[{:#}\n]\n", google(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted.")),
            json!({"error": {"code": "rate_limit_exceeded", "message": "x"}}).to_string(),
        ] {
            let good = r#"{"what": "was asked for"}"#;
            sim.rules(vec![json_body(error.as_str()).times(1), json_body(good)]);
            sim.forget();
            let answer = ask(&gateway.client(), path, &request).await;
            let calls = calls(&sim);
            assert_eq!(calls.len(), 2, "{path} {error}: {} {}", answer.status, answer.text);
            assert_eq!((answer.status, answer.text.as_str()), (200, good), "{path} {error}");
            if error.contains("xhausted") {
                assert_ne!(calls[0].project, calls[1].project, "{path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_any_json_is_told_as_one() {
    let (sim, gateway) = start(2).await;
    let secret = sim.secrets()[0].clone();
    for (path, request) in others() {
        let message = format!("Consumer 'api_key:{secret}' sent an invalid argument.");
        let error = json!([google(400, "INVALID_ARGUMENT", &message)]);
        sim.rules(vec![json_body(format!("{error:#}"))]);
        sim.forget();
        let answer = ask(&gateway.client(), path, &request).await;
        assert_eq!((answer.status, calls(&sim).len()), (400, 1), "{path}: {}", answer.text);
        let told = answer.json()["error"]["message"].as_str().expect("a message").to_owned();
        assert!(told.starts_with("Consumer") && !told.contains(&secret), "{path}: {told}");
    }
}

/// Nothing at all is no answer, unless nothing was to be made. What the caller may have made is not made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_answer_is_another_keys_chance() {
    let (sim, gateway) = start(24).await;
    let unstored = |stream: bool| {
        let mut body = interaction(stream);
        body["store"] = json!(false);
        body
    };
    let contents = json!([{"role": "user", "parts": [{"text": "x"}]}]);
    let content = json!({"parts": [{"text": "x"}]});
    let json_type = "application/json; charset=UTF-8";
    let embed = "/v1beta/models/gemini-embedding-001:embedContent";
    for (path, request, kind, empty, tried) in [
        (
            "/v1beta/openai/embeddings",
            json!({"model": "gemini-embedding-001", "input": "x"}),
            json_type,
            "",
            2,
        ),
        (
            "/v1beta/openai/embeddings",
            json!({"model": "gemini-embedding-001", "input": "x"}),
            json_type,
            "{}",
            2,
        ),
        (embed, json!({"content": content}), json_type, "{}\n", 2),
        ("/v1beta/models/gemini-2.5-flash:countTokens", json!({"contents": contents}), json_type, "", 2),
        ("/v1beta/openai/images/generations", json!({"model": "imagen", "prompt": "x"}), json_type, "", 2),
        (INTERACTIONS, unstored(false), json_type, "{}", 2),
        (INTERACTIONS, unstored(true), "text/event-stream", ": x\n\n", 2),
        (INTERACTIONS, interaction(false), json_type, "", 1),
        (INTERACTIONS, interaction(true), "text/event-stream", "", 1),
    ] {
        let good = r#"{"what": "was asked for"}"#;
        sim.rules(vec![fault(body(kind, empty)).times(1), json_body(good)]);
        sim.forget();
        let answer = ask(&gateway.client(), path, &request).await;
        let told = format!("{path} {request} {empty:?}: {} {}", answer.status, answer.text);
        assert_eq!(calls(&sim).len(), tried, "{told}");
        assert_eq!(answer.status, if tried == 2 { 200 } else { 502 }, "{told}");
    }
    // Without tokens there may be nothing to tell.
    sim.rules(vec![json_body("{}")]);
    sim.forget();
    let request = json!({"contents": []});
    let answer = ask(&gateway.client(), "/v1beta/models/gemini-2.5-flash:countTokens", &request).await;
    assert_eq!((answer.text.as_str(), calls(&sim).len()), ("{}", 1));
}

/// A quota error counts for the project, whatever it came with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_error_in_json_closes_the_project() {
    let (sim, gateway) = start(2).await;
    let (path, request) = ("/v1beta/models/gemini-2.5-flash:countTokens", json!({"contents": []}));
    let details = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "50s"}]);
    let mut error = google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.");
    error["error"]["details"] = details;
    sim.rules(vec![json_body(error.to_string()).times(1)]);
    ask(&gateway.client(), path, &request).await;
    let closed = calls(&sim)[0].project.clone();
    sim.forget();
    for _ in 0..6 {
        ask(&gateway.client(), path, &request).await;
    }
    let calls = calls(&sim);
    assert!(calls.len() == 6 && calls.iter().all(|call| call.project != closed));
}

/// What failed long ago is what was asked for; and a file may say anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_was_asked_for_passes() {
    let (sim, gateway) = start(2).await;
    let failed = r#"{"name":"batches/b","done":true,"error":{"code":8,"message":"x"}}"#;
    let alone = google(503, "UNAVAILABLE", "x").to_string();
    for (path, text) in [
        ("/v1beta/batches/b", failed),
        ("/v1beta/openai/batches/b", r#"{"error":{"code":"x","message":"y"},"id":"batches/b"}"#),
        ("/download/v1beta/files/f:download?alt=media", alone.as_str()),
        ("/v1beta/files/f?alt=media", alone.as_str()),
    ] {
        let mut rule = json_body(text).path(if path.contains("files") { "files/f" } else { "batches/b" });
        rule.when.method = Some("GET".into());
        sim.rules(vec![rule]);
        let request = gateway.client().request(Method::GET, path);
        let request = if path.contains("/openai/") {
            request.bearer_auth("placeholder")
        } else {
            request.header("x-goog-api-key", "placeholder")
        };
        let answer = read(request).await.expect("an answer");
        assert_eq!((answer.status, answer.text.as_str()), (200, text), "{path}");
    }
}

/// Errors that echo the request are long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_error_is_one_too() {
    let (sim, gateway) = start(3).await;
    for form in [Form::ChatPlain, Form::NativePlain, Form::NativeArray, Form::ChatEvents] {
        let mut error = google(503, "UNAVAILABLE", "The model is overloaded.");
        error["error"]["details"] = json!([{"content": "x".repeat(60_000)}]);
        sim.rules(vec![json_body(format!("{error:#}")).times(1)]);
        sim.forget();
        let answer = form.ask(&gateway).await;
        assert_eq!((answer.status, calls(&sim).len()), (200, 2), "{form:?}");
        assert!(!answer.text.contains("\"error\""), "{form:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_an_array_is_its_last_element() {
    let (sim, gateway) = start(8).await;
    let secret = sim.secrets()[0].clone();
    let element = json!({"candidates": [{"content": {"parts": [{"text": "a"}]}}]});
    for (code, status) in [(503, "UNAVAILABLE"), (429, "RESOURCE_EXHAUSTED"), (403, "PERMISSION_DENIED")] {
        let error = google(code, status, &format!("Consumer 'api_key:{secret}'."));
        for tail in [format!("\n,\r\n{error:#}\n]\n"), format!("\n{error:#}\n"), format!(",{error}")] {
            sim.rules(vec![json_body(format!("[{element:#}{tail}"))]);
            sim.forget();
            let answer = Form::NativeArray.ask(&gateway).await;
            let told = format!("{tail}: {}", answer.text);
            assert!(answer.status == 200 && answer.whole && !answer.text.contains(&secret), "{told}");
            let list = answer.json();
            assert_eq!(list.as_array().map(Vec::len), Some(2), "{told}");
            assert_eq!(list[0], element, "{told}");
            assert_eq!(list[1]["error"]["code"], code, "{told}");
            assert_eq!(list[1]["error"]["status"], status, "{told}");
            assert_eq!(calls(&sim).len(), 1, "nothing is tried again once the client has seen something");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_error_in_an_array_closes_the_project() {
    let (sim, gateway) = start(2).await;
    let error = google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.");
    sim.rules(vec![json_body(format!("[{{\"candidates\":[{{}}]}},{error}]")).times(1)]);
    Form::NativeArray.ask(&gateway).await;
    let closed = calls(&sim)[0].project.clone();
    sim.forget();
    for _ in 0..6 {
        assert_eq!(Form::NativePlain.ask(&gateway).await.status, 200);
    }
    assert!(calls(&sim).iter().all(|call| call.project != closed));
}

/// An array whose elements hold nothing is no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_array_without_candidates_is_tried_again() {
    let (sim, gateway) = start(3).await;
    for nothing in ["[]", "[{\"usageMetadata\":{\"promptTokenCount\":1}}]", "[{\"candidates\":[{\"con"] {
        sim.rules(vec![json_body(nothing).times(1)]);
        sim.forget();
        let answer = Form::NativeArray.ask(&gateway).await;
        assert_eq!((answer.status, calls(&sim).len()), (200, 2), "{nothing}: {}", answer.text);
        assert!(answer.text.contains("\"candidates\""), "{nothing}: {}", answer.text);
    }
}

/// The words of an interaction's errors, and the status that each stands for.
const WORDS: [(&str, u16); 3] =
    [("unavailable", 503), ("rate_limit_exceeded", 429), ("permission_denied", 403)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_event_of_an_interaction_is_another_keys_chance() {
    let (sim, gateway) = start(12).await;
    for (word, _) in &WORDS[..2] {
        let error = json!({"event_type": "error", "error": {"code": word, "message": "x"}});
        for event in [format!("event: error\ndata: {error}\n\n"), format!("data: {error}\n\n")] {
            sim.rules(vec![events_body(event).times(1)]);
            sim.forget();
            let answer = ask(&gateway.client(), INTERACTIONS, &interaction(true)).await;
            assert_eq!((answer.status, calls(&sim).len()), (200, 2), "{word}: {}", answer.text);
            assert!(answer.text.contains("[DONE]") && !answer.text.contains("error"), "{}", answer.text);
        }
    }
    // What the caller did wrong, it is told at once.
    let error = json!({"event_type": "error", "error": {"code": "invalid_request", "message": "x"}});
    sim.rules(vec![events_body(format!("event: error\ndata: {error}\n\n"))]);
    sim.forget();
    let answer = ask(&gateway.client(), INTERACTIONS, &interaction(true)).await;
    assert_eq!((answer.status, calls(&sim).len()), (400, 1), "{}", answer.text);
    assert_eq!(answer.json()["error"]["message"], "x", "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_an_interaction_is_its_last_event() {
    let (sim, gateway) = start(12).await;
    let secret = sim.secrets()[0].clone();
    let event = |data: &Value| {
        let name = data["event_type"].as_str().expect("a name");
        format!("event: {name}\ndata: {data}\n\n")
    };
    let created = json!({"event_type": "interaction.created", "interaction": {"id": "v1_a"}});
    let begun = event(&created) + &event(&json!({"event_type": "step.delta", "delta": {"text": "a"}}));
    for (word, code) in WORDS {
        let message = format!("Consumer 'api_key:{secret}'.");
        let own = json!({"event_type": "error", "error": {"code": word, "message": message}});
        let google = google(code, &word.to_ascii_uppercase(), &message);
        for tail in [event(&own), format!("data: {google}\n\n"), format!("{google:#}\n"), String::new()] {
            sim.rules(vec![events_body(format!("{begun}{tail}"))]);
            sim.forget();
            let answer = ask(&gateway.client(), INTERACTIONS, &interaction(true)).await;
            let told = format!("{tail}: {}", answer.text);
            assert!(answer.status == 200 && answer.whole, "{told}");
            assert!(answer.text.starts_with(&begun) && !answer.text.contains(&secret), "{told}");
            assert!(!answer.text.contains("[DONE]"), "{told}");
            let events = data(&answer.text);
            assert_eq!(events.len(), 3, "one error: {told}");
            assert_eq!(events[2]["event_type"], "error", "{told}");
            let expected = if tail.is_empty() { "unavailable" } else { word };
            assert_eq!(events[2]["error"]["code"], expected, "{told}");
            assert!(events[2]["error"]["message"].is_string(), "{told}");
            assert_eq!(calls(&sim).len(), 1, "an interaction that has begun is not made twice");
        }
    }
}

/// The events of an interaction pass as they are; and who made it is known from the first of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_interaction_is_continued_where_it_was_made() {
    let (sim, gateway) = start(6).await;
    let client = gateway.client();
    for at in 0..4 {
        let created = json!({"event_type": "interaction.created", "interaction": {"id": format!("v1_{at}")}});
        let done = json!({"event_type": "interaction.completed", "interaction": {"id": format!("v1_{at}")}});
        let end = if at % 2 == 0 { "data: [DONE]\n\n: x" } else { "" };
        let text = format!("event: interaction.created\ndata: {created}\n\ndata: {done}\n\n{end}");
        sim.rules(vec![events_body(text.as_str())]);
        sim.forget();
        let session = format!("s{at}");
        let request = client.request(Method::POST, INTERACTIONS).header("x-keyfleet-session", &session);
        let request = request.header("x-goog-api-key", "placeholder").body(interaction(true).to_string());
        assert_eq!(read(request).await.expect("an answer").text, text);
        let mut next = interaction(false);
        next["previous_interaction_id"] = json!(format!("v1_{at}"));
        ask(&client, INTERACTIONS, &next).await;
        let calls = calls(&sim);
        assert_eq!((calls.len(), &calls[0].project), (2, &calls[1].project), "interaction {at}");
    }
}

/// A limit is kept to from then on, wherever it was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_told_in_a_stream_is_kept_to() {
    let sim = Sim::start(World::pool(1, 1)).await;
    let mut config = sim.config();
    config["quota"]["when_unleased"] = json!("closed");
    let gateway = Gateway::start(config).await;
    let mut error = google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.");
    error["error"]["details"] = json!([
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
            {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "2"}]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"},
    ]);
    let chunk = json!({"choices": [{"index": 0, "delta": {"content": "a"}}]});
    sim.rules(vec![events_body(format!("data: {chunk}\n\ndata: {error}\n\n")).times(1)]);
    let answer = Form::ChatEvents.ask(&gateway).await;
    assert!(answer.status == 200 && answer.text.contains("RESOURCE_EXHAUSTED"), "{}", answer.text);
    // The upstream has none here, and asks for no more than a moment.
    eventually("a minute is over", Duration::from_secs(15), || async {
        let answer = Form::ChatEvents.ask(&gateway).await;
        let wait: u64 = answer.header("retry-after").parse().unwrap_or_default();
        (answer.status == 429 && wait > 10).then_some(())
    })
    .await;
    assert!(calls(&sim).len() <= 1 + 2, "{} calls", calls(&sim).len());
}
