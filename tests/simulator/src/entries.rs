//! The requests of a batch, one by one: read from a file or from the call itself, and answered.

use serde_json::{Value, json};

use crate::answer::{Rendered, Turn};
use crate::ask::{self, Ask, Fields};
use crate::call::Call;
use crate::chance::MIXED;
use crate::errors::{self, Body, Failure};
use crate::{compat, embed, native as words};

/// More requests in one batch are refused.
const MOST: usize = 50_000;

/// What to call each request, and the request.
pub(crate) type Entries = Vec<(Value, Value)>;

pub(crate) fn inline(requests: &Value) -> Result<Entries, Failure> {
    let Some(requests) = requests.as_array() else {
        let message = "* BatchGenerateContentRequest.batch.input_config: source is not specified\n";
        return Err(errors::bad_request("400:batch_input", message));
    };
    limited(requests.iter().map(|entry| (entry["metadata"].clone(), entry["request"].clone())).collect())
}

/// One JSON object on each line, its name in the field `key`.
pub(crate) fn of_file(content: &[u8], key: &str) -> Result<Entries, Failure> {
    let request = if key == "custom_id" { "body" } else { "request" };
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let entry = |line: &[u8]| {
        let line: Value = serde_json::from_slice(line).ok()?;
        Some((line.get(key)?.clone(), line.get(request)?.clone()))
    };
    let entries: Option<Entries> = lines.take(MOST + 1).map(entry).collect();
    let Some(entries) = entries else {
        return Err(errors::bad_request(
            "400:batch_file",
            "The input file is not a valid JSONL file of requests.",
        ));
    };
    limited(entries)
}

fn limited(entries: Entries) -> Result<Entries, Failure> {
    if entries.len() > MOST {
        return Err(errors::bad_request(
            "400:batch_size",
            format!("At most {MOST} requests can be in one batch."),
        ));
    }
    Ok(entries)
}

/// A line of a native batch, and whether it is an answer.
pub(crate) fn native(call: &mut Call<'_>, model: &str, request: &Value, embeds: bool) -> (Value, bool) {
    let text = request.to_string();
    let answered = Fields::parse(text.as_bytes()).and_then(|fields| {
        if embeds {
            let ask = ask::native_embeddings(&fields, false)?;
            let model = call.model(model, "embedContent", Some(true))?;
            return Ok(value(&embed::native(&ask, model.dimensions, false)));
        }
        let ask = ask::generate(&fields, model, false, call.pool.script.parallel_tools)?;
        Ok(generated(call, &ask, text.len(), words::plain))
    });
    match answered {
        Ok(response) => (json!({"response": response}), true),
        Err(failure) => (json!({"error": error(&failure)}), false),
    }
}

/// A line of a compatible batch, and whether it is an answer.
pub(crate) fn compat(call: &mut Call<'_>, request: &Value) -> (Value, bool) {
    let text = request.to_string();
    let answered = Fields::parse(text.as_bytes()).and_then(|fields| {
        if fields.get("input").is_some() {
            let ask = ask::compat_embeddings(&fields)?;
            let named = ask::model_of(&fields).unwrap_or_default();
            let model = call.model(&named, "embedContent", Some(true))?;
            return Ok(value(&embed::compat(&ask, &model.id, model.dimensions)));
        }
        let ask = ask::chat(&fields, call.pool.script.parallel_tools)?;
        call.model(&ask.model, "generateContent", Some(false))?;
        Ok(generated(call, &ask, text.len(), compat::plain))
    });
    let (code, body, good) = match answered {
        Ok(body) => (200, body, true),
        Err(failure) => (failure.code, json!([{"error": error(&failure)}]), false),
    };
    let id = call.chance.id(16, MIXED);
    let response = json!({"status_code": code, "request_id": id, "body": body});
    (json!({"id": format!("batch_req_{id}"), "response": response, "error": null}), good)
}

fn generated(call: &mut Call<'_>, ask: &Ask, bytes: usize, render: fn(&mut Turn<'_>) -> Rendered) -> Value {
    let mut turn = Turn {
        script: &call.pool.script,
        model: &ask.model,
        prompt_tokens: (bytes as u64 / 4).max(1),
        cached_tokens: 0,
        calls: &ask.calls,
        include_thoughts: ask.include_thoughts,
        id: call.chance.id(22, MIXED),
        created_s: call.now_ms / 1000,
        usage: true,
        empty: false,
        blank: None,
        chance: call.chance.clone(),
    };
    value(&render(&mut turn))
}

/// What was rendered for a body of its own, as a part of another.
fn value(rendered: &Rendered) -> Value {
    serde_json::from_slice(&rendered.frames.concat()).unwrap_or_default()
}

fn error(failure: &Failure) -> Value {
    let (message, status) = match &failure.body {
        Body::Api { status, message, .. } => (message.as_ref(), *status),
        Body::Html(_) | Body::Empty => ("", ""),
    };
    json!({"code": failure.code, "message": message, "status": status})
}
