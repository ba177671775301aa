//! For how long a failure keeps traffic away: the block-window matrix.
//!
//! One pure function, [`window`], answers "until when?" from the cause, how often it has struck in a row, the
//! calendar and a random draw. Gateway and coordinator call it with the same draw, so both arrive at the same
//! deadline. A later deadline extends a block, a shorter one never shortens it; that is [`Block::extend`].

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::outcome::{Cause, Outcome};
use crate::time::{Now, Utc};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// A model that is down is tried so often at least: one request of the whole fleet costs little, and every second that a
/// model is back unnoticed costs much.
const MOST_RECOVERY: Duration = Duration::from_secs(30);

/// A minute quota is back within a minute; the upstream's figure may not keep us away for longer than this.
const MINUTE_CAP: Duration = Duration::from_secs(65);
/// Added to every stated delay: the upstream's clock and ours do not tick together.
const SLACK: Duration = Duration::from_millis(20);
/// Day quotas do not return on the stroke of midnight.
const MIDNIGHT_SLACK: Duration = Duration::from_mins(1);
/// Keys of a large pool come back spread over this time after midnight.
const MIDNIGHT_JITTER: Duration = Duration::from_mins(2);

/// What the operator chose for cases that the upstream leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A 429 without any detail keeps the bucket out until Pacific midnight instead of a short cooldown.
    pub bare_until_midnight: bool,
    /// Consecutive failures charged to one key before it is blocked.
    pub max_failures: u32,
    /// For how long such a key is blocked at first.
    pub temporary_block: Duration,
}

/// How long traffic stays away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Fully closed until then; [`Utc::FOREVER`] if nothing but a probe or an operator ends it.
    pub until: Utc,
    /// One single request may try after this time.
    pub probe_after: Option<Duration>,
}

/// A scope that traffic stays away from, as it is stored and published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Why.
    pub cause: Cause,
    /// Until when.
    pub until: Utc,
    /// When one single request may try, if before `until`.
    pub probe_at: Option<Utc>,
    /// How many times in a row it has struck; 0 the first time.
    pub level: u32,
    /// When it began.
    pub since: Utc,
}

/// The window that a failure opens, or `None` if it closes nothing by itself (breakers and consecutive failures
/// have their own rules). `level` is 0 the first time in a row; `draw` is uniform over its whole range.
pub fn window(outcome: &Outcome, level: u32, policy: &Policy, now: Utc, draw: u32) -> Option<Window> {
    let asked = outcome.retry_after;
    let closed = |span: Duration| Window { until: now.plus(span), probe_after: None };
    Some(match outcome.cause {
        Cause::PerMinute | Cause::InputTokensPerMinute => {
            let base = asked.filter(|d| !d.is_zero()).unwrap_or_else(|| doubled(SECOND, level, MINUTE));
            let base = base.clamp(SECOND, MINUTE_CAP);
            closed((base + SLACK + jitter(base, draw)).min(MINUTE_CAP))
        }
        Cause::PerDay => day_window(asked, level, now, draw),
        Cause::BareRateLimit if policy.bare_until_midnight => day_window(None, level, now, draw),
        Cause::BareRateLimit => {
            let base = doubled(2 * SECOND, level, MINUTE).max(asked.unwrap_or_default()).min(HOUR);
            closed(base + jitter(base, draw))
        }
        Cause::UnnamedQuota => {
            let base = doubled(MINUTE / 2, level, 10 * MINUTE).max(asked.unwrap_or_default()).min(HOUR);
            closed(base + jitter(base, draw))
        }
        Cause::LimitZero | Cause::ModelNotAvailable => closed(24 * HOUR + jitter(HOUR, draw)),
        Cause::Billing => Window { until: Utc::FOREVER, probe_after: Some(HOUR + jitter(HOUR, draw)) },
        cause if cause.is_terminal() => Window { until: Utc::FOREVER, probe_after: None },
        _ => return None,
    })
}

