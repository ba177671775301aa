//! Files that are not ready yet, projects that can hold no more, and videos that are asked for in OpenAI's words.

use keyfleet_simulator::{FileSpec, Received, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, read};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MODEL, about_file, calls, generate, projects, send};

/// Both steps of an upload of `size` bytes; the answer to the first one if it is no success.
async fn upload(client: &Client, mime_type: &str, size: usize) -> Result<Value, Answer> {
    let request = client.request(Method::POST, "/upload/v1beta/files");
    let request = request
        .header("x-goog-api-key", "placeholder")
        .header("x-goog-upload-command", "start")
        .header("x-goog-upload-header-content-length", size)
        .header("x-goog-upload-header-content-type", mime_type);
    let begun = read(request.body("{}")).await.expect("an answer");
    if begun.status != 200 {
        return Err(begun);
    }
    let url = begun.header("x-goog-upload-url");
    let path = url.get(url[8..].find('/').expect("a path") + 8..).expect("a path");
    let request = client.request(Method::POST, path).header("x-goog-upload-command", "upload, finalize");
    let request = request.header("x-goog-upload-offset", 0).body("x".repeat(size));
    let done = read(request).await.expect("an answer");
    assert_eq!(done.status, 200, "{}", done.text);
    Ok(done.json()["file"].clone())
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_video_is_waited_for_where_it_was_uploaded() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let file = upload(&client, "video/mp4", 100).await.expect("a file");
    assert_eq!(file["state"], "PROCESSING");
    let path = format!("/v1beta/{}", text(&file["name"]));
    // Too early is the caller's mistake, and told at once.
    let early = generate(&client, about_file(text(&file["uri"]))).await;
    assert_eq!((early.status, early.header("x-keyfleet-attempts")), (400, "1"), "{}", early.text);
    assert_eq!(early.json()["error"]["status"], "FAILED_PRECONDITION");
    assert!(early.text.contains("is not in an ACTIVE state"), "{}", early.text);
    sim.advance_ms(5_000);
    let now = send(&client, Method::GET, &path, None).await;
    assert_eq!(now.json()["state"], "ACTIVE", "{}", now.text);
    assert_eq!(generate(&client, about_file(text(&file["uri"]))).await.status, 200);
    assert_eq!(projects(&calls(&sim)).len(), 1);
}

/// What is full takes nothing more, but it still has what it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_that_is_full_keeps_what_it_has_and_others_take_the_rest() {
    let files = FileSpec { project_bytes: 1_000, ..FileSpec::default() };
    let sim = Sim::start(World { files, ..World::pool(3, 1) }).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let first = upload(&client, "text/plain", 900).await.expect("a file");
    let owner = projects(&calls(&sim)).into_iter().next().expect("a project");
    let second = upload(&client, "text/plain", 900).await.expect("another project has room");
    let refused: Vec<Received> = calls(&sim).into_iter().filter(|request| request.status == 429).collect();
    assert_eq!(refused.len(), 1, "one call found it out");
    assert_eq!(
        refused[0].project.as_ref(),
        Some(&owner),
        "files of one client are together while they can be"
    );
    for file in [&first, &second] {
        let path = format!("/v1beta/{}", text(&file["name"]));
        assert_eq!(generate(&client, about_file(text(&file["uri"]))).await.status, 200);
        for method in [Method::GET, Method::DELETE] {
            let answer = send(&client, method.clone(), &path, None).await;
            assert_eq!(answer.status, 200, "{method}: {}", answer.text);
        }
    }
}

/// As `openai` sends it: a form, whose answer names what is asked for afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compatible_video_is_asked_for_where_it_is_made() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let part = |name: &str, value: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let form = format!("{}{}--b--\r\n", part("model", MODEL), part("prompt", "The sea."));
    let json = json!({"model": MODEL, "prompt": "The sea."}).to_string();
    for (content_type, body) in [("multipart/form-data; boundary=b", form), ("application/json", json)] {
        let mut used = std::collections::HashSet::new();
        for _ in 0..4 {
            sim.forget();
            let begun = client.request(Method::POST, "/v1/videos").bearer_auth("placeholder");
            let begun = begun.header("content-type", content_type).body(body.clone());
            let begun = read(begun).await.expect("an answer");
            assert_eq!(begun.status, 200, "{content_type}: {}", begun.text);
            let path = format!("/v1/videos/{}", text(&begun.json()["id"]));
            let look = async || {
                let answer = client.request(Method::GET, &path).bearer_auth("placeholder");
                let answer = read(answer).await.expect("an answer");
                assert_eq!(
                    (answer.status, answer.header("x-keyfleet-attempts")),
                    (200, "1"),
                    "{}",
                    answer.text
                );
                answer.json()
            };
            assert_eq!(look().await["status"], "queued");
            sim.advance_ms(6_000);
            let done = look().await;
            assert_eq!(done["status"], "completed");
            // The file's address is heard of here for the first time.
            let address = text(&done["url"]).trim_start_matches("https://generativelanguage.googleapis.com");
            let file = send(&client, Method::GET, address, None).await;
            assert!(file.status == 200 && file.text.contains("ftyp"), "{} {}", file.status, file.text);
            let of_it = projects(&calls(&sim));
            assert_eq!(of_it.len(), 1, "{content_type}: {of_it:?}");
            used.extend(of_it);
        }
        assert!(used.len() > 1, "{content_type}: all went to {used:?}");
    }
}
