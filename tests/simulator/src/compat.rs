//! Generations in the OpenAI-compatible dialect: LF framing, members in alphabetical order, usage running along.

use std::fmt::Write as _;

use bytes::Bytes;

use crate::answer::{CALL_TOKENS, Frames, Rendered, THOUGHT, Turn, Usage};
use crate::tools::{self, ToolCall};

const JSON: &str = "application/json; charset=UTF-8";
/// What ends a stream.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";

pub(crate) fn plain(turn: &mut Turn<'_>) -> Rendered {
    let mut text = String::with_capacity(512 + turn.script.plain.escaped.len());
    text.push_str("{\"choices\":[");
    if turn.empty {
        text.push_str("],");
    } else {
        let reason = if turn.calls.is_empty() { "stop" } else { "tool_calls" };
        let reason = turn.blank.map_or(reason, finish_reason);
        let _ = write!(text, "{{\"finish_reason\":\"{reason}\",\"index\":0,\"message\":{{");
        if turn.calls.is_empty() && turn.blank.is_none() {
            let thought = if turn.shows_thoughts() { thought_text() } else { String::new() };
            let _ = write!(text, "\"content\":\"{thought}{}\",", turn.script.plain.escaped);
        }
        text.push_str("\"role\":\"assistant\"");
        if !turn.calls.is_empty() && turn.blank.is_none() {
            text.push_str(",\"tool_calls\":[");
            for (at, call) in turn.calls.iter().enumerate() {
                let comma = if at == 0 { "" } else { "," };
                let id = turn.call_id();
                let _ = write!(text, "{comma}{}", tool_call(turn.model, call, &id, at == 0));
            }
            text.push(']');
        }
        text.push_str("}}],");
    }
    text.push_str(&tail(turn, "chat.completion", turn.completion_tokens()));
    Rendered::whole(JSON, Bytes::from(text))
}

pub(crate) fn stream(turn: &mut Turn<'_>) -> Rendered {
    let each = 256 + turn.model.len();
    let bytes = turn.script.plain.escaped.len() + each * (turn.script.chunks.len() + turn.calls.len() + 2);
    let mut frames = Frames::new(turn.script.chunks.len() + 2, bytes);
    if turn.empty {
        frame(&mut frames, turn, None, 0);
        return Rendered::event_stream(frames.done, DONE);
    }
    if turn.blank.is_some() {
        frame(&mut frames, turn, Some((&["\"role\":\"assistant\""], true)), 0);
        return Rendered::event_stream(frames.done, DONE);
    }
    let mut tokens = 0;
    if turn.shows_thoughts() {
        let delta = format!(
            "\"content\":\"{}\",\"extra_content\":{{\"google\":{{\"thought\":true}}}},\"role\":\"assistant\"",
            thought_text()
        );
        frame(&mut frames, turn, Some((&[&delta], false)), tokens);
    }
    if turn.calls.is_empty() {
        for piece in &turn.script.chunks {
            tokens += piece.tokens;
            let delta = ["\"content\":\"", &piece.escaped, "\",\"role\":\"assistant\""];
            frame(&mut frames, turn, Some((&delta, false)), tokens);
        }
    }
    for (at, call) in turn.calls.iter().enumerate() {
        tokens += CALL_TOKENS;
        let id = turn.call_id();
        let call = tool_call(turn.model, call, &id, at == 0);
        let delta = ["\"role\":\"assistant\",\"tool_calls\":[", &call, "]"];
        frame(&mut frames, turn, Some((&delta, false)), tokens);
    }
    frame(&mut frames, turn, Some((&["\"role\":\"assistant\""], true)), tokens);
    Rendered::event_stream(frames.done, DONE)
}

/// One event; `delta` is what stands between its braces, and whether it is the last one.
fn frame(frames: &mut Frames, turn: &Turn<'_>, delta: Option<(&[&str], bool)>, tokens: u64) {
    frames.push("data: {\"choices\":[");
    if let Some((parts, last)) = delta {
        frames.push("{\"delta\":{");
        for part in parts {
            frames.push(part);
        }
        if last {
            frames.push("},\"finish_reason\":\"");
            frames.push(turn.blank.map_or("stop", finish_reason));
            frames.push("\",\"index\":0}");
        } else {
            frames.push("},\"index\":0}");
        }
    }
    frames.push("],");
    frames.push(&tail(turn, "chat.completion.chunk", tokens));
    frames.push("\n\n");
    frames.cut();
}

fn tail(turn: &Turn<'_>, object: &str, completion: u64) -> String {
    let mut text = String::with_capacity(240);
    let (id, model) = if turn.empty { ("", "") } else { (turn.id.as_str(), turn.model) };
    let _ = write!(
        text,
        "\"created\":{},\"id\":\"{id}\",\"model\":\"{model}\",\"object\":\"{object}\"",
        turn.created_s
    );
    if turn.usage {
        let completion = if turn.empty || turn.blank.is_some() { 0 } else { completion };
        let usage: Usage = turn.usage(completion);
        text.push_str(",\"usage\":{\"completion_tokens\":");
        let _ = write!(text, "{}", usage.completion);
        if usage.thoughts > 0 {
            let _ =
                write!(text, ",\"completion_tokens_details\":{{\"reasoning_tokens\":{}}}", usage.thoughts);
        }
        let _ = write!(text, ",\"prompt_tokens\":{}", usage.prompt);
        if usage.cached > 0 {
            let _ = write!(text, ",\"prompt_tokens_details\":{{\"cached_tokens\":{}}}", usage.cached);
        }
        let _ = write!(text, ",\"total_tokens\":{}}}", usage.total());
    }
    text.push('}');
    text
}

/// Of Google's words two have been translated; the others have been seen as they are.
fn finish_reason(googles: &str) -> &str {
    match googles {
        "STOP" => "stop",
        "MAX_TOKENS" => "length",
        other => other,
    }
}

fn thought_text() -> String {
    format!("<thought>{}</thought>", THOUGHT.replace('\n', "\\n"))
}

/// Complete in one piece and without an index. Only the first of parallel calls is signed.
fn tool_call(model: &str, call: &ToolCall, id: &str, first: bool) -> String {
    let quote = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let signature = if first && tools::signs(model) {
        format!("\"extra_content\":{{\"google\":{{\"thought_signature\":\"{}\"}}}},", tools::SIGNATURE)
    } else {
        String::new()
    };
    format!(
        "{{{signature}\"function\":{{\"arguments\":{},\"name\":{}}},\"id\":\"{id}\",\"type\":\"function\"}}",
        quote(&call.arguments.to_string()),
        quote(&call.name)
    )
}
