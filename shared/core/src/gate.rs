//! What the hot path reads: a [`Gate`] per scope, closed until a moment, and a [`Breaker`], which is a gate that
//! failures in a row close. Both are atomics, so that every thread of a replica decides on the latest finding.
//!
//! A closed gate may offer a probe: one single request that is let through to see whether the trouble is over. A gate
//! offers it to one thread of its replica; which replica may take it is decided by the coordinator, who grants the right
//! to probe as a lot ([`Bucket::Probe`](crate::quota::Bucket::Probe)). Ways out are each replica's own affair.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

use crate::time::Mono;

/// A probe whose verdict never arrives is offered again after this time.
const PROBE_PATIENCE: Duration = Duration::from_mins(15);

/// Whether traffic may pass, and if not, until when.
#[derive(Debug)]
pub struct Gate {
    closed_until: AtomicU64,
    probe_at: AtomicU64,
    /// Bodies of fewer bytes than this may pass while it is closed.
    small: AtomicU64,
}

/// A request of a part of the tokens that were too many may well pass. Each refusal divides again, so that few are
/// needed to find what is left.
const SMALL: u64 = 4;

/// What a gate says at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Everybody may pass.
    Open,
    /// One request may try.
    ProbeDue,
    /// Nobody may pass.
    Closed,
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed_until: AtomicU64::new(0), probe_at: AtomicU64::new(u64::MAX), small: AtomicU64::new(0) }
    }
}

impl Gate {
    /// What it says at `now`.
    pub fn passage(&self, now: Mono) -> Passage {
        if self.closed_until.load(Acquire) <= now.as_ms() {
            Passage::Open
        } else if self.probe_at.load(Acquire) <= now.as_ms() {
            Passage::ProbeDue
        } else {
            Passage::Closed
        }
    }

    /// What it says at `now` to a request with a body of `bytes`, if that is known.
    pub fn passage_of(&self, bytes: Option<u64>, now: Mono) -> Passage {
        match self.passage(now) {
            Passage::Closed if bytes.is_some_and(|bytes| bytes < self.small.load(Acquire)) => Passage::Open,
            passage => passage,
        }
    }

    /// The earliest moment at which anybody may pass; in the past if it is open.
    pub fn reopens_at(&self) -> Mono {
        Mono::from_ms(self.closed_until.load(Acquire).min(self.probe_at.load(Acquire)))
    }

    /// When everybody may be expected to pass. A probe promises that only where nothing else ends the block: of a
    /// quota that returns at midnight one request may find out more, but the next thousand would not.
    pub fn returns_at(&self) -> Mono {
        match Mono::from_ms(self.closed_until.load(Acquire)) {
            Mono::FOREVER => Mono::from_ms(self.probe_at.load(Acquire)),
            until => until,
        }
    }

    /// Closes it until `until`; `probe` is when one request may try before that. A gate that is closed for longer
    /// stays closed as long.
    pub fn close(&self, until: Mono, probe: Option<Mono>) {
        self.small.store(0, Release);
        self.extend(until, probe);
    }

    /// Closes it until `until` because a quota of tokens refused a body of `bytes`, if that is known: much smaller
    /// ones may still pass, unless it is closed for another reason too.
    pub fn close_to_large(&self, bytes: Option<u64>, until: Mono, now: Mono) {
        let known = if self.passage(now) == Passage::Open {
            bytes.map_or(0, |_| u64::MAX)
        } else {
            self.small.load(Acquire)
        };
        self.small.store(bytes.map_or(known, |bytes| known.min(bytes / SMALL)), Release);
        self.extend(until, None);
    }

    fn extend(&self, until: Mono, probe: Option<Mono>) {
        if self.closed_until.fetch_max(until.as_ms(), AcqRel) <= until.as_ms() {
            self.probe_at.store(probe.unwrap_or(Mono::FOREVER).as_ms(), Release);
        }
    }

