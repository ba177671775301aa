//! What was used of a bucket, for as long as it counts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Terms;
use crate::block::next_pacific_midnight;
use crate::time::{LedgerTime, Utc};

/// Charges of so much time are counted together, as if all came at its end.
const SLOT: u64 = 250;
/// How far clocks may be apart about when a day ends.
pub const TWILIGHT: Duration = Duration::from_mins(1);

/// The charges of a sliding window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Window {
    /// End of the slot in ms of ledger time, and its charges; the oldest first.
    slots: std::collections::VecDeque<(u64, u64)>,
}

impl Window {
    /// Adds a charge. What is already charged for a later moment keeps its place.
    pub fn charge(&mut self, n: u64, at: LedgerTime) {
        if n == 0 {
            return;
        }
        let end = (at.as_ms() / SLOT + 1) * SLOT;
        let place = self.slots.partition_point(|(slot, _)| *slot < end);
        match self.slots.get_mut(place) {
            Some((slot, count)) if *slot == end => *count = count.saturating_add(n),
            _ => self.slots.insert(place, (end, n)),
        }
    }

    /// Takes back charges for permits that came back unspent. The oldest go: whatever of the rest is counted at a later
    /// moment is then never less than what was spent by it.
    pub fn refund(&mut self, mut n: u64) {
        while n > 0
            && let Some((_, count)) = self.slots.front_mut()
        {
            let part = n.min(*count);
            *count -= part;
            n -= part;
            if *count == 0 {
                self.slots.pop_front();
            }
        }
    }

    /// Drops what no longer counts; returns the sum of what does.
    pub fn count(&mut self, terms: &Terms, now: LedgerTime) -> u64 {
        while self.slots.front().is_some_and(|(end, _)| leaves(*end, terms) <= now) {
            self.slots.pop_front();
        }
        self.slots.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// When the first charge stops counting.
    pub fn next_return(&self, terms: &Terms) -> Option<LedgerTime> {
        self.slots.front().map(|(end, _)| leaves(*end, terms))
    }
}

fn leaves(end: u64, terms: &Terms) -> LedgerTime {
    LedgerTime::from_ms(end).plus(terms.window).plus(terms.jitter)
}

/// The charges of a calendar day. Around its end they count for the day before and the day after: nobody knows by
/// which clock the upstream ends it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Day {
    /// When the day ends that `ending` counts.
    ends: Utc,
    /// What was used in it.
    ending: u64,
    /// What was used so close to its end that it may belong to the next one.
    next: u64,
}

impl Day {
    /// Adds a charge.
    pub fn charge(&mut self, n: u64, now: Utc) {
        self.turn(now);
        self.ending = self.ending.saturating_add(n);
        if now >= self.dusk() {
            self.next = self.next.saturating_add(n);
        }
    }

    /// Takes back charges for permits that came back unspent. Around the end of the day they stay: nobody knows of
    /// which day they are.
    pub fn refund(&mut self, n: u64, now: Utc) {
        self.turn(now);
        if now < self.dusk() {
            self.ending = self.ending.saturating_sub(n);
        }
    }

    /// What counts now: the larger of both days while it is not sure which one it is.
    pub fn count(&mut self, now: Utc) -> u64 {
        self.turn(now);
        self.ending.max(self.next)
    }

    /// When it will count no more.
    pub fn returns(&self) -> Utc {
        self.ends.plus(TWILIGHT)
    }

    fn dusk(&self) -> Utc {
        Utc::from_ms(self.ends.as_ms().saturating_sub(i64::try_from(TWILIGHT.as_millis()).unwrap_or(0)))
    }

    /// Begins the next day when this one is over by every clock. A calendar that was set back changes nothing.
    fn turn(&mut self, now: Utc) {
        if now < self.returns() {
            return;
        }
        // The charges of the twilight belong to the day that follows at once, not to one after a long silence.
        let follows = next_pacific_midnight(self.ends.plus(Duration::from_millis(1)));
        let ends = next_pacific_midnight(Utc::from_ms(now.as_ms().saturating_sub(60_000)));
        self.ending = if follows == ends { self.next } else { 0 };
        self.next = 0;
        self.ends = ends;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> LedgerTime {
        LedgerTime::from_ms(ms)
    }

    #[test]
    fn a_charge_counts_for_at_least_window_and_jitter() {
        let terms = Terms::MINUTE;
        let mut window = Window::default();
        window.charge(3, at(999));
        window.charge(2, at(0));
        assert_eq!(window.count(&terms, at(60_499)), 5);
        assert_eq!(window.count(&terms, at(60_500)), 3, "the slot that ends at 250 left after 60.25 s");
        assert_eq!(window.count(&terms, at(61_249)), 3);
        assert_eq!(window.next_return(&terms), Some(at(61_250)));
        assert_eq!(window.count(&terms, at(61_250)), 0);
    }

    #[test]
    fn a_late_charge_finds_its_place() {
        let terms = Terms::MINUTE;
        let mut window = Window::default();
        window.charge(1, at(10_000));
        window.charge(1, at(5_000));
        window.charge(1, at(5_001));
        assert_eq!(window.count(&terms, at(65_600)), 1);
    }

    fn utc(text: &str) -> Utc {
        Utc::from_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn around_midnight_a_charge_counts_for_both_days() {
        for (midnight, next) in [
            ("2026-07-01T07:00:00Z", "2026-07-02T07:00:00Z"),
            ("2026-11-01T07:00:00Z", "2026-11-02T08:00:00Z"),
            ("2027-03-14T08:00:00Z", "2027-03-15T07:00:00Z"),
        ] {
            let shift = |seconds: i64| Utc::from_ms(utc(midnight).as_ms() + seconds * 1000);
            let mut day = Day::default();
            day.charge(5, shift(-3600));
            day.charge(2, shift(-30));
            assert_eq!(day.count(shift(-30)), 7);
            day.charge(1, shift(30));
            assert_eq!(day.count(shift(59)), 8, "the old day may not be over");
            assert_eq!(day.count(shift(60)), 3, "what was used since dusk may belong to the new one");
            assert_eq!(day.returns(), utc(next).plus(TWILIGHT));
            assert_eq!(day.count(shift(-10)), 3, "a clock that is set back brings no day back");
        }
    }

    #[test]
    fn after_a_silence_nothing_of_the_twilight_is_left() {
        let mut day = Day::default();
        day.charge(2, utc("2026-07-01T06:59:30Z"));
        assert_eq!(day.count(utc("2026-07-04T12:00:00Z")), 0);
        assert_eq!(day.returns(), utc("2026-07-05T07:01:00Z"));
    }
}
