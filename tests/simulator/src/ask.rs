//! What a request asks for: one pass over its top-level fields, with protobuf's strictness about their names.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::errors::{self, Failure};
use crate::tools::{self, ToolCall};

/// The top-level fields of a body in their order, unread.
pub(crate) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(name) = map.next_key::<Name<'de>>()? {
                    fields.push((name.0, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A field name, borrowed unless it holds an escape.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Failure> {
        serde_json::from_slice(body).map_err(|_| {
            errors::bad_request("400:json", "Invalid JSON payload received. Unexpected token.\n^")
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, raw)| raw.get())
    }

    /// The first of several spellings.
    fn any(&self, names: [&str; 2]) -> Option<&'a str> {
        names.iter().find_map(|name| self.get(name))
    }

    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        serde_json::from_str(self.get(name)?).ok()
    }

    fn refuse_unknown(&self, known: &[&str]) -> Result<(), Failure> {
        let unknown = |(name, _): &(Cow<'_, str>, &RawValue)| {
            (!known.contains(&name.as_ref())).then(|| (name.clone().into_owned(), ""))
        };
        let names: Vec<(String, &'static str)> = self.0.iter().filter_map(unknown).collect();
        if names.is_empty() { Ok(()) } else { Err(errors::unknown_fields(&names)) }
    }
}

const CHAT_FIELDS: &[&str] = &[
    "extra_body",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "n",
    "reasoning_effort",
    "response_format",
    "seed",
    "service_tier",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "user",
];

const GENERATE_FIELDS: &[&str] = &[
    "cachedContent",
    "cached_content",
    "contents",
    "generationConfig",
    "generation_config",
    "labels",
    "model",
    "safetySettings",
    "safety_settings",
    "serviceTier",
    "service_tier",
    "store",
    "systemInstruction",
    "system_instruction",
    "toolConfig",
    "tool_config",
    "tools",
];

const EMBEDDING_FIELDS: &[&str] = &["dimensions", "encoding_format", "extra_body", "input", "model", "user"];

/// A generation that was asked for, whatever the surface.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) include_thoughts: bool,
}

/// The model of a compatible request, before anything else is checked.
pub(crate) fn model_of(fields: &Fields<'_>) -> Option<String> {
    let model: String = serde_json::from_str(fields.get("model")?).ok()?;
    Some(model.strip_prefix("models/").unwrap_or(&model).to_owned())
}

pub(crate) fn chat(fields: &Fields<'_>, parallel: bool) -> Result<Ask, Failure> {
    fields.refuse_unknown(CHAT_FIELDS)?;
    let Some(model) = model_of(fields) else {
        return Err(errors::bad_request("400:model", "model is not specified"));
    };
    let Some(messages) = fields.get("messages").filter(|raw| *raw != "[]" && *raw != "null") else {
        return Err(no_contents());
    };
    let mut ask = Ask { model, stream: fields.get("stream") == Some("true"), ..Ask::default() };
    if let Some(extra) = fields.value("extra_body") {
        let others = extra.as_object().into_iter().flat_map(|map| map.keys()).filter(|key| *key != "google");
        let others: Vec<_> = others.map(|key| (key.clone(), "extra_body")).collect();
        if !others.is_empty() {
            return Err(errors::unknown_fields(&others));
        }
        let thinking = &extra["google"]["thinking_config"];
        if !thinking.is_null() && fields.get("reasoning_effort").is_some() {
            let message =
                "Expected one of either `reasoning_effort` or custom `thinking_config`; found both.";
            return Err(errors::bad_request("400:thinking", message));
        }
        ask.include_thoughts = thinking["include_thoughts"] == Value::Bool(true);
    }
    if messages.contains("\"tool_calls\"") || fields.get("tools").is_some() {
        let messages: Value = serde_json::from_str(messages).unwrap_or_default();
        tools::check_chat_signatures(&ask.model, &messages)?;
        let answered = messages.as_array().and_then(|all| all.last()).is_some_and(|m| m["role"] == "tool");
        let wanted = fields.get("tool_choice") != Some("\"none\"");
        if let Some(declared) = fields.value("tools").filter(|_| wanted && !answered) {
            ask.calls = tools::chat_calls(&declared, parallel);
        }
    }
    Ok(ask)
}