    /// Sets when the next single request may try.
    pub fn schedule_probe(&self, at: Mono) {
        self.probe_at.store(at.as_ms(), Release);
    }

    /// Opens it.
    pub fn open(&self) {
        // In this order a `close` at the same time leaves it open, or closed with its probe; never closed without one.
        self.probe_at.store(u64::MAX, Release);
        self.closed_until.store(0, Release);
    }

    /// Takes the probe that is due; true for one caller only.
    pub fn take_probe(&self, now: Mono) -> bool {
        let due = self.probe_at.load(Acquire);
        due <= now.as_ms()
            && self.probe_at.compare_exchange(due, now.plus(PROBE_PATIENCE).as_ms(), AcqRel, Acquire).is_ok()
    }

    /// Gives a probe back that ended without a verdict: the next request may take it.
    pub fn return_probe(&self, now: Mono) {
        self.probe_at.fetch_min(now.as_ms(), AcqRel);
    }
}

/// When a breaker opens and closes; see `circuit_breaker` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that stop traffic.
    pub failures: u32,
    /// Probes in a row that must succeed before traffic flows again.
    pub successes: u32,
    /// How long to wait before each probe.
    pub recovery: Duration,
}

/// A gate that failures in a row close, and successful probes open.
#[derive(Debug, Default)]
pub struct Breaker {
    /// What the hot path asks.
    pub gate: Gate,
    failures: AtomicU32,
    successes: AtomicU32,
}

impl Breaker {
    /// Counts a success; true if it let traffic flow again. While traffic is stopped, only that of a `probe` counts: what
    /// was under way before says nothing about now.
    pub fn succeeded(&self, policy: &BreakerPolicy, probe: bool, now: Mono) -> bool {
        // The gate decides, not the count: a failure at the same time may have closed it behind a count of zero.
        if self.gate.passage(now) == Passage::Open {
            if self.failures.load(Acquire) != 0 {
                self.failures.store(0, Release);
            }
            return false;
        }
        if !probe {
            return false;
        }
        if self.successes.fetch_add(1, AcqRel) + 1 < policy.successes {
            self.gate.return_probe(now);
            return false;
        }
        self.open();
        true
    }

    /// Lets traffic flow, and counts anew.
    pub fn open(&self) {
        self.failures.store(0, Release);
        self.successes.store(0, Release);
        self.gate.open();
    }

    /// Counts a failure; true if it stopped traffic that flowed.
    pub fn failed(&self, policy: &BreakerPolicy, now: Mono) -> bool {
        let failures = self.failures.fetch_add(1, AcqRel).saturating_add(1);
        if failures < policy.failures {
            return false;
        }
        self.successes.store(0, Release);
        let flowed = self.gate.passage(now) == Passage::Open;
        self.gate.close(Mono::FOREVER, Some(now.plus(policy.recovery)));
        flowed
    }

