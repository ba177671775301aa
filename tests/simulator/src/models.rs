//! The model lists of both dialects.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Rendered;
use crate::world::Model;

const JSON: &str = "application/json; charset=UTF-8";

pub(crate) fn compat_list(models: &[Model]) -> Rendered {
    let data: Vec<Value> = models.iter().map(compat_entry).collect();
    compact(&json!({"object": "list", "data": data}))
}

pub(crate) fn compat_one(model: &Model) -> Rendered {
    compact(&compat_entry(model))
}

pub(crate) fn native_list(models: &[Model], query: &str) -> Rendered {
    pretty(&page("models", models, query, native_entry))
}

/// One page of a list, as `pageSize` and `pageToken` ask for it.
pub(crate) fn page<T>(name: &str, all: &[T], query: &str, entry: impl Fn(&T) -> Value) -> Value {
    let param = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let size =
        param("pageSize").and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(50_usize).min(1000);
    let start = param("pageToken").and_then(|n| n.parse().ok()).unwrap_or(0_usize).min(all.len());
    let end = (start + size).min(all.len());
    let mut body = json!({});
    if start < end {
        body[name] = all[start..end].iter().map(entry).collect();
    }
    if end < all.len() {
        body["nextPageToken"] = json!(end.to_string());
    }
    body
}

pub(crate) fn native_one(model: &Model) -> Rendered {
    pretty(&native_entry(model))
}

fn compat_entry(model: &Model) -> Value {
    json!({
        "id": format!("models/{}", model.id), "object": "model", "owned_by": "google", "display_name": title(&model.id),
    })
}

fn native_entry(model: &Model) -> Value {
    let methods = if model.embedding {
        json!(["embedContent", "countTextTokens", "countTokens", "asyncBatchEmbedContent"])
    } else {
        json!(["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"])
    };
    let mut entry = json!({
        "name": format!("models/{}", model.id), "version": "001", "displayName": title(&model.id),
        "description": format!("Simulated {}", title(&model.id)), "inputTokenLimit": model.input_token_limit,
        "outputTokenLimit": if model.embedding { 1 } else { 65_536 }, "supportedGenerationMethods": methods,
    });
    if !model.embedding {
        let sampling =
            json!({"temperature": 1, "topP": 0.95, "topK": 64, "maxTemperature": 2, "thinking": true});
        for (name, value) in sampling.as_object().into_iter().flatten() {
            entry[name.as_str()] = value.clone();
        }
    }
    entry
}

/// `gemini-2.5-flash` is shown as `Gemini 2.5 Flash`.
fn title(id: &str) -> String {
    let word = |part: &str| {
        let mut letters = part.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    };
    id.split('-').map(word).collect::<Vec<String>>().join(" ")
}

pub(crate) fn compact(body: &Value) -> Rendered {
    Rendered::whole(JSON, Bytes::from(body.to_string()))
}

pub(crate) fn pretty(body: &Value) -> Rendered {
    let text = serde_json::to_string_pretty(body).unwrap_or_default();
    Rendered::whole(JSON, Bytes::from(text + "\n"))
}
