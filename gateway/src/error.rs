//! Every error that a client sees: one type, one match to each dialect. Internals are logged, never shown.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use keyfleet_core::error_body::ErrorBody;
use keyfleet_core::outcome::{Cause, Outcome, Scope};
use keyfleet_core::select::{Blame, NoKey};
use keyfleet_core::time::Mono;
use serde_json::{Value, json};
use std::time::Duration;

use crate::budget::Refused;
use crate::call::Surface;
use crate::live::Live;
use crate::redact::{redact, redact_json};

/// Clients that retry by themselves give up on longer waits.
const HOPELESS: Duration = Duration::from_mins(2);

/// The longest name of a kind of error; Google's own are half as long.
const LONGEST_WORD: usize = 64;

/// An answer that is an error.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    /// Google's word for it: `RESOURCE_EXHAUSTED`…
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
    /// When a retry may succeed; `None`: nothing is known about it.
    pub(crate) retry: Option<Retry>,
    pub(crate) party: Party,
}

/// Who is at fault, for whoever has to do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// All went well.
    Nobody,
    /// Who asked, or went away.
    Client,
    /// The operator's keys and their quota.
    Keys,
    /// The model, or the way to it.
    Upstream,
    /// This program.
    Keyfleet,
}

impl Party {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 5] =
        [Self::Nobody, Self::Client, Self::Keys, Self::Upstream, Self::Keyfleet];

    /// The word in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Client => "client",
            Self::Keys => "keys",
            Self::Upstream => "upstream",
            Self::Keyfleet => "keyfleet",
        }
    }

    /// Whose an upstream's error is.
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match outcome.scope {
            // What ends because we end is told as the client's, so that nobody's key suffers from it.
            Scope::Client if outcome.cause == Cause::Cancelled => Self::Keyfleet,
            Scope::Client => Self::Client,
            Scope::Key | Scope::KeyModel | Scope::Bucket | Scope::Project | Scope::BillingAccount => {
                Self::Keys
            }
            Scope::Model | Scope::Egress => Self::Upstream,
        }
    }
}

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// After so long.
    After(Duration),
    /// Not within any time that a client would wait.
    Hopeless,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let code = google_code(status).to_owned();
        let party = match status.as_u16() {
            ..500 => Party::Client,
            500 => Party::Keyfleet,
            _ => Party::Upstream,
        };
        Self { status, code, message: message.into(), details: None, retry: None, party }
    }

    pub(crate) fn by(self, party: Party) -> Self {
        Self { party, ..self }
    }

    pub(crate) fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// An upstream error as the client may see it.
    pub(crate) fn upstream(status: StatusCode, body: &ErrorBody, live: &Live) -> Self {
        let mut fault = Self::new(status, redact(&body.message, live));
        if fault.message.is_empty() {
            fault.message = match status {
                StatusCode::NOT_FOUND => "The upstream does not know this path.".to_owned(),
                _ => format!("The upstream answered {status} without an explanation."),
            };
        }
        // It is shown and logged, and upstreams that are not Google's put anything there.
        if is_word(&body.status) && redact(&body.status, live) == body.status {
            fault.code.clone_from(&body.status);
        }
        fault.details = body.details.as_ref().and_then(|error| error.get("details")).cloned();
        if let Some(details) = &mut fault.details {
            redact_json(details, live);
        }
        fault
    }

    /// No key for `model`.
    pub(crate) fn no_key(refusal: NoKey, model: &str, now: Mono) -> Self {
        let retry = match refusal.retry_at {
            // The keys are as good as before; this request may not use them again.
            _ if refusal.blame == Blame::Tried => None,
            Mono::FOREVER => Some(Retry::Hopeless),
            at => Some(Retry::After(at.since(now).max(Duration::from_millis(1)))),
        };
        let model = if model.is_empty() { "this request" } else { model };
        let fault = match refusal.blame {
            Blame::Quota => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "The quota of every key for {model} is used up. The time when the first one returns is in Retry-After."
                ),
            ),
            Blame::Model => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{model} is overloaded upstream. It is tried again within seconds."),
            ),
            Blame::Egress => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "The upstream cannot be reached, or refuses this gateway's address. It is tried again within seconds.",
            ),
            Blame::Large(limit) => Self::new(
                StatusCode::BAD_REQUEST,
                format!(
                    "The request is larger than the limit: by its size it has more than the {limit} input tokens that a \
                     key for {model} may use in a minute. Waiting does not help; a shorter request does."
                ),
            ),
            Blame::Keys => Self::new(
                StatusCode::BAD_GATEWAY,
                format!(
                    "No key works for {model}: all are disabled or blocked. The operator finds the reasons at /health/detailed."
                ),
            ),
            Blame::Tried => Self::new(
                StatusCode::BAD_GATEWAY,
                format!("Every key for {model} was tried without success."),
            ),
        };
        let party = match refusal.blame {
            Blame::Quota | Blame::Keys | Blame::Tried => Party::Keys,
            Blame::Model | Blame::Egress => Party::Upstream,
            Blame::Large(_) => Party::Client,
        };
        Self { retry, party, ..fault }
    }

    /// The request had not begun to be answered when the drain time was over.
    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "The gateway is shutting down.").by(Party::Keyfleet)
    }

    pub(crate) fn body_refused(why: Refused, limit: usize) -> Self {
        match why {
            Refused::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The request's body is larger than {limit} bytes."),
            ),
            Refused::OutOfMemory => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Too many large requests at one time. Try again.")
                    .with_retry(Retry::After(Duration::from_secs(1)))
                    .by(Party::Keyfleet)
            }
            Refused::Incomplete => Self::new(StatusCode::BAD_REQUEST, "The request's body did not arrive."),
        }
    }

    /// The JSON of this error in a dialect.
    pub(crate) fn to_json(&self, surface: Surface) -> Value {
        let mut error = match surface {
            Surface::Compat => json!({
                "message": self.message,
                "type": openai_type(self.status),
                "code": openai_code(self.status),
                "param": null,
                "status": self.code,
            }),
            Surface::Native => json!({
                "code": self.status.as_u16(),
                "message": self.message,
                "status": self.code,
            }),
        };
        if let (Some(details), Some(fields)) = (&self.details, error.as_object_mut()) {
            fields.insert("details".to_owned(), details.clone());
        }
        json!({ "error": error })
    }

    /// This error as the last event of a stream that has begun.
    pub(crate) fn to_event(&self, surface: Surface) -> Bytes {
        let end = if surface == Surface::Native { "\r\n\r\n" } else { "\n\n" };
        let mut json = self.to_json(surface);
        if surface == Surface::Compat {
            json["error"]["code"] = json!(self.status.as_u16());
        }
        Bytes::from(format!("data: {json}{end}"))
    }

    /// This error as an answer.
    pub(crate) fn respond(&self, surface: Surface) -> Response {
        let mut response = Response::new(Body::from(self.to_json(surface).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        match self.retry {
            Some(Retry::After(wait)) => {
                let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                headers.insert(RETRY_AFTER, HeaderValue::from(millis.div_ceil(1_000)));
                headers.insert("retry-after-ms", HeaderValue::from(millis));
                if wait > HOPELESS {
                    headers.insert("x-should-retry", HeaderValue::from_static("false"));
                }
            }
            Some(Retry::Hopeless) => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            None => {}
        }
        response
    }
}

/// Whether it can be the name of a kind of error.
fn is_word(text: &str) -> bool {
    (1..=LONGEST_WORD).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn google_code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        500 => "INTERNAL",
        502 | 503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INVALID_ARGUMENT",
    }
}

fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        500.. => "upstream_error",
        _ => "invalid_request_error",
    }
}

fn openai_code(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        401 => Some("invalid_api_key"),
        429 => Some("rate_limit_exceeded"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let of = |retry_at| {
            let refusal = NoKey { blame: Blame::Quota, retry_at };
            Fault::no_key(refusal, "m", Mono::from_ms(1_000)).respond(Surface::Compat)
        };
        let soon = of(Mono::from_ms(2_500));
        assert_eq!(soon.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(
            (&soon.headers()["retry-after"], &soon.headers()["retry-after-ms"]),
            (&"2".parse().unwrap(), &"1500".parse().unwrap())
        );
        assert!(!soon.headers().contains_key("x-should-retry"));
        assert_eq!(of(Mono::from_ms(200_000)).headers()["x-should-retry"], "false");
        let never = of(Mono::FOREVER);
        assert_eq!(never.headers()["x-should-retry"], "false");
        assert!(!never.headers().contains_key("retry-after"));
    }

    #[test]
    fn a_request_that_never_fits_is_the_callers_to_shorten() {
        let refusal = NoKey { blame: Blame::Large(1_000), retry_at: Mono::FOREVER };
        let fault = Fault::no_key(refusal, "m", Mono::from_ms(1));
        assert!(
            fault.message.contains("larger than the limit") && fault.message.contains("1000 input tokens")
        );
        assert_eq!(fault.to_json(Surface::Native)["error"]["status"], "INVALID_ARGUMENT");
        assert_eq!(fault.to_json(Surface::Compat)["error"]["type"], "invalid_request_error");
        let answer = fault.respond(Surface::Compat);
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-should-retry"]),
            (400, &"false".parse().unwrap())
        );
        assert!(!answer.headers().contains_key("retry-after"));
    }

    #[test]
    fn a_kind_of_error_is_a_word() {
        for word in ["RESOURCE_EXHAUSTED", "invalid_request", &"x".repeat(LONGEST_WORD)] {
            assert!(is_word(word), "{word}");
        }
        for none in ["", "not found", "a-b", "é", "a\"b", "a\r\nb", &"x".repeat(LONGEST_WORD + 1)] {
            assert!(!is_word(none), "{none}");
        }
    }

    #[test]
    fn each_dialect_gets_its_envelope() {
        let fault = Fault::new(StatusCode::SERVICE_UNAVAILABLE, "busy");
        assert_eq!(
            fault.to_json(Surface::Native),
            json!({"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}})
        );
        assert_eq!(fault.to_json(Surface::Compat)["error"]["type"], "upstream_error");
        assert!(fault.to_event(Surface::Native).ends_with(b"}}\r\n\r\n"));
        assert!(fault.to_event(Surface::Compat).ends_with(b"}}\n\n"));
    }
}
