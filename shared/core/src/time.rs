//! Times that never mix.
//!
//! [`Mono`] orders events of one process and is never written down; [`Utc`] is for what calendars decide (day
//! quotas, blocks that outlive a process); a [`Duration`] is the only time that travels between processes.
//! There is no conversion without a named function, and nothing here reads a clock: [`Now`] is an argument.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Milliseconds of one process's monotonic clock, which goes on counting while the machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(u64);

impl Mono {
    /// Later than every real moment: "until somebody says otherwise".
    pub const FOREVER: Self = Self(u64::MAX);

    /// From milliseconds of the process's clock.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds of the process's clock.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This moment plus a span; saturates at [`Mono::FOREVER`].
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(ms(span)))
    }

    /// This moment minus a span; saturates at zero.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(ms(span)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Milliseconds since the Unix epoch: the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Utc(i64);

impl Utc {
    /// Later than every real moment.
    pub const FOREVER: Self = Self(i64::MAX);

    /// From milliseconds since the Unix epoch.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// This moment plus a span; saturates at [`Utc::FOREVER`].
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add_unsigned(ms(span)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Utc {
    /// As RFC 3339 has it, to the second or to so many digits behind it as the precision says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        match Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.digits$}"),
            Err(_) => f.write_str("never"),
        }
    }
}

/// Milliseconds that the ledger has been led: the living leader's clock moves it on, and it stands still while nobody
/// leads. It is stored, never sent, and never later than the time that has really passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LedgerTime(u64);

impl LedgerTime {
    /// From milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// In milliseconds.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// This moment plus a span.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(ms(span)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// How a leader moves ledger time on. It goes slower than the leader's own clock by more than clocks drift, so that a
/// window of ledger time is never shorter than one of real time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerClock {
    base: LedgerTime,
    since: Mono,
}

impl LedgerClock {
    /// Goes on from where the last leader was.
    pub const fn resume(base: LedgerTime, now: Mono) -> Self {
        Self { base, since: now }
    }

    /// How far ledger time has come.
    pub fn at(&self, now: Mono) -> LedgerTime {
        let elapsed = now.since(self.since);
        self.base.plus(elapsed.saturating_sub(elapsed / 1_000))
    }
}

/// One reading of both clocks of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The process's clock.
    pub mono: Mono,
    /// The calendar.
    pub utc: Utc,
}

impl Now {
    /// The moment so long before this one.
    #[must_use]
    pub fn ago(self, span: Duration) -> Self {
        Self { mono: self.mono.minus(span), utc: Utc(self.utc.0.saturating_sub_unsigned(ms(span))) }
    }

    /// The moment of this process's clock at which the calendar will show `utc`, if nobody sets the clock.
    pub fn mono_at(self, utc: Utc) -> Mono {
        if utc == Utc::FOREVER { Mono::FOREVER } else { self.mono.plus(utc.since(self.utc)) }
    }

    /// What the calendar will show at `mono`, if nobody sets the clock.
    pub fn utc_at(self, mono: Mono) -> Utc {
        if mono == Mono::FOREVER { Utc::FOREVER } else { self.utc.plus(mono.since(self.mono)) }
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forever_survives_both_conversions() {
        let now = Now { mono: Mono::from_ms(5), utc: Utc::from_ms(1_000_000) };
        assert_eq!(now.mono_at(Utc::FOREVER), Mono::FOREVER);
        assert_eq!(now.utc_at(Mono::FOREVER), Utc::FOREVER);
        assert_eq!(now.mono_at(Utc::from_ms(1_000_250)), Mono::from_ms(255));
        assert_eq!(now.mono_at(Utc::from_ms(0)), Mono::from_ms(5), "a moment gone by is now");
    }
}
