//! Whether what came with a 200 is an answer, an error, or nothing.

use std::sync::LazyLock;

use keyfleet_core::error_body::ErrorBody;
use keyfleet_core::outcome::Cause;
use memchr::memmem::Finder;
use serde_json::Value;

use super::{Failed, inside_success};
use crate::array;

/// What a piece of a stream is.
pub(super) enum Judged {
    Answer,
    Error(Box<ErrorBody>),
    /// Neither: comments, or figures without content.
    Nothing,
    /// JSON that stops too early.
    Half,
}

/// How little may come, for it to be what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Least {
    /// Nothing at all.
    Nothing,
    /// Any JSON: what is zero or was filtered out is not written.
    Json,
    /// An object with fields.
    Fields,
    /// A model's answer, or the reason why there is none.
    Answer,
}

/// Judges an event.
pub(super) fn event(event: &[u8]) -> Judged {
    let data = event.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"data:"));
    match data.map(<[u8]>::trim_ascii) {
        None | Some(b"[DONE]") => Judged::Nothing,
        Some(data) => json(data),
    }
}

/// Judges an element of an array.
pub(super) fn element(element: &[u8]) -> Judged {
    match array::element(element) {
        [] => Judged::Nothing,
        text => json(text),
    }
}

fn json(text: &[u8]) -> Judged {
    let value = match serde_json::from_slice::<Value>(text) {
        Ok(value) => value,
        Err(error) if error.is_eof() => return Judged::Half,
        Err(_) => return Judged::Answer,
    };
    let body = ErrorBody::parse(text);
    if body.is_error() {
        return Judged::Error(Box::new(body));
    }
    if has_content(&value) { Judged::Answer } else { Judged::Nothing }
}

static ANSWERS: LazyLock<[Finder<'static>; 2]> =
    LazyLock::new(|| ["\"content\"", "\"message\""].map(Finder::new));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"error\""));

/// Judges a complete answer. Nearly all are known for good by a search, and not parsed.
pub(super) fn plain(bytes: &[u8], least: Least) -> Result<(), Box<Failed>> {
    let bytes = bytes.trim_ascii();
    let is_answer = least == Least::Answer;
    if bytes.is_empty() && least > Least::Nothing {
        return Err(Failed::without_answer(Cause::EmptyAnswer));
    }
    let looks_full = match least {
        Least::Answer => ANSWERS.iter().any(|name| name.find(bytes).is_some()),
        // Its first field is all that there has to be.
        Least::Fields => bytes.contains(&b'"'),
        Least::Nothing | Least::Json => true,
    };
    let may_be_error = bytes.starts_with(b"\"") || ERROR.find(bytes).is_some();
    if looks_full && !may_be_error {
        return Ok(());
    }
    let parsed = serde_json::from_slice::<Value>(bytes);
    let body = ErrorBody::parse(bytes);
    if body.is_error() && (is_answer || parsed.as_ref().is_ok_and(holds_one_field)) {
        return Err(inside_success(body));
    }
    match parsed {
        Ok(value) if !is_enough(&value, least) => Err(Failed::without_answer(Cause::EmptyAnswer)),
        Err(error) if error.is_eof() => Err(Failed::without_answer(Cause::Truncated)),
        _ => Ok(()),
    }
}

fn is_enough(value: &Value, least: Least) -> bool {
    match least {
        Least::Nothing | Least::Json => true,
        Least::Fields => value.as_object().is_none_or(|fields| !fields.is_empty()),
        Least::Answer => has_content(value),
    }
}

/// An error stands alone. Resources have names besides: an operation or a video that failed is no failed request.
fn holds_one_field(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.len() == 1 && holds_one_field(&items[0]),
        Value::Object(fields) => fields.len() == 1,
        _ => true,
    }
}

/// Whether there is anything in an answer: a candidate, a choice, or the reason why there is none. What is neither
/// surface's answer is not judged.
fn has_content(value: &Value) -> bool {
    let is_filled =
        |name: &str| value.get(name).map(|list| list.as_array().is_some_and(|list| !list.is_empty()));
    if value.get("promptFeedback").is_some() {
        return true;
    }
    match (is_filled("candidates"), is_filled("choices")) {
        (None, None) => {
            value.get("usageMetadata").is_none() && value.as_object().is_none_or(|o| !o.is_empty())
        }
        (candidates, choices) => candidates == Some(true) || choices == Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNAVAILABLE: &str = r#"{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}"#;

    fn cause(body: &str, least: Least) -> Option<Cause> {
        plain(body.as_bytes(), least).err().map(|failed| failed.outcome.cause)
    }

    #[test]
    fn what_counts_as_an_answer() {
        let x = "x".repeat(100_000);
        for (body, expected) in [
            (r#"{"candidates":[{"finishReason":"MAX_TOKENS"}]}"#, None),
            (r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{}}"#, None),
            (r#"{"choices":[{"message":{"role":"assistant"}}]}"#, None),
            (r#"{"choices":[],"id":""}"#, Some(Cause::EmptyAnswer)),
            (r#"{"candidates":[]}"#, Some(Cause::EmptyAnswer)),
            (r#"{"usageMetadata":{"promptTokenCount":1}}"#, Some(Cause::EmptyAnswer)),
            ("", Some(Cause::EmptyAnswer)),
            ("{}", Some(Cause::EmptyAnswer)),
            (r#"{"candidates":[{"#, Some(Cause::Truncated)),
            (UNAVAILABLE, Some(Cause::Overloaded)),
            (
                r#"[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}]"#,
                Some(Cause::BareRateLimit),
            ),
            (r#"{"error":{"code":"rate_limit_exceeded","message":"x"}}"#, Some(Cause::BareRateLimit)),
            (r#"{"error":{"code":"not_found","message":"x"}}"#, Some(Cause::BadRequest)),
            (&UNAVAILABLE.replace('x', &x), Some(Cause::Overloaded)),
            (&format!(r#"{{"candidates":[{{"content":{{"error":"{x}"}}}}]}}"#), None),
        ] {
            assert_eq!(cause(body, Least::Answer), expected, "{}", &body[..body.len().min(200)]);
        }
    }

    #[test]
    fn what_counts_as_an_error_elsewhere() {
        for body in [
            "",
            "{}",
            r#"{"embedding":{"values":[]}}"#,
            r#"{"name":"operations/o","done":true,"error":{"code":3,"message":"x"}}"#,
            r#"{"error":{"code":"failed","message":"x"},"id":"video_1","status":"failed"}"#,
            r#"[{"error":{"message":"x"}},{"response":{}}]"#,
            r#"{"error":null}"#,
        ] {
            assert_eq!(cause(body, Least::Nothing), None, "{body}");
        }
        for body in [UNAVAILABLE.to_owned(), format!("[{UNAVAILABLE}]\n"), format!("{UNAVAILABLE:?}")] {
            for least in [Least::Nothing, Least::Json, Least::Fields] {
                assert_eq!(cause(&body, least), Some(Cause::Overloaded), "{body}");
            }
        }
    }

    #[test]
    fn what_is_too_little() {
        let empty = Some(Cause::EmptyAnswer);
        for (body, json, fields) in [
            ("", empty, empty),
            (" \n", empty, empty),
            ("{}", None, empty),
            ("{ }\n", None, empty),
            ("[]", None, None),
            (r#"{"id":"","status":"in_progress"}"#, None, None),
            (r#"{"embedding":{}}"#, None, None),
        ] {
            assert_eq!((cause(body, Least::Json), cause(body, Least::Fields)), (json, fields), "{body}");
            assert_eq!(cause(body, Least::Nothing), None, "{body}");
        }
    }
}
