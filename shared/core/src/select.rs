//! Choosing a key for an attempt.
//!
//! A [`Lane`] is everything that may serve one model: tiers in order of priority, each a ring of [`Seat`]s (a key
//! for that model). [`Lane::select`] walks the ring from a shared cursor, so that seats take turns exactly; a seat
//! with less than full weight is passed over in part of the rounds. Seats behind a closed gate drop out of a bit
//! set when they are first met and come back when their time has come, so a choice costs one step, plus one word
//! per 64 seats in the worst case, however many keys are dead. It takes no lock and allocates nothing.
//!
//! Time is an argument and the cursor starts at a given seed, so that every choice can be repeated.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

use crate::gate::{Gate, Passage};
use crate::health::Score;
use crate::time::Mono;

/// Full weight of a seat.
pub const FULL_SHARE: u32 = 0xFFFF;
/// A seat that comes back gets its full share only after this time.
const SLOW_START: Duration = Duration::from_secs(30);
/// How many seats may be passed over for their weight before the heaviest of them is taken after all.
const MAX_PASSED_OVER: u32 = 256;
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

/// The gates that one seat stands behind, in the order of [`Blame`].
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
    pub model: Arc<crate::gate::Breaker>,
    /// The breaker of the way out.
    pub egress: Arc<crate::gate::Breaker>,
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
    /// Share of traffic within the tier, [`FULL_SHARE`] for the heaviest.
    pub share: u32,
    /// The key's health.
    pub dial: Arc<Dial>,
    /// What may keep traffic away.
    pub gates: Gates,
}

impl Seat {
    /// When somebody may pass all gates again, be it as a probe.
    fn reopens_at(&self) -> Mono {
        self.gates.all().iter().map(|gate| gate.reopens_at()).max().unwrap_or_default()
    }

    /// When everybody may be expected to pass all gates again.
    fn returns_at(&self) -> Mono {
        self.gates.all().iter().map(|gate| gate.returns_at()).max().unwrap_or_default()
    }

    /// Passes all gates, taking the probes that are due, or none.
    pub fn admit(&self, now: Mono) -> Option<Probes> {
        let gates = self.gates.all();
        let mut due = 0_u8;
        for (bit, gate) in gates.iter().enumerate() {
            match gate.passage(now) {
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

    /// Gives probes back that ended without a verdict; begins a new generation for [`Lane::select`].
    pub fn return_probes(&self, probes: Probes, now: Mono) {
        for (bit, gate) in self.gates.all().iter().enumerate() {
            if probes.0 & (1 << bit) != 0 {
                gate.return_probe(now);
            }
        }
    }

    /// Whose fault it is that this seat is closed; `None` if it is open.
    fn blame(&self, now: Mono) -> Option<Blame> {
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

/// Why no key can be had, the mildest reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blame {
    /// A key is left, but the model's breaker is open.
    Model,
    /// A key is left, but the way out is not.
    Egress,
    /// Every key that works is out of quota.
    Quota,
    /// Every key is disabled, or blocked for its own failures.
    Keys,
    /// All have been tried, or there are none for this model.
    Tried,
}

/// A refusal that says when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoKey {
    /// Why.
    pub blame: Blame,
    /// The soonest moment at which a key comes back for everybody; [`Mono::FOREVER`] if none does by itself.
    pub retry_at: Mono,
}

/// What an attempt needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Want<'a> {
    /// Keys that this request has used already.
    pub tried: &'a [u32],
    /// Only this project will do: it owns what the request refers to.
    pub project: Option<u32>,
    /// A hash of the session that should stay on one project if it can.
    pub session: Option<u64>,
}

/// A choice.
#[derive(Debug)]
pub struct Pick<'a> {
    /// The seat.
    pub seat: &'a Seat,
    /// Its place among [`Lane::seats`], to find it again.
    pub index: usize,
    /// The probes that come with it.
    pub probes: Probes,
}

/// Everything that may serve one model.
#[derive(Debug)]
pub struct Lane {
    seats: Box<[Seat]>,
    tiers: Box<[Tier]>,
}

#[derive(Debug)]
struct Tier {
    /// Where its seats stand among the lane's.
    seats: Range<usize>,
    /// One bit per seat: set unless the seat was met closed.
    open: Box<[AtomicU64]>,
    /// Absolute position of the next seat to look at.
    cursor: AtomicU64,
    /// When the first closed seat may open again.
    reopens: AtomicU64,
    /// The generation of openings that the bit set knows of.
    generation: AtomicU64,
}

impl Lane {
    /// Builds a lane from tiers in order of priority. `seed` is where the rings start.
    pub fn new(tiers: Vec<Vec<Seat>>, seed: u64) -> Self {
        let mut from = 0;
        let ranges = tiers.iter().map(|seats| {
            let range = from..from + seats.len();
            from = range.end;
            range
        });
        let ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
        Self {
            tiers: ranges.into_iter().map(|range| Tier::new(range, seed)).collect(),
            seats: tiers.into_iter().flatten().collect(),
        }
    }

