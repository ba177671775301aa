//! Framing, shapes and validation of answers on both surfaces.

use keyfleet_simulator::{AnswerSpec, World};
use serde_json::{Value, json};

use crate::client::{CHAT, HELLO, NATIVE, STREAM, chat, gemini, get, post};

fn two_chunks() -> World {
    let answer =
        AnswerSpec { chunks: 2, tokens_per_chunk: 3, text: "Hé\"y".into(), ..AnswerSpec::default() };
    World { answer, ..World::pool(1, 1) }
}

#[tokio::test]
async fn a_compatible_stream_has_lf_framing_a_role_everywhere_and_running_usage() {
    let gemini = gemini(two_chunks()).await;
    let secret = &gemini.world().secrets()[0];
    let body = chat("models/gemini-2.5-flash", true);
    let answer = post(&gemini, secret, CHAT, &body).await;
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let text = answer.text();
    let first: Value = serde_json::from_str(&text[6..text.find('\n').unwrap()]).unwrap();
    let (id, created) = (first["id"].as_str().unwrap(), &first["created"]);
    let prompt = body.len() / 4;
    let tail = |completion: usize| {
        let total = prompt + completion;
        format!(
            "\"created\":{created},\"id\":\"{id}\",\"model\":\"gemini-2.5-flash\",\"object\":\
             \"chat.completion.chunk\",\"usage\":{{\"completion_tokens\":{completion},\"prompt_tokens\":{prompt},\
             \"total_tokens\":{total}}}}}\n\n"
        )
    };
    let expected = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"Hé\",\"role\":\"assistant\"}},\"index\":0}}],{}\
         data: {{\"choices\":[{{\"delta\":{{\"content\":\"\\\"y\",\"role\":\"assistant\"}},\"index\":0}}],{}\
         data: {{\"choices\":[{{\"delta\":{{\"role\":\"assistant\"}},\"finish_reason\":\"stop\",\"index\":0}}],{}\
         data: [DONE]\n\n",
        tail(3),
        tail(6),
        tail(6)
    );
    assert_eq!(text, expected);
}

#[tokio::test]
async fn a_native_stream_is_crlf_events_or_one_array() {
    let gemini = gemini(two_chunks()).await;
    let secret = &gemini.world().secrets()[0];
    let events = post(&gemini, secret, &format!("{STREAM}?alt=sse"), HELLO).await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    let text = events.text();
    let parts: Vec<&str> = text.split("\r\n\r\n").collect();
    assert_eq!((parts.len(), parts[2]), (3, ""), "{text}");
    assert!(parts[0].starts_with(
        "data: {\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"Hé\"}],\"role\": \"model\"},\"index\": 0}]"
    ));
    assert!(!parts[0].contains("finishReason") && parts[1].contains("\"finishReason\": \"STOP\""));
    assert!(!text.contains("[DONE]"));

    let newer = format!("{}?alt=sse", STREAM.replace("2.5", "3.8"));
    let newer = post(&gemini, secret, &newer, HELLO).await.text();
    let last = newer.trim_end().rsplit("\r\n\r\n").next().unwrap().to_owned();
    assert!(last.contains("\"parts\": [{\"text\": \"\"}]") && last.contains("STOP"), "{newer}");

    let array = post(&gemini, secret, STREAM, HELLO).await;
    assert_eq!(array.header("content-type"), "application/json; charset=UTF-8");
    assert!(array.text().starts_with("[{\n  \"candidates\"") && array.text().contains("\n},\r\n{\n"));
    assert_eq!(array.json()[1]["usageMetadata"]["totalTokenCount"], 6 + HELLO.len() / 4);

    let refused = post(&gemini, secret, STREAM, "{}").await;
    assert!(refused.text().starts_with("[{\n  \"error\""), "{}", refused.text());
}

#[tokio::test]
async fn a_plain_answer_has_googles_headers_and_sorted_members() {
    let gemini = gemini(two_chunks()).await;
    let secret = &gemini.world().secrets()[0];
    let answer = post(&gemini, secret, CHAT, &chat("gemini-2.5-flash", false)).await;
    assert!(
        answer.text().starts_with(
            "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"message\":{\"content\":\"Hé\\\"y\",\"role\":\
             \"assistant\"}}],\"created\":"
        ),
        "{}",
        answer.text()
    );
    assert_eq!((answer.header("server"), answer.header("retry-after")), ("ESF", ""));
    assert_eq!(answer.header("alt-svc"), "h3=\":443\"; ma=2592000");
    let native = post(&gemini, secret, &NATIVE.replace(':', "%3A"), HELLO).await;
    assert_eq!(native.json()["candidates"][0]["content"]["parts"][0]["text"], "Hé\"y");
}

