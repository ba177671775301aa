//! Files and caches belong to the project that made them.

use keyfleet_simulator::{FileSpec, Simulator, World};
use serde_json::json;

use crate::client::{Answer, CHAT, HELLO, NATIVE, chat, gemini, get, post, send};

#[tokio::test]
async fn an_upload_is_two_steps_the_second_without_a_credential() {
    let gemini = gemini(World::pool(2, 1)).await;
    let secrets = gemini.world().secrets();
    let start = [
        ("x-goog-api-key", secrets[0].as_str()),
        ("x-goog-upload-protocol", "resumable"),
        ("x-goog-upload-command", "start"),
        ("x-goog-upload-header-content-type", "text/plain"),
    ];
    let body = r#"{"file":{"display_name":"notes","size_bytes":9}}"#;
    let begun = send(&gemini, "POST", "/upload/v1beta/files", &start, body).await;
    assert_eq!((begun.status, begun.header("x-goog-upload-status"), begun.body.len()), (200, "active", 0));
    let url = begun.header("x-goog-upload-url").to_owned();
    let prefix = format!("{}/upload/v1beta/files?key={}&upload_id=", gemini.url(), secrets[0]);
    assert!(url.starts_with(&prefix), "{url}");

    let path = url.trim_start_matches(&gemini.url());
    let without_key = path.replace(&format!("key={}&", secrets[0]), "");
    let part = |offset, command| [("x-goog-upload-offset", offset), ("x-goog-upload-command", command)];
    let wrong = send(&gemini, "POST", &without_key, &part("3", "upload"), "some ").await;
    assert_eq!(wrong.status, 400);
    let first = send(&gemini, "POST", &without_key, &part("0", "upload"), "some ").await;
    assert_eq!(first.header("x-goog-upload-status"), "active");
    let last = send(&gemini, "POST", &without_key, &part("5", "upload, finalize"), "text").await;
    assert_eq!(last.header("x-goog-upload-status"), "final");
    let file = last.json()["file"].clone();
    assert_eq!((&file["sizeBytes"], &file["displayName"]), (&json!("9"), &json!("notes")));
    assert_eq!(gemini.log()[3].project.as_deref(), Some("p1"));
    assert!(gemini.log()[3].credentials.is_empty());

    let name = file["name"].as_str().unwrap();
    assert_eq!(get(&gemini, &secrets[0], &format!("/v1beta/{name}")).await.json(), file);
    let content = get(&gemini, &secrets[0], &format!("/download/v1beta/{name}:download?alt=media")).await;
    assert_eq!(content.text(), "some text");
    let using = json!({"contents": [{"parts": [{"fileData": {"fileUri": file["uri"]}}]}]}).to_string();
    assert_eq!(post(&gemini, &secrets[0], NATIVE, &using).await.status, 200);
    let foreign = post(&gemini, &secrets[1], NATIVE, &using).await;
    let id = name.trim_start_matches("files/");
    let text = format!("You do not have permission to access the File {id} or it may not exist.");
    assert_eq!((foreign.status, foreign.message()), (403, text.clone()));
    let path = format!("/v1beta/{name}");
    let foreign = send(&gemini, "DELETE", &path, &[("x-goog-api-key", &secrets[1])], "").await;
    assert_eq!(foreign.message(), text);
    let own = send(&gemini, "DELETE", &path, &[("x-goog-api-key", &secrets[0])], "").await;
    assert_eq!(own.status, 200);
    assert_eq!(get(&gemini, &secrets[0], "/v1beta/files").await.json(), json!({}));
}