/// The window of a key that failed `policy.max_failures` times in a row by its own fault: it ends with a single
/// probe, and doubles while that fails.
pub fn temporary(level: u32, policy: &Policy, draw: u32) -> Window {
    let base = doubled(policy.temporary_block, level, policy.temporary_block.max(10 * MINUTE));
    Window { until: Utc::FOREVER, probe_after: Some(base + jitter(base, draw)) }
}

/// The window of a model whose breaker opened: it ends with a single request that is answered. The time to the next one
/// doubles while they fail.
pub fn tripped(recovery: Duration, level: u32, draw: u32) -> Window {
    let base = doubled(recovery, level, recovery.max(MOST_RECOVERY));
    Window { until: Utc::FOREVER, probe_after: Some(base + jitter(base, draw)) }
}

/// When a key or project that is out for good is looked at again: after an hour, then every six.
pub fn recheck_after(times: u32) -> Duration {
    if times == 0 { HOUR } else { 6 * HOUR }
}

/// The next Pacific midnight after `now`, when day quotas return. Days have 23, 24 or 25 hours.
///
/// Source: "RPD quotas reset at midnight Pacific time" (Gemini API, rate limits).
pub fn next_pacific_midnight(now: Utc) -> Utc {
    let fallback = now.plus(24 * HOUR);
    let Ok(zone) = TimeZone::get("America/Los_Angeles") else { return fallback };
    let Ok(at) = Timestamp::from_millisecond(now.as_ms()) else { return fallback };
    let tomorrow = at.to_zoned(zone).checked_add(1.day()).and_then(|day| day.start_of_day());
    tomorrow.map_or(fallback, |day| Utc::from_ms(day.timestamp().as_millisecond()))
}

/// A day quota's own retry delay speaks of seconds, and is wrong more often than right: stay away until midnight,
/// but let one request try after that delay, then after 15 minutes, then hourly.
fn day_window(asked: Option<Duration>, level: u32, now: Utc, draw: u32) -> Window {
    let midnight = next_pacific_midnight(now).plus(MIDNIGHT_SLACK + fraction(MIDNIGHT_JITTER, draw));
    let probe = match level {
        0 => asked.map_or(15 * MINUTE, |d| d.max(SECOND).min(15 * MINUTE)),
        1 => 15 * MINUTE,
        _ => HOUR,
    };
    Window { until: midnight, probe_after: Some(probe + jitter(probe, draw)) }
}

fn doubled(first: Duration, level: u32, cap: Duration) -> Duration {
    first.saturating_mul(1 << level.min(16)).min(cap)
}

/// Up to 5 % of the span, 250 ms at most for a minute: enough to part replicas, too little to waste quota.
fn jitter(span: Duration, draw: u32) -> Duration {
    let most = if span <= MINUTE_CAP { (span / 20).min(SECOND / 4) } else { span / 20 };
    fraction(most, draw)
}

fn fraction(span: Duration, draw: u32) -> Duration {
    span.mul_f64(f64::from(draw) / f64::from(u32::MAX))
}

impl Block {
    /// The block that `window` begins.
    pub fn begin(cause: Cause, window: Window, level: u32, now: Utc) -> Self {
        let probe_at = window.probe_after.map(|span| now.plus(span)).filter(|at| *at < window.until);
        Self { cause, until: window.until, probe_at, level, since: now }
    }

