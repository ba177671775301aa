//! The time at which a chunk leaves the upstream, inside the chunk. Both ends read the clock that all processes of a
//! machine share, so the difference is the delay.

use memchr::memmem;
use rustix::time::{ClockId, clock_gettime};

const BEGIN: &[u8] = b"\"sent_ns\":\"";
const DIGITS: usize = 20;

/// The machine's monotonic clock, in nanoseconds.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// A JSON member that says that it is `now_ns`.
pub fn stamp(now_ns: u64) -> String {
    format!("\"sent_ns\":\"{now_ns:0DIGITS$}\"")
}

/// The stamps in some bytes. One that the end cuts off is none.
pub fn stamps(bytes: &[u8]) -> impl Iterator<Item = u64> {
    memmem::find_iter(bytes, BEGIN).filter_map(|at| {
        let from = at + BEGIN.len();
        std::str::from_utf8(bytes.get(from..from + DIGITS)?).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stamped_is_found() {
        let text = format!("{{{}}}\n\n{{{}}}", stamp(1), stamp(u64::MAX));
        assert_eq!(stamps(text.as_bytes()).collect::<Vec<_>>(), [1, u64::MAX]);
        assert_eq!(stamps(&text.as_bytes()[..20]).count(), 0);
    }
}
