//! What clients store belongs to one project: it is found again, and nobody else is asked for it.

mod affinity;
mod files;
mod jobs;

use std::collections::HashSet;

use futures_util::future::join_all;
use keyfleet_simulator::{Action, Family, Received, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, read};
use reqwest::Method;
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
const CONTENT: &str = "What the file says.";

/// The requests of clients: the prober lists models only.
fn calls(sim: &Sim) -> Vec<Received> {
    let mut log = sim.log();
    log.retain(|request| !request.path_and_query.contains("/models?pageSize=1"));
    log
}

fn projects(calls: &[Received]) -> HashSet<String> {
    calls.iter().filter_map(|request| request.project.clone()).collect()
}

/// Google's dialect, with a placeholder for the key.
async fn send(client: &Client, method: Method, path: &str, body: Option<Value>) -> Answer {
    let request = client.request(method, path).header("x-goog-api-key", "placeholder");
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    read(request).await.expect("an answer")
}

/// The first step of an upload; the URL for the second.
async fn begin_upload(client: &Client) -> String {
    let request = client
        .request(Method::POST, "/upload/v1beta/files")
        .header("x-goog-api-key", "placeholder")
        .header("x-goog-upload-protocol", "resumable")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-length", CONTENT.len())
        .header("x-goog-upload-header-content-type", "text/plain")
        .body(json!({"file": {"display_name": "a file"}}).to_string());
    let answer = read(request).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.header("x-goog-upload-url").to_owned()
}

/// The second step, as Google's clients send it: without any credential. The file's name and URI.
async fn finish_upload(url: &str) -> (String, String) {
    let (origin, path) = url.split_at(url[8..].find('/').expect("a path") + 8);
    let request = Client::new(origin.to_owned())
        .request(Method::POST, path)
        .header("x-goog-upload-command", "upload, finalize")
        .header("x-goog-upload-offset", 0)
        .body(CONTENT);
    let answer = read(request).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    let file = answer.json()["file"].clone();
    let text = |field: &str| file[field].as_str().expect("a text").to_owned();
    (text("name"), text("uri"))
}

async fn upload(client: &Client) -> (String, String) {
    finish_upload(&begin_upload(client).await).await
}

fn about_file(uri: &str) -> Value {
    json!({"contents": [{"role": "user", "parts": [
        {"fileData": {"fileUri": uri, "mimeType": "text/plain"}}, {"text": "What does it say?"}]}]})
}

async fn generate(client: &Client, body: Value) -> Answer {
    send(client, Method::POST, &format!("/v1beta/models/{MODEL}:generateContent"), Some(body)).await
}

