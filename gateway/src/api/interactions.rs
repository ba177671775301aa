//! Interactions: a part of the native surface whose errors have another shape, with codes that are words.

use bytes::Bytes;
use http::StatusCode;
use keyfleet_core::error_body::ErrorBody;
use serde_json::json;

use super::gemini::behind_version;

/// Whether a native path is about them.
pub(crate) fn has_path(path: &str) -> bool {
    let (_, rest) = behind_version(path);
    rest.split(['/', '?']).next() == Some("interactions")
}

/// An error as the last event of a stream that has begun. `word` is Google's or their own.
pub(crate) fn error_event(word: &str, message: &str) -> Bytes {
    let error = json!({"code": word.to_ascii_lowercase(), "message": message});
    let event = json!({"event_type": "error", "error": error});
    Bytes::from(format!("event: error\ndata: {event}\n\n"))
}

/// The status that belongs to an error's word, in Google's spelling or that of interactions.
pub(crate) fn status_of(error: &ErrorBody) -> Option<StatusCode> {
    Some(match error.status.to_ascii_uppercase().as_str() {
        "INVALID_REQUEST" | "INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE" => {
            StatusCode::BAD_REQUEST
        }
        "UNAUTHENTICATED" => StatusCode::UNAUTHORIZED,
        "PERMISSION_DENIED" => StatusCode::FORBIDDEN,
        "NOT_FOUND" => StatusCode::NOT_FOUND,
        "RATE_LIMIT_EXCEEDED" | "RESOURCE_EXHAUSTED" => StatusCode::TOO_MANY_REQUESTS,
        "INTERNAL_ERROR" | "INTERNAL" => StatusCode::INTERNAL_SERVER_ERROR,
        "UNAVAILABLE" => StatusCode::SERVICE_UNAVAILABLE,
        "DEADLINE_EXCEEDED" => StatusCode::GATEWAY_TIMEOUT,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_paths() {
        for path in ["v1beta/interactions", "v1/interactions/abc", "v1beta/interactions/abc/cancel"] {
            assert!(has_path(path), "{path}");
        }
        for path in ["v1beta/models/interactions:generateContent", "v1beta/interactionsx", "v1beta/files"] {
            assert!(!has_path(path), "{path}");
        }
    }

    #[test]
    fn an_error_is_an_event_with_a_type() {
        let event = error_event("UNAVAILABLE", "busy");
        let text = std::str::from_utf8(&event).unwrap();
        let data = text.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(data).unwrap(),
            json!({"event_type": "error", "error": {"code": "unavailable", "message": "busy"}})
        );
    }
}