    /// Adds a later finding about the same scope: the later deadline and its cause count.
    #[must_use]
    pub fn extend(self, later: Self) -> Self {
        let (long, short) = if later.until >= self.until { (later, self) } else { (self, later) };
        let probe_at = match (long.probe_at, short.probe_at) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (probe, _) => probe,
        };
        Self { probe_at, since: self.since, level: self.level.max(later.level), ..long }
    }

    /// True while one single request may try.
    pub fn is_half_open(&self, now: Now) -> bool {
        self.holds(now) && self.probe_at.is_some_and(|at| at <= now.utc)
    }

    /// True while it keeps any traffic away.
    pub fn holds(&self, now: Now) -> bool {
        self.until > now.utc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy =
        Policy { bare_until_midnight: false, max_failures: 3, temporary_block: Duration::from_mins(5) };

    fn utc(text: &str) -> Utc {
        Utc::from_ms(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    fn span(cause: Cause, asked_ms: Option<u64>, level: u32, draw: u32) -> Duration {
        let now = utc("2026-11-23T12:00:00Z");
        let outcome = Outcome { retry_after: asked_ms.map(Duration::from_millis), ..cause.outcome() };
        window(&outcome, level, &POLICY, now, draw).unwrap().until.since(now)
    }

    #[test]
    fn midnight_follows_the_tz_database() {
        for (now, midnight) in [
            ("2026-11-23T12:00:00Z", "2026-11-24T08:00:00Z"),
            ("2026-07-01T06:59:59.999Z", "2026-07-01T07:00:00Z"),
            ("2026-07-01T07:00:00Z", "2026-07-02T07:00:00Z"),
            ("2026-11-01T07:00:00Z", "2026-11-02T08:00:00Z"), // the day of 25 hours
            ("2026-11-01T09:30:00Z", "2026-11-02T08:00:00Z"), // inside the repeated hour
            ("2027-03-14T08:00:00Z", "2027-03-15T07:00:00Z"), // the day of 23 hours
        ] {
            assert_eq!(next_pacific_midnight(utc(now)), utc(midnight), "{now}");
        }
    }

    #[test]
    fn minute_windows_follow_the_upstream_within_their_cap() {
        assert_eq!(span(Cause::PerMinute, Some(34_000), 0, 0), Duration::from_millis(34_020));
        assert_eq!(span(Cause::PerMinute, Some(500), 5, 0), Duration::from_millis(1_020));
        assert_eq!(span(Cause::PerMinute, Some(900_000), 0, u32::MAX), MINUTE_CAP);
        assert_eq!(span(Cause::PerMinute, Some(0), 3, 0), Duration::from_millis(8_020), "0s says nothing");
        assert_eq!(span(Cause::PerMinute, None, 0, u32::MAX), Duration::from_millis(1_070));
    }

    #[test]
    fn a_bare_429_escalates_from_two_seconds_to_a_minute() {
        let spans: Vec<_> =
            (0..7).map(|level| span(Cause::BareRateLimit, None, level, 0).as_secs()).collect();
        assert_eq!(spans, [2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_day_quota_waits_for_midnight_and_probes_before() {
        let now = utc("2026-11-23T12:00:00Z");
        let outcome = Outcome { retry_after: Some(Duration::from_secs(36)), ..Cause::PerDay.outcome() };
        let probes: Vec<_> = (0..3)
            .map(|level| {
                let window = window(&outcome, level, &POLICY, now, 0).unwrap();
                assert_eq!(window.until, utc("2026-11-24T08:01:00Z"));
                window.probe_after.unwrap().as_secs()
            })
            .collect();
        assert_eq!(probes, [36, 900, 3600]);
        let latest = window(&outcome, 0, &POLICY, now, u32::MAX).unwrap().until;
        assert_eq!(latest, utc("2026-11-24T08:03:00Z"));
    }

    #[test]
    fn a_shorter_deadline_never_shortens() {
        let now = utc("2026-11-23T12:00:00Z");
        let minute = Window { until: now.plus(MINUTE), probe_after: None };
        let day = Window { until: now.plus(20 * HOUR), probe_after: Some(MINUTE) };
        let long = Block::begin(Cause::PerDay, day, 0, now);
        let short = Block::begin(Cause::PerMinute, minute, 0, now);
        assert_eq!(long.extend(short).until, long.until);
        assert_eq!(long.extend(short).cause, Cause::PerDay);
        assert_eq!(short.extend(long).until, long.until);
        assert_eq!(short.extend(long).probe_at, long.probe_at);
    }

    #[test]
    fn breakers_and_callers_open_no_window() {
        for cause in [Cause::Overloaded, Cause::Connect, Cause::BadRequest, Cause::CredentialRejected] {
            assert_eq!(window(&cause.outcome(), 0, &POLICY, Utc::default(), 0), None, "{cause:?}");
        }
    }
}
