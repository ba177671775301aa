//! Reading an upstream error, in every form in which it arrives: Google's object, the same in a one-element array
//! (the compat surface), JSON inside a JSON string, the Interactions API's string codes, HTML, or nothing.

use std::time::Duration;

use serde_json::Value;

/// The longest error body that is read; the rest cannot hold what decides.
pub const MAX_ERROR_BODY: usize = 64 * 1024;
/// The most details of an error, and violations in one of them, that are looked at.
const MAX_LISTED: usize = 32;

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
    /// A violated limit is zero: the tier has none of it.
    pub limit_zero: bool,
    /// The violated limits that the error tells, in its order, as far as their dimension is known.
    pub stated_limits: Vec<StatedLimit>,
    /// The longest delay that the error asks for, from `RetryInfo` or the message's finer figure.
    pub retry_delay: Option<Duration>,
    /// The error says which fields of the request are wrong.
    pub field_violations: bool,
    /// The body was a web page.
    pub html: bool,
    /// The error object, for a caller that wants its details.
    pub details: Option<Value>,
}

/// How much of a quota a project has for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedLimit {
    /// What is counted.
    pub dimension: Dimension,
    /// How much of it there is in each window.
    pub limit: u64,
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Requests of a minute.
    RequestsPerMinute,
    /// Requests of a Pacific calendar day.
    RequestsPerDay,
    /// Input tokens of a minute.
    InputTokensPerMinute,
    /// Input tokens of a Pacific calendar day.
    InputTokensPerDay,
}

