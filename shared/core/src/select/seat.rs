//! A key for one model: what may keep traffic away from it, and how much of the traffic it gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

use super::Blame;
use crate::gate::{Breaker, Gate, Passage};
use crate::health::Score;
use crate::time::Mono;

/// Full weight of a seat.
pub const FULL_SHARE: u32 = 0xFFFF;
/// A seat that comes back gets its full share only after this time.
const SLOW_START: Duration = Duration::from_secs(30);
/// What is left of the weight of a key with the poorest score: enough to see whether it does better.
const LEAST_SHARE: u32 = 64;

/// What the health of one key does to its weight; shared by all its seats.
#[derive(Debug)]
pub struct Dial {
    score: AtomicU8,
    recovered_at: AtomicU64,
}

impl Default for Dial {
    fn default() -> Self {
        Self { score: AtomicU8::new(Score::PERFECT.tenths()), recovered_at: AtomicU64::new(0) }
    }
}

impl Dial {
    /// The score as last set.
    pub fn score(&self) -> Score {
        Score::from_tenths(self.score.load(Acquire))
    }

    /// Sets the score.
    pub fn set_score(&self, score: Score) {
        self.score.store(score.tenths(), Release);
    }

    /// Begins the slow start.
    pub fn recovered(&self, now: Mono) {
        self.recovered_at.store(now.as_ms(), Release);
    }

    /// `share` as health and slow start leave it.
    fn weigh(&self, share: u32, now: Mono) -> u32 {
        let scored = (share * u32::from(self.score.load(Acquire)) / 10).max(share / LEAST_SHARE);
        let recovered = self.recovered_at.load(Acquire);
        let full = u64::try_from(SLOW_START.as_millis()).unwrap_or(u64::MAX);
        let elapsed = now.as_ms().saturating_sub(recovered);
        if recovered == 0 || elapsed >= full {
            return scored;
        }
        let ramped = u64::from(scored) * elapsed.max(full / 10) / full;
        u32::try_from(ramped).unwrap_or(scored)
    }
}

/// The gates that one seat stands behind.
#[derive(Debug)]
pub struct Gates {
    /// The credential.
    pub key: Arc<Gate>,
    /// The credential for this model.
    pub key_model: Gate,
    /// The project's quota for this model.
    pub bucket: Arc<Gate>,
    /// The project.
    pub project: Arc<Gate>,
    /// The model's breaker.
    pub model: Arc<Breaker>,
    /// The breaker of the way out.
    pub egress: Arc<Breaker>,
    /// Keeps no request away: closed while a day quota of the project is used up, for any model. What is stored there
    /// now could not be used by that model before tomorrow.
    pub spent: Arc<Gate>,
}

const GATES: usize = 6;

impl Gates {
    fn all(&self) -> [&Gate; GATES] {
        [&self.key, &self.key_model, &self.bucket, &self.project, &self.model.gate, &self.egress.gate]
    }
}

/// The probes that an admitted attempt carries: one bit per gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probes(u8);

impl Probes {
    /// The bit of each gate, in the order of [`Gates`].
    pub const KEY: Self = Self(1);
    /// The credential for this model.
    pub const KEY_MODEL: Self = Self(1 << 1);
    /// The project's quota for this model.
    pub const BUCKET: Self = Self(1 << 2);
    /// The project.
    pub const PROJECT: Self = Self(1 << 3);
    /// The model's breaker.
    pub const MODEL: Self = Self(1 << 4);
    /// The breaker of the way out.
    pub const EGRESS: Self = Self(1 << 5);

    /// True if the attempt is a probe of any gate.
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    /// True if it is a probe of this gate.
    pub const fn has(self, gate: Self) -> bool {
        self.0 & gate.0 != 0
    }

    /// These without that.
    #[must_use]
    pub const fn without(self, gate: Self) -> Self {
        Self(self.0 & !gate.0)
    }
}

/// A key for one model.
#[derive(Debug)]
pub struct Seat {
    /// The key's place in the pool's table.
    pub key: u32,
    /// The project's place in the pool's table.
    pub project: u32,
    /// A hash of the project's name, by which sessions find it in every replica and after every change of the pool.
    pub home: u64,
    /// Share of traffic within the tier, [`FULL_SHARE`] for the heaviest.
    pub share: u32,
    /// The key's health.
    pub dial: Arc<Dial>,
    /// What may keep traffic away.
    pub gates: Gates,
}

impl Seat {
    /// Its share as health and slow start leave it.
    pub(super) fn weight(&self, now: Mono) -> u32 {
        self.dial.weigh(self.share, now)
    }

    /// When somebody may pass all gates again, be it as a probe.
    pub(super) fn reopens_at(&self) -> Mono {
        self.gates.all().iter().map(|gate| gate.reopens_at()).max().unwrap_or_default()
    }

    /// When everybody may be expected to pass all gates again.
    pub(super) fn returns_at(&self) -> Mono {
        self.gates.all().iter().map(|gate| gate.returns_at()).max().unwrap_or_default()
    }

    /// Passes all gates with a body of `bytes`, if that is known, taking the probes that are due, or none.
    pub fn admit(&self, bytes: Option<u64>, now: Mono) -> Option<Probes> {
        let gates = self.gates.all();
        let mut due = 0_u8;
        for (bit, gate) in gates.iter().enumerate() {
            match gate.passage_of(bytes, now) {
                Passage::Open => {}
                Passage::ProbeDue => due |= 1 << bit,
                Passage::Closed => return None,
            }
        }
        let mut taken = 0_u8;
        for (bit, gate) in gates.iter().enumerate().filter(|(bit, _)| due & (1 << bit) != 0) {
            if !gate.take_probe(now) {
                self.return_probes(Probes(taken), now);
                return None;
            }
            taken |= 1 << bit;
        }
        Some(Probes(taken))
    }

    /// Gives probes back that ended without a verdict; begins a new generation for [`super::Lane::select`].
    pub fn return_probes(&self, probes: Probes, now: Mono) {
        for (bit, gate) in self.gates.all().iter().enumerate() {
            if probes.0 & (1 << bit) != 0 {
                gate.return_probe(now);
            }
        }
    }

    /// Puts the next probe of one gate off until then.
    pub fn put_probe_off(&self, probe: Probes, at: Mono) {
        for (bit, gate) in self.gates.all().iter().enumerate() {
            if probe.0 & (1 << bit) != 0 {
                gate.schedule_probe(at);
            }
        }
    }

    /// Whose fault it is that this seat is closed; `None` if it is open.
    pub(super) fn blame(&self, now: Mono) -> Option<Blame> {
        let closed = |gate: &Gate| gate.passage(now) == Passage::Closed;
        let gates = &self.gates;
        if closed(&gates.bucket) && !closed(&gates.key) && !closed(&gates.project) {
            Some(Blame::Quota)
        } else if closed(&gates.key) || closed(&gates.key_model) || closed(&gates.project) {
            Some(Blame::Keys)
        } else if closed(&gates.model.gate) {
            Some(Blame::Model)
        } else if closed(&gates.egress.gate) {
            Some(Blame::Egress)
        } else {
            None
        }
    }
}