#[tokio::test]
async fn a_cache_is_used_by_its_project_alone_and_dies_with_its_ttl() {
    let gemini = gemini(World::pool(2, 1)).await;
    let secrets = gemini.world().secrets();
    let body = r#"{"model":"models/gemini-2.5-flash","contents":[{"parts":[{"text":"long"}]}],"ttl":"600s"}"#;
    let made = post(&gemini, &secrets[0], "/v1beta/cachedContents", body).await.json();
    let name = made["name"].as_str().unwrap();
    let using = HELLO.replacen('{', &format!("{{\"cachedContent\":\"{name}\","), 1);
    let answer = post(&gemini, &secrets[0], NATIVE, &using).await.json();
    let cached = body.len() / 4;
    let usage = &answer["usageMetadata"];
    assert_eq!(usage["cachedContentTokenCount"], cached, "{usage}");
    assert_eq!(usage["promptTokenCount"], cached + using.len() / 4, "the prompt includes them");
    let google = format!(r#""extra_body":{{"google":{{"cached_content":"{name}"}}}},"#);
    let compat = chat("gemini-2.5-flash", true).replacen('{', &format!("{{{google}"), 1);
    let compat = post(&gemini, &secrets[0], CHAT, &compat).await.text();
    assert!(
        compat.contains(&format!("\"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}")),
        "{compat}"
    );
    let foreign = post(&gemini, &secrets[1], NATIVE, &using).await;
    assert_eq!(
        (foreign.status, foreign.message().as_str()),
        (403, "CachedContent not found (or permission denied)")
    );
    gemini.clock().advance_ms(600_000);
    assert_eq!(post(&gemini, &secrets[0], NATIVE, &using).await.status, 403);
}

#[tokio::test]
async fn an_interaction_continues_only_in_its_project_and_fails_in_its_own_dialect() {
    let gemini = gemini(World::pool(2, 1)).await;
    let secrets = gemini.world().secrets();
    let first =
        post(&gemini, &secrets[0], "/v1beta/interactions", r#"{"model":"gemini-2.5-flash","input":"hi"}"#)
            .await
            .json();
    assert_eq!(first["status"], "completed");
    let next = json!({"model": "gemini-2.5-flash", "input": "on", "previous_interaction_id": first["id"]})
        .to_string();
    assert_eq!(post(&gemini, &secrets[0], "/v1beta/interactions", &next).await.status, 200);
    let foreign = post(&gemini, &secrets[1], "/v1beta/interactions", &next).await;
    assert_eq!(foreign.json()["error"]["code"], "not_found");
    let stream = next.replacen('{', "{\"stream\":true,", 1);
    let stream = post(&gemini, &secrets[0], "/v1beta/interactions", &stream).await.text();
    assert!(stream.contains("\"event_type\":\"content.delta\""), "{stream}");
}

/// One file in one step; the answer to it.
async fn upload(gemini: &Simulator, secret: &str, mime_type: &str, content: &str) -> Answer {
    let start = [
        ("x-goog-api-key", secret),
        ("x-goog-upload-command", "start"),
        ("x-goog-upload-header-content-type", mime_type),
    ];
    let begun = send(gemini, "POST", "/upload/v1beta/files", &start, "{}").await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let path = begun.header("x-goog-upload-url").replace(&gemini.url(), "");
    let finish = [("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", "0")];
    send(gemini, "POST", &path, &finish, content).await
}

#[tokio::test]
async fn a_video_is_processed_before_it_can_be_used() {
    let gemini = gemini(World::pool(1, 1)).await;
    let secret = &gemini.world().secrets()[0];
    let text = upload(&gemini, secret, "text/plain", "text").await.json()["file"].clone();
    let video = upload(&gemini, secret, "video/mp4", "ftyp").await.json()["file"].clone();
    assert_eq!((&text["state"], &video["state"]), (&json!("ACTIVE"), &json!("PROCESSING")));
    let using = json!({"contents": [{"parts": [{"fileData": {"fileUri": video["uri"]}}]}]}).to_string();
    let early = post(&gemini, secret, NATIVE, &using).await;
    assert_eq!((early.status, &early.json()["error"]["status"]), (400, &json!("FAILED_PRECONDITION")));
    assert!(early.message().ends_with("is not in an ACTIVE state and usage is not allowed."));
    let path = format!("/v1beta/{}", video["name"].as_str().unwrap());
    assert_eq!(get(&gemini, secret, &path).await.json()["state"], "PROCESSING");
    gemini.clock().advance_ms(5_000);
    assert_eq!(get(&gemini, secret, &path).await.json()["state"], "ACTIVE");
    assert_eq!(post(&gemini, secret, NATIVE, &using).await.status, 200);
}

#[tokio::test]
async fn files_are_kept_up_to_a_size_and_a_sum() {
    let files = FileSpec { file_bytes: 6, project_bytes: 10, ..FileSpec::default() };
    let gemini = gemini(World { files, ..World::pool(2, 1) }).await;
    let secrets = gemini.world().secrets();
    let large = upload(&gemini, &secrets[0], "text/plain", "1234567").await;
    assert_eq!((large.status, gemini.log()[1].outcome.as_str()), (400, "400:file_size"));
    let mut kept = Vec::new();
    for content in ["123456", "1234"] {
        kept.push(upload(&gemini, &secrets[0], "text/plain", content).await.json()["file"]["name"].clone());
    }
    // What is announced is refused before it comes.
    let start = [
        ("x-goog-api-key", secrets[0].as_str()),
        ("x-goog-upload-command", "start"),
        ("x-goog-upload-header-content-length", "1"),
    ];
    let full = send(&gemini, "POST", "/upload/v1beta/files", &start, "{}").await;
    let violation = full.json()["error"]["details"][1]["violations"][0].clone();
    assert_eq!((full.status, &violation["quotaValue"]), (429, &json!("10")), "{}", full.text());
    assert_eq!(upload(&gemini, &secrets[0], "text/plain", "1").await.status, 429);
    assert_eq!(upload(&gemini, &secrets[1], "text/plain", "1").await.status, 200);
    let path = format!("/v1beta/{}", kept[1].as_str().unwrap());
    assert_eq!(send(&gemini, "DELETE", &path, &[("x-goog-api-key", &secrets[0])], "").await.status, 200);
    assert_eq!(upload(&gemini, &secrets[0], "text/plain", "1").await.status, 200);
}
