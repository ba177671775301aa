//! Work that takes its time: whoever asks how far it is, and takes what it made, must ask the project that does it.

use std::collections::HashSet;

use keyfleet_simulator::{Action, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, read};
use reqwest::Method;
use serde_json::{Value, json};

use super::{CONTENT, MODEL, calls, generate, projects, send};

/// Sessions that spread over the pool, so that what is found is found by its owner and not by luck.
const SESSIONS: usize = 6;
const POLLS: usize = 10;

/// A client of one session. What a batch is asked for later has no session: other processes do that.
struct Session<'a> {
    client: &'a Client,
    name: String,
}

impl Session<'_> {
    async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        let request = self.client.request(method, path).header("x-goog-api-key", "placeholder");
        let request = request.header("x-keyfleet-session", &self.name);
        let answer = read(request.body(body.to_string())).await.expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer
    }

    async fn upload(&self, path: &str, content: String) -> Answer {
        let begun = self.client.request(Method::POST, path).header("x-goog-api-key", "placeholder");
        let begun = begun
            .header("x-keyfleet-session", &self.name)
            .header("x-goog-upload-protocol", "resumable")
            .header("x-goog-upload-command", "start")
            .header("x-goog-upload-header-content-type", "text/plain")
            .body("{}");
        let begun = read(begun).await.expect("an answer");
        let url = begun.header("x-goog-upload-url").to_owned();
        let (origin, path) = url.split_at(url[8..].find('/').expect("a path") + 8);
        let request = Client::new(origin.to_owned())
            .request(Method::POST, path)
            .header("x-goog-upload-command", "upload, finalize")
            .header("x-goog-upload-offset", 0)
            .body(content);
        let answer = read(request).await.expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer
    }
}

fn sessions(client: &Client) -> impl Iterator<Item = Session<'_>> {
    (0..SESSIONS).map(move |number| Session { client, name: format!("session {number}") })
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

async fn get(client: &Client, path: &str) -> Answer {
    let answer = send(client, Method::GET, path, None).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer
}

/// The project that made something; everything with this text in its path went there, at the first attempt.
fn owner(sim: &Sim, what: &str, made_by: &str) -> String {
    let log = calls(sim);
    let made = log.iter().find(|request| request.path_and_query.contains(made_by)).expect("it was made");
    let owner = made.project.clone().expect("with a key of the pool");
    for request in log.iter().filter(|request| request.path_and_query.contains(what)) {
        assert_eq!(
            (request.project.as_ref(), request.status),
            (Some(&owner), 200),
            "{} {}",
            request.method,
            request.path_and_query
        );
    }
    owner
}

async fn advance(sim: &Sim, ms: u64) {
    let change = Client::new(sim.url()).post("/__sim/clock", &json!({"advance_ms": ms})).await;
    assert_eq!(change.expect("the simulator answers").status, 200);
}

/// Asks until the work is done; what it said the last time, and the states on the way.
async fn follow(sim: &Sim, client: &Client, path: &str, state: fn(&Value) -> &Value) -> (Value, Vec<String>) {
    let (mut states, mut polls) = (Vec::new(), 0);
    loop {
        let seen = get(client, path).await.json();
        states.extend(state(&seen).as_str().map(str::to_owned));
        if seen["done"] == true {
            states.dedup();
            return (seen, states);
        }
        polls += 1;
        assert!(polls < POLLS, "{path} is not done: {states:?}");
        advance(sim, 1_000).await;
    }
}

/// Uploads a file of three requests, one on each line, and begins a batch with it; the batch's name.
async fn begin_batch(session: &Session<'_>) -> String {
    let request = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
    let line = |number: usize| format!("{}\n", json!({"key": format!("r{number}"), "request": request}));
    let input = session.upload("/upload/v1beta/files", (0..3).map(line).collect()).await;
    let body =
        json!({"batch": {"displayName": "b", "inputConfig": {"fileName": input.json()["file"]["name"]}}});
    let create = format!("/v1beta/models/{MODEL}:batchGenerateContent");
    text(&session.send(Method::POST, &create, body).await.json()["name"])
}

