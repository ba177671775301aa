//! Generations in Google's own dialect: CRLF event streams without an end mark, or one JSON array.

use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::answer::{CALL_TOKENS, Rendered, THOUGHT, Turn};
use crate::tools;

const JSON: &str = "application/json; charset=UTF-8";

/// How the chunks of a stream are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `alt=sse`.
    Events,
    /// The default.
    Array,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Generated<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Candidate<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_feedback: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_metadata: Option<Metadata>,
    model_version: &'a str,
    response_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'a str>,
    index: u32,
}

#[derive(Serialize)]
struct Content<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part<'a>>,
    role: &'static str,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thought: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thought_signature: Option<&'static str>,
}

#[derive(Serialize)]
struct Call<'a> {
    name: &'a str,
    args: &'a Value,
    id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    prompt_token_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_content_token_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    candidates_token_count: Option<u64>,
    total_token_count: u64,
    prompt_tokens_details: [Modality; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    thoughts_token_count: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Modality {
    modality: &'static str,
    token_count: u64,
}

pub(crate) fn plain(turn: &mut Turn<'_>) -> Rendered {
    let mut parts = Vec::new();
    if turn.shows_thoughts() {
        parts.push(thought());
    }
    let tokens = turn.completion_tokens();
    if turn.calls.is_empty() {
        let script = turn.script;
        parts.push(Part { text: Some(&script.plain.text), ..Part::default() });
    }
    parts.extend(call_parts(turn));
    let response = response(turn, parts, Some("STOP"), tokens);
    let mut body = pretty(&response);
    body.push(b'\n');
    Rendered::whole(JSON, Bytes::from(body))
}

pub(crate) fn stream(turn: &mut Turn<'_>, framing: Framing) -> Rendered {
    let script = turn.script;
    let mut steps: Vec<(Vec<Part<'_>>, u64)> = Vec::new();
    let mut tokens = 0;
    if turn.shows_thoughts() {
        steps.push((vec![thought()], tokens));
    }
    if turn.calls.is_empty() {
        for piece in &script.chunks {
            tokens += piece.tokens;
            steps.push((vec![Part { text: Some(&piece.text), ..Part::default() }], tokens));
        }
    }
    for part in call_parts(turn) {
        tokens += CALL_TOKENS;
        steps.push((vec![part], tokens));
    }
    // Newer models end with an empty text of its own; older ones finish with the last piece.
    if tools::signs(turn.model) {
        steps.push((vec![Part { text: Some(""), ..Part::default() }], tokens));
    }
    if turn.empty || turn.blank.is_some() {
        steps.truncate(1);
    }
    let last = steps.len().saturating_sub(1);
    let mut frames = Vec::with_capacity(steps.len());
    for (at, (parts, tokens)) in steps.into_iter().enumerate() {
        let response = response(turn, parts, (at == last).then_some("STOP"), tokens);
        frames.push(match framing {
            Framing::Events => event(&response),
            Framing::Array => element(&response, at == 0),
        });
    }
    match framing {
        Framing::Events => Rendered::event_stream(frames, b""),
        Framing::Array => {
            Rendered { content_type: JSON, frames, end: Bytes::from_static(b"]\n"), streamed: true }
        }
    }
}

fn thought<'a>() -> Part<'a> {
    Part { text: Some(THOUGHT), thought: Some(true), ..Part::default() }
}

fn call_parts<'a>(turn: &mut Turn<'a>) -> Vec<Part<'a>> {
    let (calls, model) = (turn.calls, turn.model);
    let mut parts = Vec::with_capacity(calls.len());
    for (at, call) in calls.iter().enumerate() {
        let id = turn.call_id();
        parts.push(Part {
            function_call: Some(Call { name: &call.name, args: &call.arguments, id }),
            thought_signature: (at == 0 && tools::signs(model)).then_some(tools::SIGNATURE),
            ..Part::default()
        });
    }
    parts
}

fn response<'a>(
    turn: &'a Turn<'_>,
    parts: Vec<Part<'a>>,
    finish_reason: Option<&'static str>,
    tokens: u64,
) -> Generated<'a> {
    let (parts, finish_reason) = turn.blank.map_or((parts, finish_reason), |why| (Vec::new(), Some(why)));
    let wordless = turn.empty || turn.blank.is_some();
    let usage = turn.usage(if wordless { 0 } else { tokens });
    let metadata = || Metadata {
        prompt_token_count: usage.prompt,
        cached_content_token_count: (usage.cached > 0).then_some(usage.cached),
        candidates_token_count: (!wordless).then_some(usage.completion),
        total_token_count: usage.total(),
        prompt_tokens_details: [Modality { modality: "TEXT", token_count: usage.prompt }],
        thoughts_token_count: (usage.thoughts > 0).then_some(usage.thoughts),
    };
    let content = turn.blank.is_none_or(|why| why == "STOP").then_some(Content { parts, role: "model" });
    let candidate = Candidate { content, finish_reason, index: 0 };
    Generated {
        candidates: if turn.empty { Vec::new() } else { vec![candidate] },
        prompt_feedback: turn.empty.then(|| serde_json::json!({"blockReason": "PROHIBITED_CONTENT"})),
        usage_metadata: turn.usage.then(metadata),
        model_version: turn.model,
        response_id: &turn.id,
    }
}

fn event(response: &Generated<'_>) -> Bytes {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"data: ");
    // Serialising to memory what has no map with other keys than strings cannot fail.
    let _ = response.serialize(&mut Serializer::with_formatter(&mut out, Spaced));
    out.extend_from_slice(b"\r\n\r\n");
    Bytes::from(out)
}

fn element(response: &Generated<'_>, first: bool) -> Bytes {
    let mut out: Vec<u8> = if first { b"[".to_vec() } else { b",\r\n".to_vec() };
    out.extend_from_slice(&pretty(response));
    Bytes::from(out)
}

fn pretty(response: &Generated<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let _ = response.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::new()));
    out
}

/// One line with a space after each colon, as Google writes events.
struct Spaced;

impl Formatter for Spaced {
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
