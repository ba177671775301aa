//! Cached contents, batches and interactions: small, but each belongs to the project that made it.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::answer::Rendered;
use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::errors::{self, Failure};
use crate::models;
use crate::reply::Reply;
use crate::route::{Kind, Surface};
use crate::store::Resource;

const HOUR_MS: i64 = 3_600_000;
const DAYS_MS: i64 = 55 * 24 * HOUR_MS;

pub(crate) fn serve(
    call: &mut Call<'_>,
    kind: Kind,
    id: Option<&str>,
    verb: Option<&str>,
) -> Result<Reply, Failure> {
    let method = call.head.method.clone();
    let Some(id) = id else {
        return match (kind, method) {
            (Kind::CachedContents, Method::POST) => create_cache(call),
            (Kind::Interactions, Method::POST) => interact(call),
            (Kind::Batches, Method::POST) => Ok(create_batch(call, "")),
            _ => Ok(list(call, kind)),
        };
    };
    let mut found = own(call, kind, id)?;
    match (method, verb) {
        (Method::DELETE, _) => {
            call.state.store.remove(kind, id);
            Ok(whole(models::pretty(&json!({}))))
        }
        (Method::POST, Some("cancel")) => {
            found.body["metadata"]["state"] = json!("BATCH_STATE_CANCELLED");
            call.state.store.put(kind, id, found);
            Ok(whole(models::pretty(&json!({}))))
        }
        (Method::PATCH, _) => {
            let asked: Value = serde_json::from_slice(call.body).unwrap_or_default();
            found.expires_ms = call.now_ms + lifetime(&asked);
            found.body["expireTime"] = json!(rfc3339(found.expires_ms));
            found.body["updateTime"] = json!(rfc3339(call.now_ms));
            let reply = whole(models::pretty(&found.body));
            call.state.store.put(kind, id, found);
            Ok(reply)
        }
        (Method::GET, _) => Ok(whole(models::pretty(&found.body))),
        _ => Err(errors::not_found_page()),
    }
}

fn list(call: &Call<'_>, kind: Kind) -> Reply {
    let all = call.state.store.list(kind, &call.caller.project.id, call.now_ms);
    let body = match kind {
        Kind::Batches if call.route.surface == Surface::Compat => {
            json!({"object": "list", "data": all, "has_more": false})
        }
        _ if all.is_empty() => json!({}),
        Kind::Batches => json!({"operations": all}),
        _ => json!({kind.collection(): all}),
    };
    whole(models::pretty(&body))
}

fn own(call: &Call<'_>, kind: Kind, id: &str) -> Result<Resource, Failure> {
    let found = call.state.store.get(kind, id, call.now_ms);
    found.filter(|found| found.project == call.caller.project.id).ok_or_else(|| match kind {
        Kind::CachedContents => errors::cache_forbidden(),
        _ => Failure::api("404:resource", 404, "NOT_FOUND", "Requested entity was not found."),
    })
}

fn keep(call: &Call<'_>, kind: Kind, id: &str, body: Value, lives_ms: i64) {
    let resource = Resource {
        project: call.caller.project.id.clone(),
        body,
        expires_ms: call.now_ms + lives_ms,
        content: Bytes::new(),
    };
    call.state.store.put(kind, id, resource);
}

/// `ttl` is seconds with an `s`, an hour when absent.
fn lifetime(asked: &Value) -> i64 {
    let seconds = asked["ttl"].as_str().and_then(|ttl| ttl.strip_suffix('s')?.parse::<i64>().ok());
    seconds.map_or(HOUR_MS, |seconds| seconds.clamp(1, DAYS_MS / 1000) * 1000)
}

fn create_cache(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked: Value = serde_json::from_slice(call.body).map_err(|_| {
        errors::bad_request("400:json", "Invalid JSON payload received. Unexpected token.\n^")
    })?;
    let model = asked["model"].as_str().unwrap_or_default();
    let model = call.model(model, "createCachedContent", Some(false))?.id.clone();
    crate::files::check_references(call)?;
    let (id, lives_ms, now) = (call.chance.id(16, LOWER), lifetime(&asked), rfc3339(call.now_ms));
    let mut body = json!({
        "name": format!("cachedContents/{id}"), "model": format!("models/{model}"), "createTime": now,
        "updateTime": now, "expireTime": rfc3339(call.now_ms + lives_ms),
        "usageMetadata": {"totalTokenCount": call.prompt_tokens()},
    });
    if let Some(display_name) = asked["displayName"].as_str() {
        body["displayName"] = json!(display_name);
    }
    let reply = whole(models::pretty(&body));
    keep(call, Kind::CachedContents, &id, body, lives_ms);
    Ok(reply)
}

pub(crate) fn create_batch(call: &mut Call<'_>, model: &str) -> Reply {
    let id = call.chance.id(20, LOWER);
    let asked: Value = serde_json::from_slice(call.body).unwrap_or_default();
    let now = rfc3339(call.now_ms);
    let body = if call.route.surface == Surface::Compat {
        json!({
            "id": format!("batches/{id}"), "object": "batch", "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"], "completion_window": asked["completion_window"],
            "status": "validating", "created_at": call.now_ms / 1000,
        })
    } else {
        json!({
            "name": format!("batches/{id}"),
            "metadata": {
                "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
                "name": format!("batches/{id}"), "model": format!("models/{model}"), "createTime": now,
                "updateTime": now, "state": "BATCH_STATE_PENDING", "displayName": asked["batch"]["displayName"],
            },
        })
    };
    let reply = whole(models::pretty(&body));
    keep(call, Kind::Batches, &id, body, 2 * 24 * HOUR_MS);
    reply
}

fn interact(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked: Value = serde_json::from_slice(call.body)
        .map_err(|_| errors::bad_request("400:json", "Invalid JSON payload received."))?;
    if let Some(previous) = asked["previous_interaction_id"].as_str() {
        own(call, Kind::Interactions, previous)?;
    }
    let model = asked["model"].as_str().unwrap_or_default();
    let model = call.model(model, "interactions", Some(false))?.id.clone();
    call.charge(&model)?;
    let id = call.chance.id(24, LOWER);
    let script = &call.pool.script;
    let (input, output) = (call.prompt_tokens(), script.plain.tokens);
    let usage = json!({
        "total_input_tokens": input, "total_output_tokens": output, "total_tokens": input + output,
    });
    let body = json!({
        "id": id, "object": "interaction", "model": model, "role": "model", "status": "completed",
        "created": rfc3339(call.now_ms), "updated": rfc3339(call.now_ms),
        "outputs": [{"type": "text", "text": script.plain.text}], "usage": usage,
    });
    if asked["store"] != json!(false) {
        keep(call, Kind::Interactions, &id, body.clone(), DAYS_MS);
    }
    if asked["stream"] != json!(true) {
        let rendered = models::compact(&body);
        return Ok(call.paced(rendered));
    }
    let event = |kind: &str, member: &str, value: &Value| {
        let data = json!({"event_type": kind, member: value});
        Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
    };
    let begun = json!({"id": id, "status": "in_progress"});
    let mut frames = vec![event("interaction.start", "interaction", &begun)];
    frames.extend(
        script
            .chunks
            .iter()
            .map(|piece| event("content.delta", "delta", &json!({"type": "text", "text": piece.text}))),
    );
    frames.push(event("interaction.complete", "interaction", &body));
    Ok(call.paced(Rendered::event_stream(frames, b"data: [DONE]\n\n")))
}
