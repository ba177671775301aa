//! Choosing a key for an attempt.
//!
//! A [`Lane`] is everything that may serve one model: tiers in order of priority, each a number of [`Seat`]s (a key
//! for that model). There are three ways to choose, all of which take no lock, allocate nothing, and cost the same
//! however large the pool is:
//!
//! - By turns (`ring.rs`): one step, however many keys are dead.
//! - For what a project owns (`homes.rs`): among that project's own seats, by health.
//! - For a session (`homes.rs`): the projects in an order of its own, the same in every replica.
//!
//! Only a refusal looks at every seat: another thread may be putting seats back just now, and the client is to be told
//! the soonest time of all. It costs no upstream call, and some ten nanoseconds per seat; the gateway keeps it for the
//! requests of the same millisecond, so that their number costs nothing.
//!
//! Time is an argument and the cursor starts at a given seed, so that every choice can be repeated.

mod homes;
mod ring;
mod seat;

use std::ops::Range;

pub use seat::{Dial, FULL_SHARE, Gates, Probes, Seat};

use crate::time::Mono;
use homes::Homes;
use ring::Ring;

/// Why no key can be had, the mildest reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blame {
    /// A key is left, but the model's breaker is open.
    Model,
    /// A key is left, but the way out is not.
    Egress,
    /// Every key that works is out of quota.
    Quota,
    /// The request has more tokens than any key may ever use in a minute; this is the highest limit.
    Large(u64),
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
    /// It stores what models are to use later: rather not at a project that has nothing left for them today.
    pub stores: bool,
    /// The size of the body, where that bounds its tokens: a small one may pass where a quota of tokens refused a
    /// larger one.
    pub bytes: Option<u64>,
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
    ring: Ring,
    homes: Homes,
}

impl Lane {
    /// Builds a lane from tiers in order of priority. `seed` is where the turns start.
    pub fn new(tiers: Vec<Vec<Seat>>, seed: u64) -> Self {
        let mut from = 0;
        let built = tiers.iter().filter(|seats| !seats.is_empty()).map(|seats| {
            let range = from..from + seats.len();
            from = range.end;
            Tier { seats: range, ring: Ring::new(seats.len(), seed), homes: Homes::new(seats, seed) }
        });
        Self { tiers: built.collect(), seats: tiers.into_iter().flatten().collect() }
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
                (Some(project), _) => tier.homes.of_project(seats, project, want, now),
                (None, Some(session)) => {
                    tier.ring.reopen(seats, generation, now);
                    let open = tier.ring.any_open();
                    let found = open.then(|| tier.homes.of_session(seats, session, want, now)).flatten();
                    found.or_else(|| tier.ring.nearest(seats, session, want, now))
                }
                (None, None) => {
                    tier.ring.reopen(seats, generation, now);
                    tier.ring.take_turns(seats, want, now)
                }
            };
            if let Some(found) = found {
                return Ok(self.pick(tier, found));
            }
        }
        self.last_resort(want, now).ok_or_else(|| self.refusal(want, now))
    }

    fn pick(&self, tier: &Tier, (index, probes): (usize, Probes)) -> Pick<'_> {
        let index = tier.seats.start + index;
        Pick { seat: &self.seats[index], index, probes }
    }

    /// Asks every seat before refusing: one may just be coming back, or let a small request pass.
    fn last_resort(&self, want: &Want<'_>, now: Mono) -> Option<Pick<'_>> {
        self.tiers.iter().find_map(|tier| {
            let seats = &self.seats[tier.seats.clone()];
            let admit = |index: usize| {
                let is_new = !want.tried.contains(&seats[index].key);
                let probes = is_new.then(|| seats[index].admit(want.bytes, now)).flatten()?;
                Some(self.pick(tier, (index, probes)))
            };
            match want.project {
                Some(project) => tier.homes.seats_of(project).iter().find_map(|index| admit(*index as usize)),
                None => tier.ring.places().find_map(admit),
            }
        })
    }

    fn refusal(&self, want: &Want<'_>, now: Mono) -> NoKey {
        let mut refusal = NoKey { blame: Blame::Tried, retry_at: Mono::FOREVER };
        let mut consider = |seat: &Seat| {
            if let Some(blame) = seat.blame(now) {
                refusal.blame = refusal.blame.min(blame);
                refusal.retry_at = refusal.retry_at.min(seat.returns_at());
            }
        };
        for tier in &self.tiers {
            let seats = &self.seats[tier.seats.clone()];
            match want.project {
                Some(project) => {
                    tier.homes.seats_of(project).iter().for_each(|index| consider(&seats[*index as usize]));
                }
                None => seats.iter().for_each(&mut consider),
            }
        }
        refusal
    }
}

/// A hash of a name that is the same in every replica and every run, for [`Seat::home`].
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)))
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