    /// Stops traffic at once, whatever was counted.
    pub fn trip(&self, policy: &BreakerPolicy, probe: Mono) {
        self.failures.fetch_max(policy.failures, AcqRel);
        self.successes.store(0, Release);
        self.gate.close(Mono::FOREVER, Some(probe));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy =
        BreakerPolicy { failures: 3, successes: 2, recovery: Duration::from_secs(2) };

    fn at(ms: u64) -> Mono {
        Mono::from_ms(ms)
    }

    #[test]
    fn a_success_that_crosses_the_last_failure_does_not_lock_the_breaker() {
        let breaker = Breaker::default();
        breaker.trip(&POLICY, at(10));
        breaker.failures.store(0, Release); // what the crossing success leaves behind
        assert!(breaker.gate.take_probe(at(10)));
        breaker.succeeded(&POLICY, true, at(11));
        assert!(breaker.succeeded(&POLICY, true, at(12)));
        assert_eq!(breaker.gate.passage(at(12)), Passage::Open);
    }

    #[test]
    fn a_quota_of_tokens_lets_small_bodies_pass() {
        let gate = Gate::default();
        let passes = |bytes, now| gate.passage_of(Some(bytes), at(now)) == Passage::Open;
        gate.close_to_large(Some(4_000), at(1_000), at(0));
        assert_eq!([999, 1_000].map(|bytes| passes(bytes, 1)), [true, false]);
        assert_eq!(gate.passage_of(None, at(1)), Passage::Closed, "of unknown size");
        gate.close_to_large(Some(800), at(1_000), at(1));
        gate.close_to_large(Some(4_000), at(1_000), at(1));
        assert_eq!([199, 200].map(|bytes| passes(bytes, 1)), [true, false], "the smallest counts");
        gate.close_to_large(None, at(1_500), at(1));
        assert_eq!([passes(199, 1_400), passes(200, 1_400)], [true, false], "another replica's word");
        gate.close_to_large(Some(40_000), at(3_000), at(2_000));
        assert!(passes(9_999, 2_500), "a new window is a new quota");
        gate.close(at(2_600), None);
        assert!(!passes(1, 2_500), "the number of requests is another matter");
        gate.close_to_large(Some(40_000), at(3_000), at(2_500));
        assert!(!passes(1, 2_500), "and remains so");
        gate.close_to_large(None, at(9_000), at(4_000));
        assert!(!passes(1, 4_500), "what was refused elsewhere is not known here");
    }

    #[test]
    fn a_gate_extends_and_offers_one_probe() {
        let gate = Gate::default();
        assert_eq!(gate.passage(at(0)), Passage::Open);
        gate.close(at(1_000), Some(at(500)));
        gate.close(at(900), None);
        assert_eq!(gate.passage(at(499)), Passage::Closed);
        assert_eq!(gate.passage(at(999)), Passage::ProbeDue, "a shorter block changes nothing");
        assert_eq!(
            (gate.reopens_at(), gate.returns_at()),
            (at(500), at(1_000)),
            "one request is not everybody"
        );
        assert!(gate.take_probe(at(600)));
        assert!(!gate.take_probe(at(600)), "one only");
        assert_eq!(gate.passage(at(601)), Passage::Closed);
        gate.return_probe(at(700));
        assert!(gate.take_probe(at(700)));
        assert_eq!(gate.passage(at(1_000)), Passage::Open);
    }

    #[test]
    fn a_breaker_opens_after_failures_in_a_row_and_probes_one_at_a_time() {
        let breaker = Breaker::default();
        breaker.failed(&POLICY, at(0));
        breaker.failed(&POLICY, at(0));
        breaker.succeeded(&POLICY, false, at(0));
        assert!(!breaker.failed(&POLICY, at(0)), "the success started the count anew");
        assert!(!breaker.failed(&POLICY, at(0)));
        assert!(breaker.failed(&POLICY, at(0)));
        assert_eq!(breaker.gate.passage(at(1_999)), Passage::Closed);
        assert_eq!(breaker.gate.returns_at(), at(2_000), "the probe decides");
        assert!(
            !breaker.succeeded(&POLICY, false, at(1_000)) && !breaker.succeeded(&POLICY, false, at(1_000))
        );
        assert_eq!(breaker.gate.passage(at(1_999)), Passage::Closed, "it was under way before");
        assert!(breaker.gate.take_probe(at(2_000)));
        assert!(!breaker.failed(&POLICY, at(2_100)), "it had been closed already");
        assert_eq!(breaker.gate.passage(at(4_099)), Passage::Closed, "the failed probe waits anew");
        assert!(breaker.gate.take_probe(at(4_100)));
        assert!(!breaker.succeeded(&POLICY, true, at(4_200)), "two successes are asked for");
        assert!(breaker.gate.take_probe(at(4_200)));
        assert!(breaker.succeeded(&POLICY, true, at(4_300)));
        assert_eq!(breaker.gate.passage(at(4_300)), Passage::Open);
    }
}