#[tokio::test]
async fn tool_calls_come_whole_signed_and_without_index_and_must_come_back_signed() {
    let gemini = gemini(two_chunks()).await;
    let secret = &gemini.world().secrets()[0];
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    }}}]);
    let user = json!({"role": "user", "content": "rain?"});
    let mut body = json!({"model": "gemini-3.8-flash", "messages": [user], "tools": tools});
    let plain = post(&gemini, secret, CHAT, &body.to_string()).await.json();
    assert_eq!(plain["choices"][0]["finish_reason"], "tool_calls");
    let call = plain["choices"][0]["message"]["tool_calls"][0].clone();
    assert_eq!(call["function"]["arguments"], "{\"city\":\"sample\",\"days\":1}");
    assert!(call.get("index").is_none());

    body["stream"] = json!(true);
    let stream = post(&gemini, secret, CHAT, &body.to_string()).await.text();
    assert!(stream.contains("\"thought_signature\"") && stream.contains("\"finish_reason\":\"stop\""));
    assert!(!stream.contains("\"finish_reason\":\"tool_calls\""), "{stream}");

    let turn = |call: &Value| json!([user, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": "no"}]);
    body["messages"] = turn(&call);
    let answered = post(&gemini, secret, CHAT, &body.to_string()).await;
    assert!(answered.text().contains("\"content\":\"Hé\""), "{}", answered.text());
    let mut stripped = call.clone();
    stripped.as_object_mut().unwrap().remove("extra_content");
    body["messages"] = turn(&stripped);
    let refused = post(&gemini, secret, CHAT, &body.to_string()).await;
    assert!(refused.message().starts_with("Function call is missing a thought_signature"));
    let mut damaged = call;
    damaged["extra_content"]["google"]["thought_signature"] = json!("AAAA");
    body["messages"] = turn(&damaged);
    let refused = post(&gemini, secret, CHAT, &body.to_string()).await;
    assert_eq!((refused.status, refused.message().as_str()), (400, "Corrupted thought signature."));
}

#[tokio::test]
async fn fields_that_protobuf_does_not_know_are_refused_in_their_order() {
    let gemini = gemini(two_chunks()).await;
    let secret = &gemini.world().secrets()[0];
    let body = r#"{"store":true,"model":"gemini-2.5-flash","messages":[{}],"metadata":{},"temperature":1}"#;
    let answer = post(&gemini, secret, CHAT, body).await;
    assert_eq!(answer.status, 400);
    let violations = &answer.json()[0]["error"]["details"][0]["fieldViolations"];
    let description =
        |name| format!("Invalid JSON payload received. Unknown name \"{name}\": Cannot find field.");
    assert_eq!(
        *violations,
        json!([{"description": description("store")}, {"description": description("metadata")}])
    );
    let native = post(&gemini, secret, NATIVE, r#"{"contents":[{}],"messages":[]}"#).await;
    assert_eq!(native.json()["error"]["message"], description("messages"));
    assert_eq!(gemini.log()[0].outcome, "400:unknown_field");
}

#[tokio::test]
async fn models_embeddings_and_counts_speak_the_dialect_of_their_surface() {
    let gemini = gemini(two_chunks()).await;
    let secret = &gemini.world().secrets()[0];
    let bearer = format!("Bearer {secret}");
    let list = crate::client::send(
        &gemini,
        "GET",
        "/v1beta/openai/models",
        &[("authorization", bearer.as_str())],
        "",
    )
    .await;
    assert_eq!(list.json()["data"][0]["id"], "models/gemini-2.5-flash");
    let page = get(&gemini, secret, "/v1/models?pageSize=2").await.json();
    assert_eq!(page["models"].as_array().unwrap().len(), 2);
    let next = format!("/v1/models?pageSize=100&pageToken={}", page["nextPageToken"].as_str().unwrap());
    assert!(get(&gemini, secret, &next).await.json().get("nextPageToken").is_none());
    assert_eq!(get(&gemini, secret, "/v1beta/models/gemini-9").await.status, 404);

    let ask = |format: &str| {
        format!(
            r#"{{"model":"gemini-embedding-001","input":"a","dimensions":1,"encoding_format":"{format}"}}"#
        )
    };
    let path = "/v1beta/openai/embeddings";
    let floats = post(&gemini, secret, path, &ask("float")).await.json();
    assert_eq!(floats["data"][0]["embedding"], json!([-0.037_109_375]));
    let packed = post(&gemini, secret, path, &ask("base64")).await.json();
    assert_eq!(packed["data"][0]["embedding"], "AAAYvQ==");
    let hundred_and_one = json!({"model": "gemini-embedding-001", "input": vec!["x"; 101]}).to_string();
    assert_eq!(post(&gemini, secret, path, &hundred_and_one).await.status, 400);
    let batch = "/v1beta/models/gemini-embedding-001:batchEmbedContents";
    let body = json!({"requests": [{"content": {"parts": [{"text": "a"}]}}, {"content": {"parts": []}}]});
    let batch = post(&gemini, secret, batch, &body.to_string()).await.json();
    assert_eq!(batch["embeddings"].as_array().unwrap().len(), 2);

    let count = "/v1beta/models/gemini-2.5-flash:countTokens";
    assert_eq!(post(&gemini, secret, count, HELLO).await.json()["totalTokens"], HELLO.len() / 4);
    let null = post(&gemini, secret, count, r#"{"contents":null}"#).await;
    assert_eq!((null.status, null.json()), (200, json!({})));

    let missing = post(&gemini, secret, "/v1beta/openai/responses", "{}").await;
    assert_eq!((missing.status, missing.body.len()), (404, 0));
    let nowhere = post(&gemini, secret, "/v2/anything", "{}").await;
    assert!(nowhere.status == 404 && nowhere.text().starts_with("<!DOCTYPE html>"));
}

#[tokio::test]
async fn thoughts_are_counted_always_and_shown_when_asked_for() {
    let mut world = two_chunks();
    world.answer.thinking = true;
    let gemini = gemini(world).await;
    let secret = &gemini.world().secrets()[0];
    let asking = r#"{"contents":[{}],"generationConfig":{"thinkingConfig":{"includeThoughts":true}}}"#;
    let shown = post(&gemini, secret, NATIVE, asking).await.json();
    assert_eq!(shown["candidates"][0]["content"]["parts"][0]["thought"], true);
    let silent = post(&gemini, secret, NATIVE, HELLO).await.json();
    assert_eq!(silent["candidates"][0]["content"]["parts"].as_array().unwrap().len(), 1);
    let usage = &silent["usageMetadata"];
    assert_eq!(
        (&usage["thoughtsTokenCount"], &usage["totalTokenCount"]),
        (&json!(25), &json!(6 + 25 + HELLO.len() / 4))
    );
    let google = r#""extra_body":{"google":{"thinking_config":{"include_thoughts":true}}},"#;
    let body = chat("gemini-2.5-flash", true).replacen('{', &format!("{{{google}"), 1);
    let stream = post(&gemini, secret, CHAT, &body).await.text();
    assert!(stream.starts_with("data: {\"choices\":[{\"delta\":{\"content\":\"<thought>"), "{stream}");
    assert!(stream.contains("\"extra_content\":{\"google\":{\"thought\":true}}"));
    let both = body.replacen('{', "{\"reasoning_effort\":\"low\",", 1);
    assert_eq!(post(&gemini, secret, CHAT, &both).await.status, 400);
}

#[tokio::test]
async fn parallel_calls_stand_in_chunks_of_their_own_and_only_the_first_is_signed() {
    let mut world = two_chunks();
    world.answer.parallel_tools = true;
    let gemini = gemini(world).await;
    let secret = &gemini.world().secrets()[0];
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let body = json!({
        "model": "gemini-3.8-flash", "stream": true, "messages": [{"role": "user", "content": "both"}],
        "tools": [tool("left"), tool("right")],
    });
    let stream = post(&gemini, secret, CHAT, &body.to_string()).await.text();
    let events: Vec<&str> = stream.split("\n\n").collect();
    assert!(events[0].contains("\"left\"") && events[0].contains("thought_signature"), "{stream}");
    assert!(events[1].contains("\"right\"") && !events[1].contains("thought_signature"), "{stream}");
    assert!(!stream.contains("\"tool_calls\":[{\"index\""));
}
