//! Probes on their way: I13 says that there is one at a time.

use keyfleet_core::id::ReplicaId;
use keyfleet_core::quota::holder::Drawn;
use keyfleet_core::quota::message::LeaseRequest;

use super::{Event, TERMS, World, ms};

/// A probe between its arrival upstream and the end of its answer.
pub(crate) struct Flight {
    gateway: usize,
    start: u64,
    /// The last request about leases before the probe was drawn.
    asked: u64,
    /// When a leader last heard of the probe at the earliest, and wrote it down. What it does not hear of for as long as
    /// a lot lives is over, as far as it can know.
    heard: u64,
}

/// A leader has heard a request, and is about to write that down.
pub(crate) struct Listed {
    gateway: usize,
    start: u64,
    number: u64,
    at: u64,
}

impl Listed {
    pub(crate) fn new(request: &LeaseRequest, now: u64) -> Self {
        let (gateway, start) = super::coordinator::sender(request);
        Self { gateway, start, number: request.number, at: now }
    }
}

impl World {
    /// A probe arrives upstream.
    pub(crate) fn take_off(
        &mut self,
        n: usize,
        start: u64,
        bucket: usize,
        drawn: Option<Drawn>,
        at: (u64, u64),
    ) {
        if self.gateways[n].process.start != start {
            return;
        }
        let (asked, heard) = at;
        let now = self.now;
        let others = self.flights[bucket].iter();
        let known = others.filter(|flight| now < flight.heard + ms(TERMS.life)).count() as u64;
        self.verdict.worst_excess = self.verdict.worst_excess.max(known);
        self.flights[bucket].push(Flight { gateway: n, start, asked, heard });
        let takes = self.rng.u64(50..25_000);
        self.after(takes, Event::Landed(n, start, bucket, drawn));
    }

    /// Its answer has ended, most often with a verdict.
    pub(crate) fn land(&mut self, n: usize, start: u64, bucket: usize, drawn: Option<Drawn>) {
        if self.gateways[n].process.start != start {
            return;
        }
        self.flights[bucket].retain(|flight| (flight.gateway, flight.start) != (n, start));
        let Some(drawn) = drawn else { return };
        if self.rng.u32(0..5) == 0 {
            return drawn.give_back();
        }
        let boot = ReplicaId::new(format!("gw{n}-{start}"));
        let lot = drawn.judged();
        self.transmit(|| Event::Judged(boot.clone(), bucket, lot));
    }

    /// The connections of a process end with it.
    pub(crate) fn crash(&mut self, n: usize) {
        for flights in &mut self.flights {
            flights.retain(|flight| flight.gateway != n);
        }
    }

    /// What leaders heard is written down. What they have written off does not come back.
    pub(crate) fn heard_of(&mut self, listed: &[Listed]) {
        for flight in self.flights.iter_mut().flatten() {
            let lost = flight.heard + ms(TERMS.life);
            let of_it = listed.iter().filter(|listed| {
                (listed.gateway, listed.start) == (flight.gateway, flight.start)
                    && listed.number > flight.asked
                    && listed.at < lost
            });
            flight.heard = of_it.map(|listed| listed.at).fold(flight.heard, u64::max);
        }
    }
}