pub(crate) fn generate(
    fields: &Fields<'_>,
    model: &str,
    stream: bool,
    parallel: bool,
) -> Result<Ask, Failure> {
    fields.refuse_unknown(GENERATE_FIELDS)?;
    let Some(contents) = fields.get("contents").filter(|raw| *raw != "[]" && *raw != "null") else {
        return Err(no_contents());
    };
    let mut ask = Ask { model: model.to_owned(), stream, ..Ask::default() };
    if let Some(config) = fields.any(["generationConfig", "generation_config"]) {
        let config: Value = serde_json::from_str(config).unwrap_or_default();
        let thinking = [&config["thinkingConfig"], &config["thinking_config"]];
        ask.include_thoughts =
            thinking.iter().any(|t| t["includeThoughts"] == true || t["include_thoughts"] == true);
    }
    if contents.contains("unctionCall") || contents.contains("unction_call") || fields.get("tools").is_some()
    {
        let contents: Value = serde_json::from_str(contents).unwrap_or_default();
        tools::check_native_signatures(model, &contents)?;
        let config = fields.any(["toolConfig", "tool_config"]).unwrap_or_default();
        let wanted = !config.contains("\"NONE\"") && !tools::ends_with_response(&contents);
        if let Some(declared) = fields.value("tools").filter(|_| wanted) {
            ask.calls = tools::native_calls(&declared, parallel);
        }
    }
    Ok(ask)
}

fn no_contents() -> Failure {
    errors::bad_request("400:contents", "* GenerateContentRequest.contents: contents is not specified\n")
}

/// Texts to embed.
#[derive(Debug)]
pub(crate) struct EmbedAsk {
    pub(crate) inputs: Vec<String>,
    pub(crate) dimensions: Option<usize>,
    pub(crate) base64: bool,
}

pub(crate) fn compat_embeddings(fields: &Fields<'_>) -> Result<EmbedAsk, Failure> {
    fields.refuse_unknown(EMBEDDING_FIELDS)?;
    let inputs = match fields.value("input") {
        Some(Value::Array(all)) if all.first().is_some_and(Value::is_number) => {
            vec![Value::Array(all).to_string()]
        }
        Some(Value::Array(all)) => all.iter().map(text_of).collect(),
        Some(Value::String(one)) => vec![one],
        _ => return Err(errors::bad_request("400:contents", "content is not specified")),
    };
    let dimensions = fields.get("dimensions").and_then(|raw| raw.parse().ok());
    let base64 = fields.get("encoding_format") == Some("\"base64\"");
    limited(EmbedAsk { inputs, dimensions, base64 })
}

pub(crate) fn native_embeddings(fields: &Fields<'_>, batch: bool) -> Result<EmbedAsk, Failure> {
    let dimensions = |v: &Value| {
        let asked = v.get("outputDimensionality").or_else(|| v.get("output_dimensionality"));
        asked.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
    };
    if batch {
        let requests = fields.value("requests").unwrap_or_default();
        let all = requests.as_array().map(Vec::as_slice).unwrap_or_default();
        let inputs = all.iter().map(|request| text_of(&request["content"])).collect();
        return limited(EmbedAsk { inputs, dimensions: all.first().and_then(dimensions), base64: false });
    }
    let Some(content) = fields.value("content") else {
        return Err(errors::bad_request("400:contents", "content is not specified"));
    };
    let asked = fields.any(["outputDimensionality", "output_dimensionality"]);
    let dimensions = asked.and_then(|raw| raw.parse().ok());
    Ok(EmbedAsk { inputs: vec![text_of(&content)], dimensions, base64: false })
}

fn limited(ask: EmbedAsk) -> Result<EmbedAsk, Failure> {
    if ask.inputs.len() > 100 {
        let message = "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n";
        return Err(errors::bad_request("400:batch_size", message));
    }
    Ok(ask)
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