impl Dimension {
    /// What is kept as a quota, if it is.
    pub const fn quota(self) -> Option<crate::quota::Dimension> {
        match self {
            Self::RequestsPerMinute => Some(crate::quota::Dimension::Rpm),
            Self::RequestsPerDay => Some(crate::quota::Dimension::Rpd),
            Self::InputTokensPerMinute => Some(crate::quota::Dimension::Tpm),
            Self::InputTokensPerDay => None,
        }
    }
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
        let mut told = told_limits(&read.message);
        read.limit_zero = told.iter().any(|told| told.limit == 0);
        for detail in error.get("details").and_then(Value::as_array).into_iter().flatten().take(MAX_LISTED) {
            read.detail(detail, &mut told);
        }
        // What no violation explains may still say by its metric what it counts.
        read.stated_limits.extend(told.iter().filter_map(|told| {
            let dimension = dimension("", &told.metric)?;
            Some(StatedLimit { dimension, limit: told.limit })
        }));
        read.retry_delay = read.retry_delay.max(stated_delay(&read.message));
        read.details = Some(error);
        read
    }

    /// Case-insensitive search of the message.
    pub fn mentions(&self, lowercase: &str) -> bool {
        self.message.to_ascii_lowercase().contains(lowercase)
    }

    fn detail(&mut self, detail: &Value, told: &mut Vec<ToldLimit>) {
        let kind = text(detail, "@type");
        if kind.ends_with("ErrorInfo") {
            text(detail, "reason").clone_into(&mut self.reason);
        } else if kind.ends_with("BadRequest") {
            self.field_violations = true;
        } else if kind.ends_with("RetryInfo") {
            self.retry_delay = self.retry_delay.max(seconds(text(detail, "retryDelay")));
        } else if kind.ends_with("QuotaFailure") {
            let violations = detail.get("violations").and_then(Value::as_array);
            for violation in violations.into_iter().flatten().take(MAX_LISTED) {
                self.quota = self.quota.max(period(violation));
                self.violation(violation, told);
            }
        }
    }

    /// The limit of a violation: its own value, or else what the message's line about the same metric says.
    fn violation(&mut self, violation: &Value, told: &mut Vec<ToldLimit>) {
        let metric = text(violation, "quotaMetric");
        let line = told.iter().position(|told| told.metric == metric).map(|line| told.remove(line));
        let value = text(violation, "quotaValue").parse().ok().or(line.map(|line| line.limit));
        let Some(limit) = value else { return };
        self.limit_zero |= limit == 0;
        if let Some(dimension) = dimension(text(violation, "quotaId"), metric)
            && self.stated_limits.len() < MAX_LISTED
        {
            self.stated_limits.push(StatedLimit { dimension, limit });
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

/// What a quota counts, by its id or else its metric; `None` if neither tells the window.
fn dimension(id: &str, metric: &str) -> Option<Dimension> {
    let says = |of_id: &str, of_metric: &str| id.contains(of_id) || metric.contains(of_metric);
    let tokens = says("InputTokens", "input_token");
    if says("PerDay", "per_day") {
        Some(if tokens { Dimension::InputTokensPerDay } else { Dimension::RequestsPerDay })
    } else if tokens {
        Some(Dimension::InputTokensPerMinute)
    } else {
        says("PerMinute", "per_minute").then_some(Dimension::RequestsPerMinute)
    }
}

/// A limit as the message tells it.
struct ToldLimit {
    metric: String,
    limit: u64,
}

/// `Quota exceeded for metric: M, limit: 20` out of a message, each time it is there.
fn told_limits(message: &str) -> Vec<ToldLimit> {
    let told = message.split("Quota exceeded for metric: ").skip(1).take(MAX_LISTED);
    let told = told.filter_map(|line| {
        let (metric, rest) = line.split_once(", limit: ")?;
        let limit = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        (!metric.contains('\n')).then(|| ToldLimit { metric: metric.to_owned(), limit })
    });
    told.collect()
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

    const REQUESTS: &str = "generativelanguage.googleapis.com/generate_content_free_tier_requests";
    const TOKENS: &str = "generativelanguage.googleapis.com/generate_content_free_tier_input_token_count";

    /// An error with these violations (metric, id, value) and lines of the message (metric, limit).
    fn exceeded(violations: &[(&str, &str, Option<&str>)], lines: &[(&str, u64)]) -> ErrorBody {
        let violations: Vec<_> = violations
            .iter()
            .map(|(metric, id, value)| {
                let mut violation = serde_json::json!({ "quotaMetric": metric, "quotaId": id });
                if let Some(value) = value {
                    violation["quotaValue"] = (*value).into();
                }
                violation
            })
            .collect();
        let line = |(metric, limit): &(&str, u64)| {
            format!("\n* Quota exceeded for metric: {metric}, limit: {limit}, model: gemini-2.5-flash")
        };
        let message =
            lines.iter().map(line).fold("You exceeded your current quota.".to_owned(), |a, b| a + &b);
        let error = serde_json::json!({"error": {
            "message": message + "\nPlease retry in 58.8s.",
            "details": [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}],
        }});
        ErrorBody::parse(error.to_string().as_bytes())
    }

    fn limits(read: &ErrorBody) -> Vec<(Dimension, u64)> {
        read.stated_limits.iter().map(|stated| (stated.dimension, stated.limit)).collect()
    }

    #[test]
    fn every_violation_tells_its_limit() {
        let minute = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier";
        let day = "GenerateRequestsPerDayPerProjectPerModel-FreeTier";
        let tokens = "GenerateContentInputTokensPerModelPerMinute-FreeTier";
        let all = [
            (Dimension::RequestsPerDay, 250),
            (Dimension::InputTokensPerMinute, 125_000),
            (Dimension::RequestsPerMinute, 10),
        ];
        let told = [(REQUESTS, 250), (TOKENS, 125_000), (REQUESTS, 10)];
        let valued =
            [(REQUESTS, day, Some("250")), (TOKENS, tokens, Some("125000")), (REQUESTS, minute, Some("10"))];
        let bare = valued.map(|(metric, id, _)| (metric, id, None));
        for read in [exceeded(&valued, &told), exceeded(&valued, &[]), exceeded(&bare, &told)] {
            assert_eq!(limits(&read), all);
            assert!(!read.limit_zero);
        }
        // Only the second limit is zero, and only the message says so.
        let zero = exceeded(&bare[..2], &[(REQUESTS, 250), (TOKENS, 0)]);
        assert_eq!(limits(&zero)[1], (Dimension::InputTokensPerMinute, 0));
        assert!(zero.limit_zero);
        assert!(exceeded(&[], &[(REQUESTS, 20), (TOKENS, 0)]).limit_zero);
        assert!(exceeded(&[(REQUESTS, day, Some("0"))], &[]).limit_zero);
    }

    #[test]
    fn a_limit_without_a_known_window_is_not_guessed() {
        let of_message =
            exceeded(&[], &[(REQUESTS, 20), (TOKENS, 250_000), ("a/requests_per_model_per_day", 3)]);
        assert_eq!(
            limits(&of_message),
            [(Dimension::InputTokensPerMinute, 250_000), (Dimension::RequestsPerDay, 3)]
        );
        for value in ["", "-1", "many"] {
            assert!(exceeded(&[(REQUESTS, "PerDay", Some(value))], &[]).stated_limits.is_empty(), "{value}");
        }
        let many = vec![(TOKENS, 1); 100];
        assert_eq!(limits(&exceeded(&[], &many)).len(), MAX_LISTED);
        assert!(ErrorBody::parse(br#"{"error":{"message":"my limit: 0 dollars"}}"#).stated_limits.is_empty());
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
