//! Interactions: answers that are stored, at once or in the background, in a dialect of their own.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Rendered;
use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::errors::Failure;
use crate::jobs::{Job, Stage};
use crate::models;
use crate::reply::Reply;
use crate::resources::{self, DAYS_MS};
use crate::route::Kind;
use crate::store::Resource;

pub(crate) fn create(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked = resources::asked(call)?;
    if let Some(previous) = asked["previous_interaction_id"].as_str() {
        resources::own(call, Kind::Interactions, previous)?;
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
    let background = asked["background"] == json!(true);
    let job = background.then(|| Job::new(call.pool.world.jobs, call.now_ms, Value::Null));
    let stored = Resource::new(&call.caller.project.id, body.clone(), call.now_ms, DAYS_MS);
    let stored = Resource { job, ..stored };
    if background {
        let reply = whole(models::compact(&shown(&stored, call.now_ms)));
        call.state.store.put(Kind::Interactions, &id, stored);
        return Ok(reply);
    }
    if asked["store"] != json!(false) {
        call.state.store.put(Kind::Interactions, &id, stored);
    }
    let rendered = if asked["stream"] == json!(true) { stream(call, &body) } else { models::compact(&body) };
    Ok(call.paced(rendered))
}

fn stream(call: &Call<'_>, body: &Value) -> Rendered {
    let event = |kind: &str, member: &str, value: &Value| {
        let data = json!({"event_type": kind, member: value});
        Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
    };
    let begun = json!({"id": body["id"], "status": "in_progress"});
    let mut frames = vec![event("interaction.start", "interaction", &begun)];
    let pieces = call.pool.script.chunks.iter();
    frames.extend(
        pieces.map(|piece| event("content.delta", "delta", &json!({"type": "text", "text": piece.text}))),
    );
    frames.push(event("interaction.complete", "interaction", body));
    Rendered::event_stream(frames, b"data: [DONE]\n\n")
}

/// Without its outputs as long as there are none.
pub(crate) fn shown(found: &Resource, now_ms: i64) -> Value {
    let mut body = found.body.clone();
    let Some(job) = &found.job else { return body };
    let status = match job.stage(now_ms) {
        Stage::Done => "completed",
        Stage::Waiting | Stage::Running => "in_progress",
        Stage::Cancelled => "cancelled",
    };
    body["status"] = json!(status);
    body["updated"] = json!(rfc3339(job.changed_ms(now_ms, found.created_ms)));
    if status != "completed"
        && let Some(fields) = body.as_object_mut()
    {
        fields.remove("outputs");
        fields.remove("usage");
    }
    body
}
