//! The seats of a tier by project, and the order in which a session asks the projects.
//!
//! Every project has one place in a sparse table, found from a hash of its name. A session looks at places in a
//! pseudo-random order of its own and takes the first project that can serve it (`DxHash`: Dong and Wang, 2021). So
//! each project gets its share of the sessions; when one closes, only its sessions move, and they spread over all
//! others; when it opens again, they come back; a project that joins takes from each of the others what it needs. The
//! cost does not grow with the pool: a few looks while most projects are open.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::seat::FULL_SHARE;
use super::{Probes, Seat, Want, mix};
use crate::gate::Passage;
use crate::time::Mono;

/// The smallest table: pools up to a quarter of it keep their places when they grow.
const MIN_PLACES: usize = 64;
/// How many places a session looks at. With one project in a hundred open it finds one of them nearly always.
const MAX_LOOKS: u64 = 1_024;
/// Odd and irregular, so that no two sessions look at the same places in the same order.
const STEP: u64 = 0xD134_2543_DE82_EF95;
/// Nothing is here.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Homes {
    /// Indices of seats, project by project.
    seats: Box<[u32]>,
    projects: Box<[Home]>,
    /// From the project's number to its place among `projects`.
    numbers: Box<[u32]>,
    /// The sparse table; its length is a power of two.
    places: Box<[u32]>,
}

/// One project.
#[derive(Debug)]
struct Home {
    /// Where its seats stand among `Homes::seats`.
    from: u32,
    to: u32,
    /// Its share of the sessions, [`FULL_SHARE`] for the heaviest.
    share: u32,
    /// Counts choices among its keys.
    turn: AtomicU64,
}

impl Homes {
    pub(super) fn new(seats: &[Seat], seed: u64) -> Self {
        let mut order: Vec<u32> = (0..number(seats.len())).collect();
        order.sort_by_key(|index| seats[*index as usize].project);
        let mut homes: Vec<Home> = Vec::new();
        let mut names = Vec::new();
        let last = seats.iter().map(|seat| seat.project).max().unwrap_or_default();
        let mut numbers = vec![NONE; last as usize + 1].into_boxed_slice();
        let mut shares: Vec<u64> = Vec::new();
        for own in order.chunk_by(|a, b| seats[*a as usize].project == seats[*b as usize].project) {
            let first = &seats[own[0] as usize];
            let from = homes.last().map_or(0, |home| home.to);
            numbers[first.project as usize] = number(homes.len());
            names.push((first.home, number(homes.len())));
            shares.push(own.iter().map(|index| u64::from(seats[*index as usize].share)).sum());
            homes.push(Home { from, to: from + number(own.len()), share: 0, turn: AtomicU64::new(seed) });
        }
        let heaviest = shares.iter().copied().max().unwrap_or_default().max(1);
        for (home, share) in homes.iter_mut().zip(shares) {
            home.share = u32::try_from(share * u64::from(FULL_SHARE) / heaviest).unwrap_or(FULL_SHARE);
        }
        // In an order that all replicas share, so that two that want one place settle it in the same way.
        names.sort_unstable();
        let mut places = vec![NONE; (homes.len() * 2).next_power_of_two().max(MIN_PLACES)];
        let len = places.len();
        for (name, home) in names {
            let wanted = place(mix(name), len);
            let mut free = (wanted..len).chain(0..wanted);
            if let Some(free) = free.find(|at| places[*at] == NONE) {
                places[free] = home;
            }
        }
        Self { seats: order.into(), projects: homes.into(), numbers, places: places.into() }
    }

    /// The seats of a project.
    pub(super) fn seats_of(&self, project: u32) -> &[u32] {
        self.home(project).map_or(&[], |home| self.seats_at(home))
    }

    /// One of the keys of this project, by turns, weighted by health.
    pub(super) fn of_project(
        &self,
        seats: &[Seat],
        project: u32,
        want: &Want<'_>,
        now: Mono,
    ) -> Option<(usize, Probes)> {
        self.pick(self.home(project)?, seats, want, now)
    }

    /// A key of the first project that can serve, in the session's own order.
    pub(super) fn of_session(
        &self,
        seats: &[Seat],
        session: u64,
        want: &Want<'_>,
        now: Mono,
    ) -> Option<(usize, Probes)> {
        if let [only] = &*self.projects {
            return self.pick(only, seats, want, now);
        }
        let mut second = None;
        for look in 0..MAX_LOOKS {
            let draw = mix(session.wrapping_add(look.wrapping_mul(STEP)));
            let Some(home) = self.projects.get(self.places[place(draw, self.places.len())] as usize) else {
                continue;
            };
            if (draw >> 48) > u64::from(home.share) {
                continue;
            }
            if want.stores && self.is_spent(home, seats, now) {
                second = second.or(Some(home));
                continue;
            }
            if let Some(found) = self.pick(home, seats, want, now) {
                return Some(found);
            }
        }
        self.pick(second?, seats, want, now)
    }

    fn home(&self, project: u32) -> Option<&Home> {
        self.projects.get(*self.numbers.get(project as usize)? as usize)
    }

    fn seats_at(&self, home: &Home) -> &[u32] {
        &self.seats[home.from as usize..home.to as usize]
    }

    fn is_spent(&self, home: &Home, seats: &[Seat], now: Mono) -> bool {
        let first = self.seats_at(home).first().map(|index| &seats[*index as usize]);
        first.is_some_and(|seat| seat.gates.spent.passage(now) != Passage::Open)
    }

    fn pick(&self, home: &Home, seats: &[Seat], want: &Want<'_>, now: Mono) -> Option<(usize, Probes)> {
        let own = self.seats_at(home).iter().map(|index| *index as usize);
        let own = own.filter(|index| {
            let seat = &seats[*index];
            seat.reopens_at() <= now && !want.tried.contains(&seat.key)
        });
        let weight = |index: usize| u64::from(seats[index].weight(now).max(1));
        let sum: u64 = own.clone().map(weight).sum();
        if sum == 0 {
            return None;
        }
        let admit = |index: usize| seats[index].admit(want.bytes, now).map(|probes| (index, probes));
        // Golden-ratio steps visit every part of the sum as often as its length says.
        let mut left = (sum * (home.turn.fetch_add(1, Relaxed).wrapping_mul(40_503) & 0xFFFF)) >> 16;
        for index in own.clone() {
            match left.checked_sub(weight(index)) {
                Some(rest) => left = rest,
                None => match admit(index) {
                    Some(found) => return Some(found),
                    None => break,
                },
            }
        }
        // Another thread may have taken the probe that a seat seemed to offer; then any other will do.
        own.clone().find_map(admit)
    }
}

fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(NONE)
}

/// A hash as a place in a table whose length is a power of two.
fn place(hash: u64, len: usize) -> usize {
    usize::try_from(hash & (len as u64 - 1)).unwrap_or_default()
}