/// Uses a file in every way there is and removes it.
async fn live_with_file(client: &Client, name: &str, uri: &str) {
    let streamed = format!("/v1beta/models/{MODEL}:streamGenerateContent?alt=sse");
    let counted = format!("/v1beta/models/{MODEL}:countTokens");
    let answers = [
        generate(client, about_file(uri)).await,
        send(client, Method::POST, &streamed, Some(about_file(uri))).await,
        send(client, Method::POST, &counted, Some(about_file(uri))).await,
        send(client, Method::GET, &format!("/v1beta/{name}"), None).await,
        send(client, Method::DELETE, &format!("/v1beta/{name}"), None).await,
    ];
    for answer in answers {
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        assert_eq!(answer.header("x-keyfleet-attempts"), "1", "{name} was looked for");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_lives_in_one_project() {
    let sim = Sim::start(World::pool(8, 2)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let url = begin_upload(&client).await;
    assert!(url.starts_with(&format!("{}/upload/", gateway.url())), "the URL is ours: {url}");
    assert!(!url.contains("key=") && url.contains("upload_id="), "{url}");
    for secret in sim.secrets() {
        assert!(!url.contains(&secret), "{url}");
    }
    let (name, uri) = finish_upload(&url).await;
    assert!(
        uri.starts_with("https://generativelanguage.googleapis.com/"),
        "the file's own address is kept: {uri}"
    );
    live_with_file(&client, &name, &uri).await;
    let calls = calls(&sim);
    assert_eq!(calls.len(), 7, "two steps and five uses");
    assert_eq!(projects(&calls).len(), 1, "{:?}", projects(&calls));
    assert!(calls.iter().all(|request| !request.path_and_query.contains("key=")));
}

/// Some encoders escape every slash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_found_however_its_address_is_spelled() {
    let sim = Sim::start(World::pool(8, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let (_, uri) = upload(&client).await;
    let plain = about_file(&uri).to_string();
    let spellings = [
        plain.replace('/', r"\/"),
        plain.replace("/files/", r"/f\u0069les/"),
        plain.replace("/files/", r"\u002Ffiles\u002f"),
    ];
    for body in spellings.iter().cycle().take(12) {
        assert_ne!(*body, plain);
        let request = client.request(Method::POST, &format!("/v1beta/models/{MODEL}:generateContent"));
        let request = request.header("x-goog-api-key", "placeholder").body(body.clone());
        let answer = read(request.header("content-type", "application/json")).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.header("x-keyfleet-attempts")),
            (200, "1"),
            "{body}: {}",
            answer.text
        );
    }
    let calls = calls(&sim);
    assert_eq!((calls.len(), projects(&calls).len()), (14, 1), "{:?}", projects(&calls));
}

/// Many clients with a file each, of projects of their own, while everybody else keeps all keys busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_found_under_load() {
    let sim = Sim::start(World::pool(6, 2)).await;
    let mut config = sim.config();
    let clients: Vec<_> =
        (0..8).map(|n| json!({"name": format!("c{n}"), "token": format!("file-token-{n}")})).collect();
    config["server"]["clients"] = json!(clients);
    let gateway = Gateway::start(config).await;
    let base = gateway.client();
    let one = |number: usize| {
        let client = base.clone();
        async move {
            let token = format!("file-token-{number}");
            let with = |method, path: &str| client.request(method, path).header("x-goog-api-key", &token);
            let begun = with(Method::POST, "/upload/v1beta/files")
                .header("x-goog-upload-protocol", "resumable")
                .header("x-goog-upload-command", "start")
                .header("x-goog-upload-header-content-type", "text/plain")
                .body(json!({"file": {"display_name": format!("file {number}")}}).to_string());
            let begun = read(begun).await.expect("an answer");
            let (name, uri) = finish_upload(begun.header("x-goog-upload-url")).await;
            for _ in 0..10 {
                let path = format!("/v1beta/models/{MODEL}:generateContent");
                let used = with(Method::POST, &path).body(about_file(&uri).to_string());
                let plain = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
                let other = with(Method::POST, &path).body(plain.to_string());
                let (used, other) = tokio::join!(read(used), read(other));
                let (used, other) = (used.expect("an answer"), other.expect("an answer"));
                assert_eq!((used.status, other.status), (200, 200), "{name}: {}", used.text);
                assert_eq!(used.header("x-keyfleet-attempts"), "1", "{name} was looked for");
            }
        }
    };
    join_all((0..8).map(one)).await;
    let used = projects(&calls(&sim));
    assert_eq!(used.len(), 6, "the rest of the traffic uses the whole pool: {used:?}");
    assert!(calls(&sim).iter().all(|request| request.status == 200));
}

/// Who owns what is part of the state file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_no_file() {
    let sim = Sim::start(World::pool(12, 1)).await;
    let mut config = sim.config();
    config["server"]["state_file"] = json!("state.json");
    let mut gateway = Gateway::start(config).await;
    let begun = begin_upload(&gateway.client()).await;
    let (name, uri) = upload(&gateway.client()).await;
    // At once: what a client has been told of is stored.
    gateway.signal("KILL");
    gateway.exit().await;
    let id = begun.split_once("upload_id=").expect("an id").1.split('&').next().expect("an id");
    for file in std::fs::read_dir(gateway.folder()).expect("its folder") {
        let text = std::fs::read(file.expect("a file").path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains(id), "whoever knows an upload's id may write to it");
    }
    gateway.restart().await;
    live_with_file(&gateway.client(), &name, &uri).await;
    let (name, uri) = finish_upload(&begun).await;
    live_with_file(&gateway.client(), &name, &uri).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_is_used_where_it_was_made() {
    let sim = Sim::start(World::pool(8, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let contents = json!([{"role": "user", "parts": [{"text": "A long text to be remembered."}]}]);
    let made = json!({"model": format!("models/{MODEL}"), "contents": contents, "ttl": "300s"});
    let made = send(&client, Method::POST, "/v1beta/cachedContents", Some(made)).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let name = made.json()["name"].as_str().expect("a name").to_owned();

    for _ in 0..5 {
        let native = json!({"contents": contents, "cachedContent": name});
        let compat = json!({
            "model": MODEL, "messages": [{"role": "user", "content": "Hi"}],
            "extra_body": {"google": {"cached_content": name}},
        });
        for answer in [
            generate(&client, native).await,
            client.post("/v1/chat/completions", &compat).await.expect("an answer"),
            send(&client, Method::GET, &format!("/v1beta/{name}"), None).await,
            send(&client, Method::PATCH, &format!("/v1beta/{name}"), Some(json!({"ttl": "600s"}))).await,
        ] {
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
    let gone = send(&client, Method::DELETE, &format!("/v1beta/{name}"), None).await;
    assert_eq!(gone.status, 200, "{}", gone.text);
    let calls = calls(&sim);
    assert_eq!((calls.len(), projects(&calls).len()), (22, 1), "{:?}", projects(&calls));
}

/// Only the owner can serve it: its quota counts, and no other project is asked, which would answer 403.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_owner_is_an_honest_429() {
    let sim = Sim::start(World::pool(4, 2)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let (name, uri) = upload(&client).await;
    let owner = projects(&calls(&sim)).into_iter().next().expect("a project");
    sim.rules(vec![Rule::family(Family::PerMinute429).project(&owner).model(MODEL)]);
    sim.forget();
    for _ in 0..3 {
        let answer = generate(&client, about_file(&uri)).await;
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert_eq!(answer.json()["error"]["status"], "RESOURCE_EXHAUSTED");
        let after: u64 = answer.header("retry-after").parse().expect("it says when to come back");
        assert!((1..=66).contains(&after), "{after}");
    }
    assert_eq!(calls(&sim).len(), 1, "one call found it out; its second key would say the same");
    // What costs no quota still goes there, and everybody else goes on.
    let found = send(&client, Method::GET, &format!("/v1beta/{name}"), None).await;
    assert_eq!(found.status, 200, "{}", found.text);
    let plain = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
    assert_eq!(generate(&client, plain).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_knows_is_asked_for_once() {
    let sim = Sim::start(World::pool(5, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let uri = "https://generativelanguage.googleapis.com/v1beta/files/nowhere-1";
    let cache = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], "cachedContent": "cachedContents/nope1"});
    for (answer, message) in [
        (generate(&client, about_file(uri)).await, "permission to access the File nowhere-1"),
        (
            send(&client, Method::GET, "/v1beta/files/nowhere-1", None).await,
            "permission to access the File nowhere-1",
        ),
        (generate(&client, cache).await, "CachedContent not found"),
    ] {
        assert_eq!(answer.status, 403, "{}", answer.text);
        let error = answer.json()["error"].clone();
        assert_eq!(error["status"], "PERMISSION_DENIED");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(message)), "{}", answer.text);
        assert_eq!(answer.header("x-keyfleet-attempts"), "1");
    }
    assert_eq!(calls(&sim).len(), 3);
    // And no key has suffered.
    sim.forget();
    let plain = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]});
    for _ in 0..10 {
        assert_eq!(generate(&client, plain.clone()).await.status, 200);
    }
    assert_eq!(projects(&calls(&sim)).len(), 5);
}

/// An upload whose id nobody handed out is no way around the clients' tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_id_that_is_not_ours_opens_nothing() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let mut config = sim.config();
    config["server"]["clients"] = json!([{"name": "tests", "token": "a-token-of-the-tests"}]);
    let gateway = Gateway::start(config).await;
    let request = gateway.client().request(Method::POST, "/upload/v1beta/files?upload_id=guessed").body("x");
    let answer = read(request.header("x-goog-upload-command", "upload, finalize")).await.expect("an answer");
    assert_eq!(answer.status, 401, "{}", answer.text);
    assert!(calls(&sim).is_empty());
}