async fn start() -> (Sim, Gateway) {
    let sim = Sim::start(World::pool(6, 2)).await;
    let gateway = Gateway::start(sim.config()).await;
    (sim, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_followed_where_it_was_begun() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    let mut owners = HashSet::new();
    for session in sessions(&client) {
        sim.forget();
        let name = begin_batch(&session).await;
        let path = format!("/v1beta/{name}");
        let (done, states) = follow(&sim, &client, &path, |batch| &batch["metadata"]["state"]).await;
        assert_eq!(states, ["BATCH_STATE_PENDING", "BATCH_STATE_RUNNING", "BATCH_STATE_SUCCEEDED"]);
        assert_eq!(done["metadata"]["batchStats"]["successfulRequestCount"], "3");
        for (method, path) in [(Method::POST, format!("{path}:cancel")), (Method::DELETE, path)] {
            let answer = send(&client, method, &path, None).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        }
        owners.insert(owner(&sim, &name, ":batchGenerateContent"));
    }
    assert!(owners.len() >= 3, "the sessions spread over the pool: {owners:?}");
}

/// Its name is first heard of in the answer to a question.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_output_of_a_batch_is_fetched_where_it_was_made() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    for session in sessions(&client) {
        sim.forget();
        let name = begin_batch(&session).await;
        let path = format!("/v1beta/{name}");
        let (done, _) = follow(&sim, &client, &path, |batch| &batch["metadata"]["state"]).await;
        let output = text(&done["response"]["responsesFile"]);
        for (path, lines) in [
            (format!("/v1beta/{output}"), 0),
            (format!("/download/v1beta/{output}:download?alt=media"), 3),
            (format!("/v1beta/{output}:download?alt=media"), 3),
        ] {
            let answer = get(&client, &path).await;
            assert_eq!(answer.header("x-keyfleet-attempts"), "1", "{path} was looked for");
            assert_eq!(answer.text.matches("\"candidates\"").count(), lines, "{path}: {}", answer.text);
        }
        owner(&sim, name.trim_start_matches("batches/"), ":batchGenerateContent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compatible_batch_is_followed_where_it_was_begun() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    for session in sessions(&client) {
        sim.forget();
        let request = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
        let line =
            json!({"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": request});
        let input = session.upload("/upload/v1beta/files", format!("{line}\n")).await;
        let body = json!({"input_file_id": input.json()["file"]["name"], "endpoint": "/v1/chat/completions"});
        let begun = session.send(Method::POST, "/v1beta/openai/batches", body).await;
        let id = text(&begun.json()["id"]);
        let path = format!("/v1/batches/{id}");
        let mut polls = 0;
        let output = loop {
            let request = client.request(Method::GET, &path).bearer_auth("placeholder");
            let batch = read(request).await.expect("an answer");
            assert!(batch.status == 200 && polls < POLLS, "{}", batch.text);
            if batch.json()["status"] == "completed" {
                break text(&batch.json()["output_file_id"]);
            }
            polls += 1;
            advance(&sim, 1_000).await;
        };
        let content = get(&client, &format!("/download/v1beta/{output}:download?alt=media")).await;
        assert!(content.text.contains("\"chat.completion\""), "{}", content.text);
        owner(&sim, id.trim_start_matches("batches/"), "openai/batches");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_search_store_takes_documents_in_where_it_is() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    for session in sessions(&client) {
        sim.forget();
        let made = session.send(Method::POST, "/v1beta/fileSearchStores", json!({"displayName": "d"})).await;
        let store = text(&made.json()["name"]);
        let upload = format!("/upload/v1beta/{store}:uploadToFileSearchStore");
        let operation = text(&session.upload(&upload, CONTENT.to_owned()).await.json()["name"]);
        let path = format!("/v1beta/{operation}");
        let (done, _) = follow(&sim, &client, &path, |operation| &operation["name"]).await;
        let document = text(&done["response"]["documentName"]);
        assert_eq!(get(&client, &format!("/v1beta/{document}")).await.json()["state"], "STATE_ACTIVE");
        let tools = json!([{"fileSearch": {"fileSearchStoreNames": [store]}}]);
        let body = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], "tools": tools});
        assert_eq!(generate(&client, body).await.status, 200);
        assert_eq!(projects(&calls(&sim)).len(), 1, "{:?}", projects(&calls(&sim)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tuned_model_answers_where_it_was_made() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    for session in sessions(&client) {
        sim.forget();
        let body = json!({"displayName": "mine", "baseModel": format!("models/{MODEL}"), "tuningTask": {}});
        let operation = session.send(Method::POST, "/v1beta/tunedModels", body).await.json();
        let model = text(&operation["metadata"]["tunedModel"]);
        let path = format!("/v1beta/{}", text(&operation["name"]));
        follow(&sim, &client, &path, |operation| &operation["name"]).await;
        assert_eq!(get(&client, &format!("/v1beta/{model}")).await.json()["state"], "ACTIVE");
        let body = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
        for verb in ["generateContent", "streamGenerateContent?alt=sse"] {
            let answer =
                send(&client, Method::POST, &format!("/v1beta/{model}:{verb}"), Some(body.clone())).await;
            assert_eq!(answer.status, 200, "{verb}: {}", answer.text);
        }
        assert_eq!(projects(&calls(&sim)).len(), 1, "{:?}", projects(&calls(&sim)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_video_is_waited_for_where_it_is_made() {
    let (sim, gateway) = start().await;
    let client = gateway.client();
    for session in sessions(&client) {
        sim.forget();
        let body = json!({"instances": [{"prompt": "The sea."}]});
        let predict = format!("/v1beta/models/{MODEL}:predictLongRunning");
        let operation = text(&session.send(Method::POST, &predict, body).await.json()["name"]);
        let path = format!("/v1beta/{operation}");
        let (done, _) = follow(&sim, &client, &path, |operation| &operation["name"]).await;
        let uri = text(&done["response"]["generateVideoResponse"]["generatedSamples"][0]["video"]["uri"]);
        let path = uri.trim_start_matches("https://generativelanguage.googleapis.com");
        assert!(get(&client, path).await.text.contains("ftyp"));
        assert_eq!(projects(&calls(&sim)).len(), 1, "{:?}", projects(&calls(&sim)));
    }
}

/// A store may be called anything, interactions as well: the work on it is found again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_into_a_store_called_interactions_is_asked_for_where_it_runs() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let store = "fileSearchStores/my-interactions-x1";
    let operation = format!("{store}/operations/import-1");
    let begun = Action::Status {
        status: 200,
        body: json!({"name": operation}).to_string(),
        headers: Vec::new(),
        content_type: Some("application/json".into()),
    };
    sim.rules(vec![Rule::new(begun).path("my-interactions-x1")]);
    let session = |name: usize| Session { client: &client, name: format!("session {name}") };
    session(0).send(Method::POST, &format!("/v1beta/{store}:importFile"), json!({})).await;
    for name in 0..POLLS {
        session(name).send(Method::GET, &format!("/v1beta/{operation}"), Value::Null).await;
    }
    let (calls, used) = (calls(&sim), projects(&calls(&sim)));
    assert_eq!((calls.len(), used.len()), (1 + POLLS, 1), "{used:?}");
}
