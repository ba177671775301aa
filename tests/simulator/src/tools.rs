//! Function calls: made up from the declared schema, and checked for their thought signature when they come back.

use serde_json::{Map, Value, json};

use crate::errors::{self, Failure};

/// What models that sign their calls put in `thought_signature`.
pub(crate) const SIGNATURE: &str = "EjQKMgEMc2ltdWxhdGVkIHRob3VnaHQgc2lnbmF0dXJlIG9mIGEgdG9vbCBjYWxs";
/// Values that the API documents as "do not check".
const UNCHECKED: [&str; 2] = ["skip_thought_signature_validator", "context_engineering_is_the_way_to_go"];

/// One function call of an answer.
#[derive(Debug, Clone)]
pub(crate) struct ToolCall {
    pub(crate) name: String,
    pub(crate) arguments: Value,
}

pub(crate) fn chat_calls(tools: &Value, parallel: bool) -> Vec<ToolCall> {
    let all = tools.as_array().into_iter().flatten().map(|tool| &tool["function"]);
    some(all, parallel)
}

pub(crate) fn native_calls(tools: &Value, parallel: bool) -> Vec<ToolCall> {
    let declarations = |tool: &Value| {
        let list = tool.get("functionDeclarations").or_else(|| tool.get("function_declarations"));
        list.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let all: Vec<Value> = tools.as_array().into_iter().flatten().flat_map(declarations).collect();
    some(all.iter(), parallel)
}

fn some<'a>(declared: impl Iterator<Item = &'a Value>, parallel: bool) -> Vec<ToolCall> {
    let call = |function: &Value| {
        let schema = ["parameters", "parametersJsonSchema", "parameters_json_schema"];
        let schema = schema.iter().find_map(|name| function.get(name)).cloned().unwrap_or_default();
        Some(ToolCall { name: function["name"].as_str()?.to_owned(), arguments: sample(&schema, 0) })
    };
    declared.filter_map(call).take(if parallel { 64 } else { 1 }).collect()
}

/// A value that fits the schema, the same every time.
fn sample(schema: &Value, depth: u32) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    let kind = schema["type"].as_str().unwrap_or("object").to_ascii_lowercase();
    match kind.as_str() {
        "string" => json!("sample"),
        "integer" | "number" => json!(1),
        "boolean" => json!(true),
        "array" => json!([]),
        _ if depth > 8 => json!({}),
        _ => {
            let properties = schema["properties"].as_object();
            let entry = |(name, inner): (&String, &Value)| (name.clone(), sample(inner, depth + 1));
            Value::Object(properties.into_iter().flatten().map(entry).collect::<Map<_, _>>())
        }
    }
}

/// Whether the model belongs to a generation that demands its signatures back.
pub(crate) fn signs(model: &str) -> bool {
    generation(model).is_some_and(|generation| generation >= 3)
}

fn generation(model: &str) -> Option<u32> {
    let digits = model.strip_prefix("gemini-")?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

pub(crate) fn check_chat_signatures(model: &str, messages: &Value) -> Result<(), Failure> {
    if !signs(model) {
        return Ok(());
    }
    let all = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    let turn = all.iter().rposition(|message| message["role"] == "user").unwrap_or(0);
    for (position, message) in all.iter().enumerate().skip(turn) {
        if let Some(call) = message["tool_calls"].as_array().and_then(|calls| calls.first()) {
            let signature = call["extra_content"]["google"]["thought_signature"].as_str();
            check(signature, call["function"]["name"].as_str(), position)?;
        }
    }
    Ok(())
}

pub(crate) fn check_native_signatures(model: &str, contents: &Value) -> Result<(), Failure> {
    if !signs(model) {
        return Ok(());
    }
    let all = contents.as_array().map(Vec::as_slice).unwrap_or_default();
    let said = |content: &&Value| content["role"] == "user" && content["parts"][0].get("text").is_some();
    let turn = all.iter().rposition(|content| said(&content)).unwrap_or(0);
    for (position, content) in all.iter().enumerate().skip(turn) {
        let parts = content["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let call = |part: &Value| part.get("functionCall").or_else(|| part.get("function_call")).cloned();
        if let Some((part, call)) = parts.iter().find_map(|part| Some((part, call(part)?))) {
            let signature = part.get("thoughtSignature").or_else(|| part.get("thought_signature"));
            check(signature.and_then(Value::as_str), call["name"].as_str(), position)?;
        }
    }
    Ok(())
}

fn check(signature: Option<&str>, name: Option<&str>, position: usize) -> Result<(), Failure> {
    match signature {
        // Clients differ in the alphabet and the padding of base64, not in the bytes.
        Some(text) if text.trim_end_matches('=') == SIGNATURE || UNCHECKED.contains(&text) => Ok(()),
        Some(text) if !text.is_empty() => {
            Err(errors::bad_request("400:thought_signature", "Corrupted thought signature."))
        }
        _ => Err(missing_signature(name.unwrap_or("call"), position + 1)),
    }
}

pub(crate) fn missing_signature(name: &str, position: usize) -> Failure {
    let message = format!(
        "Function call is missing a thought_signature in functionCall parts. This is required for tools to work \
         correctly, and missing thought_signature may lead to degraded model performance. Additional data, function \
         call `default_api:{name}` , position {position}. Please refer to \
         https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
    );
    errors::bad_request("400:thought_signature", message)
}

/// Whether the last content answers a function call, so that text is due.
pub(crate) fn ends_with_response(contents: &Value) -> bool {
    let last = contents.as_array().and_then(|all| all.last());
    let parts = last.and_then(|content| content["parts"].as_array());
    let answers =
        |part: &Value| part.get("functionResponse").or_else(|| part.get("function_response")).is_some();
    parts.is_some_and(|parts| parts.iter().any(answers))
}