/// A connection that breaks says nothing of whether the request was carried out. To ask a model again does no harm; to
/// make a cache or to begin a batch again does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_made_is_not_made_twice() {
    let sim = Sim::start(World::pool(4, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let contents = json!([{"role": "user", "parts": [{"text": "Hi"}]}]);
    let cache = json!({"model": format!("models/{MODEL}"), "contents": contents, "ttl": "300s"});
    let batch = json!({"batch": {"displayName": "b", "inputConfig": {"requests": {"requests": []}}}});
    let batches = format!("/v1beta/models/{MODEL}:batchGenerateContent");
    for (path, body) in [("/v1beta/cachedContents", cache.clone()), (&batches, batch)] {
        sim.rules(vec![Rule::new(Action::Reset).path(path).times(1)]);
        sim.forget();
        let answer = send(&client, Method::POST, path, Some(body)).await;
        assert_eq!(answer.status, 502, "{path}: {}", answer.text);
        assert_eq!(calls(&sim).len(), 1, "{path} was sent again");
    }
    // A refusal leaves no doubt: another project may do it.
    sim.rules(vec![Rule::family(Family::PerMinute429).path("cachedContents").times(1)]);
    sim.forget();
    let answer = send(&client, Method::POST, "/v1beta/cachedContents", Some(cache)).await;
    assert_eq!((answer.status, calls(&sim).len()), (200, 2), "{}", answer.text);

    sim.rules(vec![Rule::new(Action::Reset).path("generateContent").times(1)]);
    sim.forget();
    let answer = generate(&client, json!({"contents": contents})).await;
    assert_eq!((answer.status, calls(&sim).len()), (200, 2), "{}", answer.text);
}
