//! Where new things are made: in any project as long as nothing else is needed with them, and where it is of use.

use std::collections::HashSet;

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, read};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, calls};

async fn make(client: &Client, path: &str, body: &Value) -> Answer {
    let request = client.request(Method::POST, path).header("x-goog-api-key", "placeholder");
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer = read(request).await.expect("an answer");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer
}

/// The project of the last call that the simulator saw.
fn last_project(sim: &Sim) -> String {
    calls(sim).pop().and_then(|request| request.project).expect("a project")
}

async fn start_upload(sim: &Sim, client: &Client) -> String {
    let request = client
        .request(Method::POST, "/upload/v1beta/files")
        .header("x-goog-api-key", "placeholder")
        .header("x-goog-upload-protocol", "resumable")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-type", "text/plain")
        .body(json!({"file": {"display_name": "a file"}}).to_string());
    let answer = read(request).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    last_project(sim)
}

/// One project's quota must not carry all interactions of a client that has no name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_refers_to_nothing_takes_turns() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let batch = json!({"batch": {"displayName": "b", "inputConfig": {"requests": {"requests": []}}}});
    let batches = format!("/v1beta/models/{MODEL}:batchGenerateContent");
    let interaction = json!({"model": MODEL, "input": "Hi"});
    for (path, body) in [("/v1beta/interactions", &interaction), (&batches, &batch)] {
        let mut used = HashSet::new();
        for _ in 0..6 {
            make(&client, path, body).await;
            used.insert(last_project(&sim));
        }
        assert_eq!(used.len(), 6, "{path}: {used:?}");
    }
}

/// An operation is named with its model before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_asked_for_where_it_runs() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let mut used = HashSet::new();
    for _ in 0..6 {
        let body = json!({"instances": [{"prompt": "The sea."}]});
        let begun = make(&client, &format!("/v1beta/models/{MODEL}:predictLongRunning"), &body).await;
        let project = last_project(&sim);
        let begun = begun.json();
        let name = begun["name"].as_str().expect("a name");
        let asked = client.request(Method::GET, &format!("/v1beta/{name}")).header("x-goog-api-key", "any");
        let asked = read(asked).await.expect("an answer");
        assert_eq!((asked.status, asked.header("x-keyfleet-attempts")), (200, "1"), "{}", asked.text);
        assert_eq!(last_project(&sim), project);
        used.insert(project);
    }
    assert_eq!(used.len(), 6, "{used:?}");
}

/// What is told in a stream is found again as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interaction_goes_on_where_it_began() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for stream in [false, true] {
        let first = json!({"model": MODEL, "input": "Hi", "stream": stream});
        let first = make(&client, "/v1beta/interactions", &first).await;
        let project = last_project(&sim);
        let data = first.text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or(&first.text);
        let told: Value = serde_json::from_str(data).expect("JSON");
        let id = if stream { &told["interaction"]["id"] } else { &told["id"] };
        for _ in 0..6 {
            let next = json!({"model": MODEL, "input": "And then?", "previous_interaction_id": id});
            let next = make(&client, "/v1beta/interactions", &next).await;
            assert_eq!(next.header("x-keyfleet-attempts"), "1");
            assert_eq!(last_project(&sim), project, "stream: {stream}");
        }
    }
}

/// Two files can be used in one request only if one project owns both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_one_client_are_together() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let project = start_upload(&sim, &client).await;
    let contents = json!([{"role": "user", "parts": [{"text": "A long text to be remembered."}]}]);
    let cache = json!({"model": format!("models/{MODEL}"), "contents": contents, "ttl": "300s"});
    for _ in 0..3 {
        assert_eq!(start_upload(&sim, &client).await, project);
        make(&client, "/v1beta/cachedContents", &cache).await;
        assert_eq!(last_project(&sim), project, "a cache and a file may be used together too");
    }
}

/// A file that only an exhausted project can read is of no use today.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_stored_where_there_is_quota_left() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let first = start_upload(&sim, &client).await;
    let minute = Rule::family(Family::PerMinute429).project(&first).model("gemini-2.5-flash-lite");
    let day = Rule::family(Family::PerDay429).project(&first).model(MODEL);
    for (rule, model, stays) in [(minute, "gemini-2.5-flash-lite", true), (day, MODEL, false)] {
        sim.rules(vec![rule]);
        let refused = || calls(&sim).iter().any(|request| request.status == 429);
        sim.forget();
        for _ in 0..12 {
            assert_eq!(client.chat(model, false).await.expect("an answer").status, 200);
        }
        assert!(refused(), "{model}: the project was not asked");
        sim.rules(Vec::new());
        let next = start_upload(&sim, &client).await;
        assert_eq!(next == first, stays, "{model}");
        assert_eq!(start_upload(&sim, &client).await, next, "the next one joins it");
    }
}