    /// All seats, tier by tier.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Chooses a seat. `generation` counts the gates and probes that became free before their time: when it
    /// changes, closed seats are looked at again.
    pub fn select(&self, want: &Want<'_>, generation: u64, now: Mono) -> Result<Pick<'_>, NoKey> {
        for tier in &self.tiers {
            let seats = &self.seats[tier.seats.clone()];
            let found = match (want.project, want.session) {
                (Some(project), _) => of_project(seats, project, want, now),
                (None, Some(session)) => of_session(seats, session, want, now),
                (None, None) => {
                    tier.reopen(seats, generation, now);
                    tier.take_turns(seats, want, now)
                }
            };
            if let Some((index, probes)) = found {
                return Ok(Pick { seat: &seats[index], index: tier.seats.start + index, probes });
            }
        }
        self.last_resort(want, now).ok_or_else(|| self.refusal(want, now))
    }

    /// Looks at every seat before refusing, which does as much anyway: another thread may be putting seats back just
    /// now, and the times at which seats were expected back may have changed.
    fn last_resort(&self, want: &Want<'_>, now: Mono) -> Option<Pick<'_>> {
        let usable = |seat: &Seat| {
            want.project.is_none_or(|project| project == seat.project) && !want.tried.contains(&seat.key)
        };
        let mut seats = self.seats.iter().enumerate().filter(|(_, seat)| usable(seat));
        seats.find_map(|(index, seat)| seat.admit(now).map(|probes| Pick { seat, index, probes }))
    }

    fn refusal(&self, want: &Want<'_>, now: Mono) -> NoKey {
        let mut refusal = NoKey { blame: Blame::Tried, retry_at: Mono::FOREVER };
        for seat in self.seats.iter().filter(|seat| want.project.is_none_or(|p| p == seat.project)) {
            if let Some(blame) = seat.blame(now) {
                refusal.blame = refusal.blame.min(blame);
                refusal.retry_at = refusal.retry_at.min(seat.returns_at());
            }
        }
        refusal
    }
}

impl Tier {
    fn new(seats: Range<usize>, seed: u64) -> Self {
        let words = seats.len().div_ceil(64);
        let start = seed % seats.len() as u64;
        Self {
            seats,
            open: (0..words).map(|_| AtomicU64::new(0)).collect(),
            cursor: AtomicU64::new(start),
            reopens: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// Puts the seats back whose time has come. One thread does it; the others go on with what they see.
    fn reopen(&self, seats: &[Seat], generation: u64, now: Mono) {
        let due = self.reopens.load(Acquire);
        let known = self.generation.load(Acquire);
        if due > now.as_ms() && known == generation {
            return;
        }
        if self.reopens.compare_exchange(due, u64::MAX, AcqRel, Acquire).is_err() {
            return;
        }
        self.generation.store(generation, Release);
        for (index, seat) in seats.iter().enumerate() {
            let at = seat.reopens_at();
            if at <= now {
                self.open[index / 64].fetch_or(1 << (index % 64), AcqRel);
            } else {
                self.reopens.fetch_min(at.as_ms(), AcqRel);
            }
        }
    }

    /// Takes a seat out until its time comes.
    fn drop_out(&self, seats: &[Seat], index: usize, now: Mono) {
        let bit = 1 << (index % 64);
        self.open[index / 64].fetch_and(!bit, AcqRel);
        let at = seats[index].reopens_at();
        if at <= now {
            self.open[index / 64].fetch_or(bit, AcqRel); // opened meanwhile
        } else {
            self.reopens.fetch_min(at.as_ms(), AcqRel);
        }
    }

    /// The next open seat at or after the cursor, which moves past it; with the round that it belongs to.
    fn advance(&self) -> Option<(usize, u64)> {
        let len = self.seats.len() as u64;
        loop {
            let cursor = self.cursor.load(Acquire);
            let from = usize::try_from(cursor % len).unwrap_or_default();
            let (index, wrapped) = match self.next_open(from, self.seats.len()) {
                Some(index) => (index, false),
                None => (self.next_open(0, from)?, true),
            };
            let ahead = if wrapped { self.seats.len() - from + index } else { index - from };
            let position = cursor + ahead as u64;
            if self.cursor.compare_exchange_weak(cursor, position + 1, AcqRel, Acquire).is_ok() {
                return Some((index, position / len));
            }
        }
    }

    fn next_open(&self, from: usize, to: usize) -> Option<usize> {
        let mut index = from;
        while index < to {
            let word = self.open[index / 64].load(Acquire) >> (index % 64);
            if word != 0 {
                let found = index + word.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    fn take_turns(&self, seats: &[Seat], want: &Want<'_>, now: Mono) -> Option<(usize, Probes)> {
        let mut passed_over: Option<(u32, usize)> = None;
        let mut passed = 0;
        for _ in 0..(seats.len() * 2).max(MAX_PASSED_OVER as usize) {
            let (index, round) = self.advance()?;
            let seat = &seats[index];
            if want.tried.contains(&seat.key) {
                continue;
            }
            // Golden-ratio steps spread the rounds in which a light seat sits out evenly; each seat has its own phase,
            // so that light ones do not all sit out together.
            let phase = round.wrapping_mul(40_503).wrapping_add((index as u64).wrapping_mul(25_173));
            let threshold = u32::try_from(phase & 0xFFFF).unwrap_or_default();
            let weight = seat.dial.weigh(seat.share, now);
            if weight < threshold {
                passed_over = passed_over.max(Some((weight, index)));
                passed += 1;
                if passed < MAX_PASSED_OVER {
                    continue;
                }
                break;
            }
            match seat.admit(now) {
                Some(probes) => return Some((index, probes)),
                None => self.drop_out(seats, index, now),
            }
        }
        // Never an empty pool by score alone.
        let (_, light) = passed_over?;
        seats[light].admit(now).map(|probes| (light, probes))
    }
}

fn of_project(seats: &[Seat], project: u32, want: &Want<'_>, now: Mono) -> Option<(usize, Probes)> {
    let usable = |seat: &Seat| seat.project == project && !want.tried.contains(&seat.key);
    let mut seats = seats.iter().enumerate().filter(|(_, seat)| usable(seat));
    seats.find_map(|(index, seat)| seat.admit(now).map(|probes| (index, probes)))
}

/// Rendezvous hashing: each session ranks the projects in an order of its own, and takes the first that is open.
fn of_session(seats: &[Seat], session: u64, want: &Want<'_>, now: Mono) -> Option<(usize, Probes)> {
    let open = |seat: &Seat| seat.reopens_at() <= now && !want.tried.contains(&seat.key);
    let rank = |seat: &Seat| mix(session ^ mix(u64::from(seat.project)));
    // Another thread may take the probe that a seat seemed to offer; then the next one in order is asked.
    for _ in 0..seats.len() {
        let open = seats.iter().enumerate().filter(|(_, seat)| open(seat));
        let (index, seat) = open.max_by_key(|(_, seat)| rank(seat))?;
        if let Some(probes) = seat.admit(now) {
            return Some((index, probes));
        }
    }
    None
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood 2014): spreads every input bit over the output.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
