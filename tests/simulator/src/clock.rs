//! The simulated world's calendar: an offset over the real clock, and Google's idea of a day.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, tz::TimeZone};

/// A handle to the virtual clock. It runs at the speed of the real one from wherever it was put.
#[derive(Debug, Clone)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
    pacific: TimeZone,
}

impl Clock {
    pub(crate) fn new() -> std::io::Result<Self> {
        let pacific = TimeZone::get("America/Los_Angeles").map_err(std::io::Error::other)?;
        Ok(Self { offset_ms: Arc::default(), pacific })
    }

    /// Milliseconds since the Unix epoch, in the simulated world.
    pub fn now_ms(&self) -> i64 {
        real_ms().saturating_add(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Moves the clock forward; a negative value moves it back.
    pub fn advance_ms(&self, by: i64) {
        self.offset_ms.fetch_add(by, Ordering::Relaxed);
    }

    /// Puts the clock at an instant.
    pub fn set_ms(&self, now: i64) {
        self.offset_ms.store(now.saturating_sub(real_ms()), Ordering::Relaxed);
    }

    /// Begin and end of the Pacific day that holds `at_ms`: 23, 24 or 25 hours apart.
    pub(crate) fn pacific_day(&self, at_ms: i64) -> (i64, i64) {
        const DAY_MS: i64 = 86_400_000;
        let bounds = || -> Result<(i64, i64), jiff::Error> {
            let here = Timestamp::from_millisecond(at_ms)?.to_zoned(self.pacific.clone());
            let end = here.tomorrow()?.start_of_day()?;
            Ok((here.start_of_day()?.timestamp().as_millisecond(), end.timestamp().as_millisecond()))
        };
        bounds().unwrap_or((at_ms - at_ms.rem_euclid(DAY_MS), at_ms - at_ms.rem_euclid(DAY_MS) + DAY_MS))
    }
}

/// RFC 3339 in UTC, as Google's resources show it.
pub(crate) fn rfc3339(at_ms: i64) -> String {
    Timestamp::from_millisecond(at_ms).map_or_else(|_| String::new(), |at| at.to_string())
}

fn real_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours_of_day(noon_utc: &str) -> (String, i64) {
        let clock = Clock::new().unwrap();
        let at: Timestamp = noon_utc.parse().unwrap();
        let (start, end) = clock.pacific_day(at.as_millisecond());
        (rfc3339(start), (end - start) / 3_600_000)
    }

    #[test]
    fn a_pacific_day_begins_at_local_midnight_on_both_sides_of_each_change() {
        assert_eq!(hours_of_day("2026-07-01T12:00:00Z"), ("2026-07-01T07:00:00Z".into(), 24));
        assert_eq!(hours_of_day("2026-11-01T12:00:00Z"), ("2026-11-01T07:00:00Z".into(), 25));
        assert_eq!(hours_of_day("2026-11-02T07:59:59Z"), ("2026-11-01T07:00:00Z".into(), 25));
        assert_eq!(hours_of_day("2026-11-02T08:00:00Z"), ("2026-11-02T08:00:00Z".into(), 24));
        assert_eq!(hours_of_day("2027-03-14T20:00:00Z"), ("2027-03-14T08:00:00Z".into(), 23));
    }
}
