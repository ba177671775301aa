//! What a receiver answered, and what that means for the message.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use super::Undelivered;
use super::text::{line, plain};

/// Every message to the same address gets the same answer, until somebody changes the configuration.
const GONE: [u16; 7] = [301, 308, 404, 405, 410, 414, 501];
/// The same message gets the same answer; another one may not.
const REFUSED: [u16; 5] = [400, 411, 413, 415, 422];
/// Nobody is left alone for longer, whatever he asks for.
const MAX_AFTER: Duration = Duration::from_hours(1);
/// What is shown of a body.
const MAX_SHOWN: usize = 200;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The beginning of the body.
    pub(super) body: String,
    /// Not before this.
    after: Option<Duration>,
    /// What may be shown.
    said: String,
}

impl Answer {
    pub(super) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[String],
        now_ms: i64,
    ) -> Self {
        let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| wait(text.trim(), now_ms));
        let body = String::from_utf8_lossy(body).into_owned();
        // It may repeat what we sent, or how it was sent.
        let shows = !body.trim().is_empty() && !secrets.iter().any(|secret| body.contains(secret));
        let said = if shows { format!(" `{}`", line(body.trim(), MAX_SHOWN, plain)) } else { String::new() };
        Self { status, body, after, said }
    }

    /// As most of them mean it.
    pub(super) fn usual(&self) -> Result<(), Undelivered> {
        match self.status.as_u16() {
            200..=299 => Ok(()),
            status if GONE.contains(&status) => Err(self.never()),
            status if REFUSED.contains(&status) => Err(Undelivered::Refused { why: self.why() }),
            _ => Err(self.later(None)),
        }
    }

    /// Nothing will ever be accepted.
    pub(super) fn never(&self) -> Undelivered {
        Undelivered::Never { why: self.why() }
    }

    /// Not now. The body may know better than the header when.
    pub(super) fn later(&self, after: Option<Duration>) -> Undelivered {
        let after = after.or(self.after).map(|after| after.min(MAX_AFTER));
        Undelivered::Later { after, why: self.why() }
    }

    fn why(&self) -> String {
        format!("answered {}{}", self.status.as_u16(), self.said)
    }
}

/// `Retry-After`: seconds, or a date.
fn wait(text: &str, now_ms: i64) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = at.as_millisecond().saturating_sub(now_ms);
    Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_to_wait_is_seconds_or_a_date() {
        // 2015-10-21 07:28:00 UTC
        let now = 1_445_412_480_000;
        for (text, expected) in [
            ("30", Some(30)),
            ("Wed, 21 Oct 2015 07:28:10 GMT", Some(10)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(wait(text, now).map(|wait| wait.as_secs()), expected, "{text}");
        }
    }
}
