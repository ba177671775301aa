//! Work that takes its time on the virtual clock, and belongs to the project that asked for it.

use keyfleet_simulator::{JobSpec, Limit, ProjectState, Simulator, World};
use serde_json::{Value, json};

use crate::client::{Answer, HELLO, NATIVE, gemini, get, post, send};

/// Two projects of one key each, and work that waits for one second and takes ten.
async fn slow() -> (Simulator, Vec<String>) {
    let jobs = JobSpec { waiting_ms: 1_000, running_ms: 10_000 };
    let gemini = gemini(World { jobs, ..World::pool(2, 1) }).await;
    let secrets = gemini.world().secrets();
    (gemini, secrets)
}

async fn upload(gemini: &Simulator, secret: &str, path: &str, content: &str) -> Answer {
    let start = [("x-goog-api-key", secret), ("x-goog-upload-command", "start")];
    let begun = send(gemini, "POST", path, &start, r#"{"displayName":"d","mimeType":"text/plain"}"#).await;
    let url = begun.header("x-goog-upload-url").replace(&gemini.url(), "");
    let finish = [("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", "0")];
    send(gemini, "POST", &url, &finish, content).await
}

async fn delete(gemini: &Simulator, secret: &str, path: &str) -> Answer {
    send(gemini, "DELETE", path, &[("x-goog-api-key", secret)], "").await
}

fn name(answer: &Answer) -> String {
    answer.json()["name"].as_str().unwrap_or_else(|| panic!("no name: {}", answer.text())).to_owned()
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_batch_goes_through_its_states_and_leaves_a_file() {
    let (gemini, keys) = slow().await;
    let input = format!("{{\"key\":\"a\",\"request\":{HELLO}}}\n{{\"key\":\"b\",\"request\":{{\"x\":1}}}}\n");
    let file = upload(&gemini, &keys[0], "/upload/v1beta/files", &input).await.json()["file"].clone();
    let asked = json!({"batch": {"displayName": "night", "inputConfig": {"fileName": file["name"]}}});
    let create = "/v1beta/models/gemini-2.5-flash:batchGenerateContent";
    let foreign = post(&gemini, &keys[1], create, &asked.to_string()).await;
    assert_eq!(foreign.status, 403, "the input is not theirs: {}", foreign.text());
    let batch = post(&gemini, &keys[0], create, &asked.to_string()).await;
    let path = format!("/v1beta/{}", name(&batch));
    let early = name(&batch).replace("batches/", "/v1beta/files/batch-");
    assert_eq!(get(&gemini, &keys[0], &early).await.status, 403, "there is no output yet");
    let mut seen = vec![batch.json()];
    for _ in 0..2 {
        gemini.clock().advance_ms(6_000);
        seen.push(get(&gemini, &keys[0], &path).await.json());
    }
    let states: Vec<_> = seen.iter().map(|batch| batch["metadata"]["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["BATCH_STATE_PENDING", "BATCH_STATE_RUNNING", "BATCH_STATE_SUCCEEDED"]);
    assert_eq!([0, 1, 2].map(|at| seen[at]["done"] == true), [false, false, true]);
    let done = &seen[2]["metadata"];
    assert_eq!(
        done["batchStats"],
        json!({"requestCount": "2", "successfulRequestCount": "1", "failedRequestCount": "1"})
    );
    let output = done["output"]["responsesFile"].as_str().unwrap();
    assert_eq!(seen[2]["response"]["responsesFile"], output);
    for path in [
        format!("/download/v1beta/{output}:download?alt=media"),
        format!("/v1beta/{output}:download?alt=media"),
    ] {
        let content = lines(&get(&gemini, &keys[0], &path).await);
        assert_eq!((&content[0]["key"], &content[1]["key"]), (&json!("a"), &json!("b")));
        assert_eq!(content[0]["response"]["candidates"][0]["finishReason"], "STOP");
        assert_eq!(content[1]["error"]["code"], 400);
        assert_eq!(get(&gemini, &keys[1], &path).await.status, 403);
    }
    assert_eq!(get(&gemini, &keys[1], &path).await.status, 404);
    assert_eq!(get(&gemini, &keys[1], "/v1beta/batches").await.json(), json!({}));
    assert_eq!(
        get(&gemini, &keys[0], "/v1beta/batches").await.json()["operations"][0]["metadata"]["displayName"],
        "night"
    );
    assert_eq!(delete(&gemini, &keys[1], &path).await.status, 404);
    assert_eq!(delete(&gemini, &keys[0], &path).await.status, 200);
    assert_eq!(get(&gemini, &keys[0], &path).await.status, 404);
}

#[tokio::test]
async fn a_cancelled_batch_is_over_and_makes_nothing() {
    let (gemini, keys) = slow().await;
    let file = upload(&gemini, &keys[0], "/upload/v1beta/files", "").await.json()["file"]["name"].clone();
    let asked = json!({"batch": {"inputConfig": {"fileName": file}}}).to_string();
    let batch = post(&gemini, &keys[0], "/v1beta/models/gemini-2.5-flash:batchGenerateContent", &asked).await;
    let path = format!("/v1beta/{}", name(&batch));
    let cancel = format!("{path}:cancel");
    assert_eq!(post(&gemini, &keys[1], &cancel, "{}").await.status, 404);
    assert_eq!(post(&gemini, &keys[0], &cancel, "{}").await.json(), json!({}));
    gemini.clock().advance_ms(60_000);
    let over = get(&gemini, &keys[0], &path).await.json();
    assert_eq!((&over["metadata"]["state"], &over["done"]), (&json!("BATCH_STATE_CANCELLED"), &json!(true)));
    assert_eq!(over["error"]["code"], 1);
    assert_eq!(get(&gemini, &keys[0], "/v1beta/files").await.json()["files"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn requests_of_a_batch_can_come_with_it_and_answers_too() {
    let (gemini, keys) = slow().await;
    let request: Value = serde_json::from_str(HELLO).unwrap();
    let content = json!({"content": {"parts": [{"text": "a"}]}});
    for (path, request, member) in [
        ("gemini-2.5-flash:batchGenerateContent", request, "candidates"),
        ("gemini-embedding-001:asyncBatchEmbedContent", content, "embedding"),
    ] {
        let requests = json!([{"request": request, "metadata": {"key": "one"}}]);
        let asked = json!({"batch": {"input_config": {"requests": {"requests": requests}}}}).to_string();
        let batch = post(&gemini, &keys[0], &format!("/v1beta/models/{path}"), &asked).await;
        gemini.clock().advance_ms(11_000);
        let done = get(&gemini, &keys[0], &format!("/v1beta/{}", name(&batch))).await.json();
        let answer = &done["metadata"]["output"]["inlinedResponses"]["inlinedResponses"][0];
        assert_eq!(answer["metadata"]["key"], "one", "{done}");
        assert!(!answer["response"][member].is_null(), "{done}");
    }
    let nothing = post(&gemini, &keys[0], "/v1beta/models/gemini-2.5-flash:batchGenerateContent", "{}").await;
    assert_eq!((nothing.status, gemini.log().last().unwrap().outcome.as_str()), (400, "400:batch_input"));
}

#[tokio::test]
async fn a_compatible_batch_speaks_of_itself_as_openai_does() {
    let (gemini, keys) = slow().await;
    let body = json!({"model": "gemini-2.5-flash", "messages": [{"role": "user", "content": "hi"}]});
    let bad = json!({"model": "gemini-9", "messages": [{"role": "user", "content": "hi"}]});
    let line = |id: &str, body: &Value| json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body});
    let input = format!("{}\n{}\n", line("r1", &body), line("r2", &bad));
    let file = upload(&gemini, &keys[0], "/upload/v1beta/files", &input).await.json()["file"]["name"].clone();
    let asked =
        json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let root = "/v1beta/openai/batches";
    let made = post(&gemini, &keys[0], root, &asked.to_string()).await.json();
    assert_eq!((&made["status"], &made["object"]), (&json!("validating"), &json!("batch")));
    let bearer = [format!("Bearer {}", keys[0]), format!("Bearer {}", keys[1])];
    let path = format!("{root}/{}", made["id"].as_str().unwrap());
    let encoded = path.replace("batches/batches/", "batches/batches%2F");
    let look = async |path: &str, who: usize| {
        send(&gemini, "GET", path, &[("authorization", &bearer[who])], "").await
    };
    gemini.clock().advance_ms(1_000);
    assert_eq!(look(&encoded, 0).await.json()["status"], "in_progress");
    gemini.clock().advance_ms(10_000);
    let done = look(&path, 0).await.json();
    assert_eq!(done["request_counts"], json!({"total": 2, "completed": 1, "failed": 1}));
    assert_eq!((&done["status"], &done["input_file_id"]), (&json!("completed"), &file));
    let foreign = look(&path, 1).await;
    assert_eq!((foreign.status, foreign.message().as_str()), (404, "Requested entity was not found."));
    let output = done["output_file_id"].as_str().unwrap();
    let content =
        lines(&get(&gemini, &keys[0], &format!("/download/v1beta/{output}:download?alt=media")).await);
    assert_eq!(content[0]["response"]["body"]["object"], "chat.completion");
    assert_eq!(
        (&content[1]["custom_id"], &content[1]["response"]["status_code"]),
        (&json!("r2"), &json!(404))
    );
    assert_eq!(look(root, 0).await.json()["data"][0]["id"], made["id"]);

    for prefix in ["", "batches/"] {
        let second = post(&gemini, &keys[0], root, &asked.to_string()).await.json();
        let cancel = format!("{root}/{}/cancel", second["id"].as_str().unwrap().trim_start_matches(prefix));
        assert_eq!(post(&gemini, &keys[0], &cancel, "").await.json()["status"], "cancelled", "{cancel}");
    }
}

#[tokio::test]
async fn batches_have_quota_of_their_own_and_need_an_account_in_order() {
    let only_batches = Limit { model: "gemini-2.5-flash:batch".into(), rpm: Some(1), ..Limit::default() };
    let mut world = World::pool(2, 1);
    world.projects[0].limits = vec![Limit::rpm(1), only_batches];
    world.projects[1].state = ProjectState::PrepayDepleted;
    let gemini = gemini(world).await;
    let keys = gemini.world().secrets();
    let path = "/v1beta/models/gemini-2.5-flash:batchGenerateContent";
    let asked = r#"{"batch":{"inputConfig":{"requests":{"requests":[]}}}}"#;
    let mut statuses = Vec::new();
    let unlimited = path.replace("flash", "pro");
    let all = [(path, asked), (path, asked), (NATIVE, HELLO), (&unlimited, asked), (&unlimited, asked)];
    for (path, body) in all {
        statuses.push(post(&gemini, &keys[0], path, body).await.status);
    }
    assert_eq!(statuses, [200, 429, 200, 200, 200]);
    assert_eq!(gemini.log()[1].outcome, "429:no_details");
    assert_eq!(post(&gemini, &keys[1], path, asked).await.status, 429);
}

#[tokio::test]
async fn a_tuned_model_is_made_by_an_operation_and_used_by_its_project() {
    let (gemini, keys) = slow().await;
    let asked =
        json!({"displayName": "mine", "baseModel": "models/gemini-2.5-flash", "tuningTask": {}}).to_string();
    let operation = post(&gemini, &keys[0], "/v1beta/tunedModels?tunedModelId=mine-1", &asked).await;
    let (operation, metadata) = (name(&operation), operation.json()["metadata"].clone());
    assert!(operation.starts_with("tunedModels/mine-1/operations/"), "{operation}");
    assert_eq!(metadata["tunedModel"], "tunedModels/mine-1");
    let generate = "/v1beta/tunedModels/mine-1:generateContent";
    assert_eq!(post(&gemini, &keys[0], generate, HELLO).await.status, 400);
    assert_eq!(get(&gemini, &keys[0], "/v1beta/tunedModels/mine-1").await.json()["state"], "CREATING");
    gemini.clock().advance_ms(11_000);
    for path in [operation.clone(), format!("operations/{}", operation.rsplit('/').next().unwrap())] {
        let done = get(&gemini, &keys[0], &format!("/v1beta/{path}")).await.json();
        assert_eq!((&done["done"], &done["response"]["state"]), (&json!(true), &json!("ACTIVE")), "{path}");
        assert_eq!(get(&gemini, &keys[1], &format!("/v1beta/{path}")).await.status, 404, "{path}");
    }
    let wrong = operation.replace("mine-1", "mine-2");
    assert_eq!(get(&gemini, &keys[0], &format!("/v1beta/{wrong}")).await.status, 404);
    let answer = post(&gemini, &keys[0], generate, HELLO).await.json();
    assert_eq!(answer["modelVersion"], "tunedModels/mine-1");
    let stream = "/v1beta/tunedModels/mine-1:streamGenerateContent?alt=sse";
    assert!(post(&gemini, &keys[0], stream, HELLO).await.text().starts_with("data: {"));
    let foreign = post(&gemini, &keys[1], generate, HELLO).await;
    assert_eq!((foreign.status, foreign.message().as_str()), (403, "The caller does not have permission"));
    assert_eq!(gemini.log().last().unwrap().model.as_deref(), Some("tunedModels/mine-1"));
    assert_eq!(gemini.stats().bucket("p1", "gemini-2.5-flash").accepted, 2, "the base model's quota");
    let list = get(&gemini, &keys[0], "/v1beta/tunedModels").await.json();
    assert_eq!(list["tunedModels"][0]["displayName"], "mine");
    assert_eq!(get(&gemini, &keys[1], "/v1beta/tunedModels").await.json(), json!({}));
}

#[tokio::test]
async fn documents_of_a_file_search_store_take_a_while_to_be_ready() {
    let (gemini, keys) = slow().await;
    let store = post(&gemini, &keys[0], "/v1beta/fileSearchStores", r#"{"displayName":"My Docs"}"#).await;
    let store = name(&store);
    assert!(store.starts_with("fileSearchStores/my-docs-"), "{store}");
    let path = format!("/v1beta/{store}");
    let file = upload(&gemini, &keys[0], "/upload/v1beta/files", "text").await.json()["file"]["name"].clone();
    let import = json!({"fileName": file}).to_string();
    let imported = post(&gemini, &keys[0], &format!("{path}:importFile"), &import).await;
    let to_store = format!("/upload/v1beta/{store}:uploadToFileSearchStore");
    let uploaded = upload(&gemini, &keys[0], &to_store, "more text").await;
    let operations = [name(&imported), name(&uploaded)];
    assert!(operations[1].starts_with(&format!("{store}/upload/operations/")), "{operations:?}");
    assert_eq!(get(&gemini, &keys[0], &path).await.json()["pendingDocumentsCount"], "2");
    gemini.clock().advance_ms(11_000);
    for operation in operations {
        let done = get(&gemini, &keys[0], &format!("/v1beta/{operation}")).await.json();
        let document = done["response"]["documentName"].as_str().unwrap();
        let document = get(&gemini, &keys[0], &format!("/v1beta/{document}")).await.json();
        assert_eq!(document["state"], "STATE_ACTIVE");
    }
    let shown = get(&gemini, &keys[0], &path).await.json();
    assert_eq!((&shown["activeDocumentsCount"], &shown["sizeBytes"]), (&json!("2"), &json!("13")));
    let documents = get(&gemini, &keys[0], &format!("{path}/documents?pageSize=1")).await.json();
    assert_eq!(
        (documents["documents"].as_array().unwrap().len(), &documents["nextPageToken"]),
        (1, &json!("1"))
    );

    let tools = json!([{"fileSearch": {"fileSearchStoreNames": [store]}}]);
    let using = HELLO.replacen('{', &format!("{{\"tools\":{tools},"), 1);
    let generate = "/v1beta/models/gemini-2.5-flash:generateContent";
    for (key, status) in [(&keys[0], 200), (&keys[1], 403)] {
        assert_eq!(post(&gemini, key, generate, &using).await.status, status);
        assert_eq!(get(&gemini, key, &path).await.status, status);
    }
    assert_eq!(delete(&gemini, &keys[0], &path).await.status, 400, "it is not empty");
    assert_eq!(delete(&gemini, &keys[0], &format!("{path}?force=true")).await.status, 200);
    assert_eq!(get(&gemini, &keys[0], &path).await.status, 403);
}

#[tokio::test]
async fn a_video_and_an_interaction_in_the_background_are_asked_for_until_they_are_there() {
    let (gemini, keys) = slow().await;
    let predict = "/v1beta/models/gemini-2.5-flash:predictLongRunning";
    let operation = name(&post(&gemini, &keys[0], predict, r#"{"instances":[{"prompt":"sea"}]}"#).await);
    let asked = r#"{"model":"gemini-2.5-flash","input":"hi","background":true}"#;
    let begun = post(&gemini, &keys[0], "/v1beta/interactions", asked).await.json();
    let interaction = format!("/v1beta/interactions/{}", begun["id"].as_str().unwrap());
    let other = post(&gemini, &keys[0], "/v1beta/interactions", asked).await.json();
    let cancel = format!("/v1beta/interactions/{}/cancel", other["id"].as_str().unwrap());
    assert_eq!(post(&gemini, &keys[0], &cancel, "").await.json()["status"], "cancelled");
    assert!(begun["status"] == "in_progress" && begun.get("outputs").is_none(), "{begun}");
    assert!(get(&gemini, &keys[0], &format!("/v1beta/{operation}")).await.json().get("done").is_none());
    gemini.clock().advance_ms(11_000);
    let done = get(&gemini, &keys[0], &format!("/v1beta/{operation}")).await.json();
    let uri =
        done["response"]["generateVideoResponse"]["generatedSamples"][0]["video"]["uri"].as_str().unwrap();
    let path = uri.trim_start_matches("https://generativelanguage.googleapis.com");
    assert_eq!(get(&gemini, &keys[0], path).await.body[4..8], *b"ftyp");
    let done = get(&gemini, &keys[0], &interaction).await.json();
    assert!(done["status"] == "completed" && done["outputs"][0]["type"] == "text", "{done}");
}

#[tokio::test]
async fn a_compatible_video_is_asked_for_by_form_or_json_and_has_its_address_at_the_end() {
    let (gemini, keys) = slow().await;
    let bearer = [format!("Bearer {}", keys[0]), format!("Bearer {}", keys[1])];
    let root = "/v1beta/openai/videos";
    let part = |name: &str, value: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let form = format!("{}{}--b--\r\n", part("prompt", "sea"), part("model", "gemini-2.5-flash"));
    for body in [r#"{"model":"gemini-2.5-flash","prompt":"sea"}"#, &form] {
        let made = send(&gemini, "POST", root, &[("authorization", &bearer[0])], body).await.json();
        assert_eq!((&made["object"], &made["status"]), (&json!("video"), &json!("queued")), "{made}");
        let path = format!("{root}/{}", made["id"].as_str().unwrap());
        gemini.clock().advance_ms(11_000);
        let done = send(&gemini, "GET", &path, &[("authorization", &bearer[0])], "").await.json();
        assert_eq!(done["status"], "completed");
        let address = done["url"].as_str().unwrap();
        let address = address.trim_start_matches("https://generativelanguage.googleapis.com");
        assert_eq!(get(&gemini, &keys[0], address).await.body[4..8], *b"ftyp");
        let foreign = send(&gemini, "GET", &path, &[("authorization", &bearer[1])], "").await;
        assert_eq!(foreign.message(), "Requested entity was not found.");
    }
    let nothing = send(&gemini, "POST", root, &[("authorization", &bearer[0])], "{}").await;
    assert_eq!(nothing.status, 400);
}
