//! Reading an upstream error, in every form in which it arrives: Google's object, the same in a one-element array
//! (the compat surface), JSON inside a JSON string, the Interactions API's string codes, HTML, or nothing.

use std::time::Duration;

use serde_json::Value;

/// The longest error body that is read; the rest cannot hold what decides.
pub const MAX_ERROR_BODY: usize = 64 * 1024;

/// What an error says, with every form folded into one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// `status`, such as `INVALID_ARGUMENT`; empty if absent.
    pub status: String,
    /// `message`; for a body that is not JSON, empty.
    pub message: String,
    /// `details[].reason` of the `ErrorInfo`; empty if absent.
    pub reason: String,
    /// The longest-lived quota among the violations.
    pub quota: Option<Period>,
    /// The violated limit is zero: the tier has none of it.
    pub limit_zero: bool,
    /// The longest delay that the error asks for, from `RetryInfo` or the message's finer figure.
    pub retry_delay: Option<Duration>,
    /// The error says which fields of the request are wrong.
    pub field_violations: bool,
    /// The body was a web page.
    pub html: bool,
    /// The error object, for a caller that wants its details.
    pub details: Option<Value>,
}

/// The window of a violated quota, shortest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// Input tokens of a minute.
    MinuteTokens,
    /// Requests of a minute.
    Minute,
    /// A Pacific calendar day.
    Day,
}

impl ErrorBody {
    /// Reads a body; whatever cannot be read is simply not known.
    pub fn parse(body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(value) => Self::from_value(value),
            Err(_) => Self { html: body.trim_ascii_start().starts_with(b"<"), ..Self::default() },
        }
    }

    /// True if the body is an error in one of the forms; a success that holds one is an error.
    pub fn is_error(&self) -> bool {
        self.details.is_some()
    }

    /// Reads a parsed body.
    fn from_value(value: Value) -> Self {
        let Some(error) = error_object(value, 3) else { return Self::default() };
        let mut read = Self {
            status: text(&error, "status").to_owned(),
            message: text(&error, "message").to_owned(),
            ..Self::default()
        };
        if read.status.is_empty() {
            error.get("code").and_then(Value::as_str).unwrap_or_default().clone_into(&mut read.status);
        }
        for detail in error.get("details").and_then(Value::as_array).into_iter().flatten().take(32) {
            read.detail(detail);
        }
        read.limit_zero |= stated_limit(&read.message) == Some(0);
        read.retry_delay = read.retry_delay.max(stated_delay(&read.message));
        read.details = Some(error);
        read
    }

    /// Case-insensitive search of the message.
    pub fn mentions(&self, lowercase: &str) -> bool {
        self.message.to_ascii_lowercase().contains(lowercase)
    }

    fn detail(&mut self, detail: &Value) {
        let kind = text(detail, "@type");
        if kind.ends_with("ErrorInfo") {
            text(detail, "reason").clone_into(&mut self.reason);
        } else if kind.ends_with("BadRequest") {
            self.field_violations = true;
        } else if kind.ends_with("RetryInfo") {
            self.retry_delay = self.retry_delay.max(seconds(text(detail, "retryDelay")));
        } else if kind.ends_with("QuotaFailure") {
            let violations = detail.get("violations").and_then(Value::as_array);
            for violation in violations.into_iter().flatten().take(32) {
                self.quota = self.quota.max(period(violation));
                self.limit_zero |= text(violation, "quotaValue") == "0";
            }
        }
    }
}

fn error_object(value: Value, depth: u8) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    match value {
        Value::Array(items) => error_object(items.into_iter().next()?, depth),
        Value::String(inner) => error_object(serde_json::from_str(&inner).ok()?, depth),
        Value::Object(mut fields) => {
            let error = fields.remove("error")?;
            match error {
                Value::Object(ref inner) => {
                    // Some layers put the whole upstream body into the message of their own error.
                    let nested = inner
                        .get("message")
                        .and_then(Value::as_str)
                        .filter(|m| m.trim_start().starts_with('{'));
                    let nested = nested.and_then(|m| serde_json::from_str(m).ok());
                    Some(nested.and_then(|value| error_object(value, depth)).unwrap_or(error))
                }
                Value::String(message) => Some(serde_json::json!({ "message": message })),
                _ => None,
            }
        }
        _ => None,
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Names of quotas vary between tiers and releases: only these parts of them have been stable.
fn period(violation: &Value) -> Option<Period> {
    let id = text(violation, "quotaId");
    let metric = text(violation, "quotaMetric");
    if id.contains("PerDay") || metric.contains("per_day") {
        Some(Period::Day)
    } else if id.contains("InputTokens") || metric.contains("input_token") {
        Some(Period::MinuteTokens)
    } else if id.contains("PerMinute") || metric.contains("requests") {
        Some(Period::Minute)
    } else {
        None
    }
}

/// `limit: 20` out of a quota message.
fn stated_limit(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("limit: ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `Please retry in 58.821668433s.` out of a quota message.
fn stated_delay(message: &str) -> Option<Duration> {
    let (_, rest) = message.split_once("retry in ")?;
    let end =
        rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | 's' | 'm'))).unwrap_or(rest.len());
    seconds(rest[..end].trim_end_matches('.'))
}

/// `58s`, `36.429760048s` or `250ms`, rounded up to the millisecond; a day at most.
fn seconds(text: &str) -> Option<Duration> {
    let (number, factor) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let seconds = number.parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0)? * factor;
    let millis = (seconds.min(86_400.0) * 1000.0).ceil();
    Some(Duration::from_secs_f64(millis / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_keep_their_fraction_and_their_limit() {
        assert_eq!(seconds("34s"), Some(Duration::from_secs(34)));
        assert_eq!(seconds("55.846891726s"), Some(Duration::from_millis(55_847)));
        assert_eq!(seconds("0s"), Some(Duration::ZERO));
        assert_eq!(seconds("1e99s"), Some(Duration::from_hours(24)));
        for bad in ["", "s", "-1s", "NaNs", "34"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        assert_eq!(stated_delay("x\nPlease retry in 36.4297s."), Some(Duration::from_millis(36_430)));
        assert_eq!(stated_delay("Please retry in 36.5s. Bye"), Some(Duration::from_millis(36_500)));
    }

    #[test]
    fn every_wrapping_is_opened() {
        let inner = r#"{"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}"#;
        let quoted = serde_json::to_string(inner).unwrap();
        let nested = format!(r#"{{"error":{{"message":{quoted}}}}}"#);
        for form in [inner.to_owned(), format!("[{inner}]"), quoted, nested] {
            let read = ErrorBody::parse(form.as_bytes());
            assert_eq!((read.status.as_str(), read.message.as_str()), ("UNAVAILABLE", "busy"), "{form}");
        }
        let interactions = ErrorBody::parse(br#"{"error":{"code":"invalid_request","message":"no"}}"#);
        assert_eq!(interactions.status, "invalid_request");
    }

    #[test]
    fn what_is_no_error_reads_as_none() {
        for body in
            ["", "null", "{}", "[]", r#"{"error":null}"#, r#"{"candidates":[]}"#, "\"x\"", "[[[[[]]]]]"]
        {
            assert!(!ErrorBody::parse(body.as_bytes()).is_error(), "{body}");
        }
        assert!(ErrorBody::parse(b"  <!DOCTYPE html>").html);
    }
}
