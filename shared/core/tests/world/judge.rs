//! The upstream's own count, by its own clock: the judge.

use std::collections::VecDeque;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{TERMS, ms};

/// Counts what arrives of one bucket.
pub(crate) struct Judge {
    limit: u64,
    count: Count,
}

enum Count {
    /// The last window of arrivals, the oldest first, and the number of the first of them.
    Window { arrivals: VecDeque<Arrival>, first: u64, sum: u64 },
    /// One calendar day.
    Day { date: Date, sum: u64 },
}

struct Arrival {
    at: u64,
    n: u64,
    /// What nobody knew before it was sent.
    under: u64,
    /// When that was charged at the latest.
    charged: Option<u64>,
}

/// What an arrival did.
pub(crate) struct Counted {
    /// Names the arrival.
    pub(crate) id: u64,
    /// By how much the quota is exceeded.
    pub(crate) over: u64,
    /// How much of that is due to estimates which were too low and not charged when the last permits were granted.
    pub(crate) excused: u64,
}

impl Judge {
    pub(crate) fn of_window(limit: u64) -> Self {
        Self { limit, count: Count::Window { arrivals: VecDeque::new(), first: 0, sum: 0 } }
    }

    pub(crate) fn of_days(limit: u64) -> Self {
        Self { limit, count: Count::Day { date: Date::MIN, sum: 0 } }
    }

    /// Something of size `n` arrives, of which `under` was unknown; `utc_ms` is what the upstream's calendar says.
    pub(crate) fn arrive(&mut self, n: u64, under: u64, now: u64, utc_ms: i64) -> Counted {
        match &mut self.count {
            Count::Window { arrivals, first, sum } => {
                while let Some(gone) = arrivals.pop_front_if(|arrival| arrival.at + ms(TERMS.window) <= now) {
                    *sum -= gone.n;
                    *first += 1;
                }
                arrivals.push_back(Arrival { at: now, n, under, charged: None });
                *sum += n;
                let over = sum.saturating_sub(self.limit);
                // A lot that is drawn from now was granted after this moment.
                let granted_after = now.saturating_sub(ms(TERMS.life + TERMS.jitter));
                let unseen = arrivals
                    .iter()
                    .filter(|arrival| arrival.charged.is_none_or(|charged| charged > granted_after));
                let excused = if over == 0 { 0 } else { over.min(unseen.map(|arrival| arrival.under).sum()) };
                Counted { id: *first + arrivals.len() as u64 - 1, over, excused }
            }
            Count::Day { date, sum } => {
                let today = pacific_date(utc_ms);
                if today != *date {
                    (*date, *sum) = (today, 0);
                }
                *sum += n;
                Counted { id: 0, over: sum.saturating_sub(self.limit), excused: 0 }
            }
        }
    }

    /// What was unknown of that arrival is charged.
    pub(crate) fn charged(&mut self, id: u64, now: u64) {
        if let Count::Window { arrivals, first, .. } = &mut self.count
            && let Some(place) = id.checked_sub(*first)
            && let Some(arrival) = arrivals.get_mut(usize::try_from(place).unwrap())
        {
            arrival.charged = Some(now);
        }
    }
}

fn pacific_date(utc_ms: i64) -> Date {
    Timestamp::from_millisecond(utc_ms).unwrap().to_zoned(pacific()).date()
}

/// When the next day begins in California.
pub(crate) fn next_midnight(utc_ms: i64) -> i64 {
    let tomorrow = pacific_date(utc_ms).tomorrow().unwrap();
    tomorrow.to_zoned(pacific()).unwrap().timestamp().as_millisecond()
}

fn pacific() -> TimeZone {
    TimeZone::get("America/Los_Angeles").unwrap()
}
