//! The one place where a process reads its clocks.

use std::time::{SystemTime, UNIX_EPOCH};

use keyfleet_core::time::{Mono, Now, Utc};
use rustix::time::{ClockId, clock_gettime};

/// The process's clock: monotonic, and counting while the machine is suspended.
pub fn mono() -> Mono {
    let at = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    let millis = u64::try_from(at.tv_nsec / 1_000_000).unwrap_or_default();
    Mono::from_ms(seconds * 1_000 + millis)
}

/// The calendar.
pub fn utc() -> Utc {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Utc::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Both clocks.
pub fn now() -> Now {
    Now { mono: mono(), utc: utc() }
}

/// The moment of tokio's clock that corresponds to one of ours, for timers.
pub fn instant(at: Mono) -> tokio::time::Instant {
    // A timer a month away is as good as one that never fires, and cannot overflow.
    let wait = at.since(mono()).min(std::time::Duration::from_hours(30 * 24));
    tokio::time::Instant::now() + wait
}
