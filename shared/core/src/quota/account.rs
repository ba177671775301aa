//! What a leader knows of one bucket: what was used of it, and what is out in lots.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::used::{Day, Window};
use super::{Bucket, LotId, OpenLot, Terms};
use crate::time::{LedgerTime, Utc};

/// The leader's clocks, and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The epoch in which it leads.
    pub epoch: u64,
    /// How far ledger time has come.
    pub time: LedgerTime,
    /// The calendar, for day quotas only.
    pub utc: Utc,
}

/// What is known of one bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    used: Used,
    pub(super) lots: Vec<OpenLot>,
    /// Somebody got less than it needed a moment ago: until then nobody gets anything ahead of its need.
    #[serde(skip)]
    pub(super) short_until: LedgerTime,
    /// The limit by which somebody was last refused, who may have been told to wait for long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused_at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Used {
    Window(Window),
    Day(Day),
    /// The probe of this lot has ended, and until then its verdict may be on its way.
    Verdict(Option<(LotId, LedgerTime)>),
}

impl Account {
    pub(super) fn new(bucket: &Bucket) -> Self {
        let used = match bucket {
            Bucket::Probe(_) => Used::Verdict(None),
            bucket if bucket.is_daily() => Used::Day(Day::default()),
            _ => Used::Window(Window::default()),
        };
        Self { used, lots: Vec::new(), short_until: LedgerTime::default(), refused_at: None }
    }

    pub(super) fn charge(&mut self, n: u64, at: LedgerTime, utc: Utc) {
        match &mut self.used {
            Used::Window(window) => window.charge(n, at),
            Used::Day(day) => day.charge(n, utc),
            Used::Verdict(_) => {}
        }
    }

    /// Takes back charges of the last seconds: those of lots that are still open.
    pub(super) fn refund(&mut self, n: u64, utc: Utc) {
        match &mut self.used {
            Used::Window(window) => window.refund(n),
            Used::Day(day) => day.refund(n, utc),
            Used::Verdict(_) => {}
        }
    }

    /// The probe of this lot has ended; its verdict arrives before then, if it ever does.
    pub(super) fn await_verdict(&mut self, lot: LotId, until: LedgerTime) {
        if let Used::Verdict(awaited) = &mut self.used {
            *awaited = Some((lot, until));
        }
    }

    /// How the probe of this lot went is known.
    pub(super) fn judged(&mut self, lot: LotId) {
        self.lots.retain(|open| open.id != lot);
        if let Used::Verdict(awaited) = &mut self.used {
            awaited.take_if(|(awaited, _)| *awaited == lot);
        }
    }

    /// What counts as used now.
    pub(super) fn used(&mut self, terms: &Terms, now: Moment) -> u64 {
        match &mut self.used {
            Used::Window(window) => window.count(terms, now.time),
            Used::Day(day) => day.count(now.utc),
            Used::Verdict(awaited) => u64::from(awaited.is_some_and(|(_, until)| now.time < until)),
        }
    }

    /// What is out in lots and may be used any moment.
    pub(super) fn open(&self) -> u64 {
        match self.used {
            // It is out until it is closed, drawn from or not.
            Used::Verdict(_) => self.lots.len() as u64,
            _ => self.lots.iter().map(OpenLot::open).sum(),
        }
    }

    /// Writes off what nobody reported in time: it counts as used at the last moment at which it can have been.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<OpenLot> {
        let over: Vec<_> = self.lots.extract_if(.., |lot| lot.expires <= now.time).collect();
        for lot in &over {
            self.charge(lot.open(), lot.expires, now.utc);
        }
        over
    }

    /// How long until something comes back.
    pub(super) fn returns_in(&self, terms: &Terms, now: Moment) -> Duration {
        let of_use = match &self.used {
            Used::Window(window) => window.next_return(terms).map(|at| at.since(now.time)),
            Used::Day(day) => Some(day.returns().since(now.utc)),
            Used::Verdict(_) => None,
        };
        // What others hold and do not need comes back when half of its life is over.
        let of_lots = (!self.lots.is_empty()).then_some(terms.life / 2);
        [of_use, of_lots].into_iter().flatten().min().unwrap_or_default()
    }
}
