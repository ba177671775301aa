//! A gateway: draws from its purses, sends what it drew, and talks about leases.

use std::collections::HashSet;
use std::sync::Arc;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::quota::holder::{Drawn, Empty, Holder, Purse};
use keyfleet_core::quota::message::LeaseReply;
use keyfleet_core::quota::{Bucket, LotId, Terms};

use super::{Event, Flaw, Kind, Process, TERMS, World, ms};

/// How often a client comes back.
const MAX_TRIES: u32 = 20;
/// What requests are believed to take, on average.
const TOKENS: u64 = 100;
/// How long a gateway that leaves goes on with what it has drawn.
const DRAIN: u64 = 400;

pub(crate) struct Gateway {
    number: usize,
    pub(crate) process: Process,
    holder: Holder,
    purses: Vec<Arc<Purse>>,
    leaving: bool,
    /// Closed lots that were listed once, for the flaw that forgets them.
    listed: HashSet<LotId>,
    asked_at: u64,
    /// The number of the last request.
    asked: u64,
    epoch: u64,
    /// Of each bucket, when the request was sent that got the newest lot.
    granted: Vec<Option<u64>>,
    /// Arrivals whose estimate was too low, until they are charged; the first ones are in the last request.
    owing: Vec<(usize, u64)>,
    told: usize,
}

/// A client's request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    target: usize,
    client: usize,
    /// What it really takes, and what is believed.
    tokens: u64,
    estimate: u64,
    tries: u32,
}

/// Permits on their way to the socket, by bucket.
pub(crate) struct Attempt {
    pub(crate) drawn: Vec<(usize, Drawn)>,
    pub(crate) tokens: u64,
    drawn_at: u64,
    /// The number of the last request about leases, and when the one was sent that got the newest lot.
    pub(crate) asked: (u64, u64),
}

impl Gateway {
    pub(crate) fn new(number: usize, buckets: &[Bucket], terms: Terms, rng: &mut fastrand::Rng) -> Self {
        let process = Process::new(rng);
        let mut gateway = Self {
            number,
            holder: Holder::new(ReplicaId::new(""), terms, process.clock(0)),
            process,
            purses: Vec::new(),
            leaving: false,
            listed: HashSet::new(),
            asked_at: 0,
            asked: 0,
            epoch: 0,
            granted: Vec::new(),
            owing: Vec::new(),
            told: 0,
        };
        gateway.start(buckets, terms, 0);
        gateway
    }

    fn start(&mut self, buckets: &[Bucket], terms: Terms, now: u64) {
        let clock = self.process.clock(now);
        let boot = ReplicaId::new(format!("gw{}-{}", self.number, self.process.start));
        self.holder = Holder::new(boot, terms, clock);
        self.purses = buckets.iter().map(|bucket| self.holder.purse(bucket, clock)).collect();
        self.leaving = false;
        self.listed.clear();
        self.epoch = 0;
        self.granted = vec![None; buckets.len()];
        self.owing.clear();
        self.told = 0;
    }
}

impl World {
    /// Clients ask, mostly for one thing, sometimes for many in turn.
    pub(crate) fn demand(&mut self) {
        let setup = self.setup;
        let gap = -(1.0 - self.rng.f64()).ln() * 1_000.0 / setup.per_second();
        self.after(whole_ms(gap), Event::Demand);
        let burst = if self.rng.u32(0..20) == 0 { self.rng.u64(1..=setup.limit.min(20)) } else { 1 };
        for _ in 0..burst {
            // The load balancer prefers the first.
            let n = if self.rng.u32(0..3) == 0 { 0 } else { self.rng.usize(0..self.gateways.len()) };
            let estimate = self.rng.u64(1..2 * TOKENS);
            // The estimate is too low for some.
            let tokens = match self.rng.u32(0..6) {
                0 => estimate + self.rng.u64(0..TOKENS),
                1 | 2 => estimate,
                _ => self.rng.u64(0..=estimate),
            };
            let target = self.rng.usize(0..setup.targets);
            let client = self.rng.usize(0..2);
            self.request(n, Ask { target, client, tokens, estimate, tries: 0 });
        }
    }

    /// A request waits a little for a lease, and a client that is refused comes back when it is told to.
    pub(crate) fn request(&mut self, n: usize, ask: Ask) {
        let gateway = &self.gateways[n];
        if gateway.process.paused_until > self.now || gateway.leaving {
            return;
        }
        let clock = gateway.process.clock(self.now);
        let start = gateway.process.start;
        let drawn = match self.draw(n, ask) {
            Ok(drawn) => drawn,
            Err(empty) => {
                if self.setup.flaw == Some(Flaw::ProbesUnasked) && self.buckets[ask.target].is_probe() {
                    self.take_off(n, start, ask.target, None, (0, self.now));
                    return;
                }
                self.poll_now(n);
                let (n, wait) = match empty {
                    Empty::Cold => (n, 50),
                    Empty::Spent(at) => {
                        let someone = self.rng.usize(0..self.gateways.len());
                        let wait = ms(at.since(clock)).min(ms(TERMS.window));
                        (someone, wait + self.rng.u64(0..200))
                    }
                };
                if ask.tries < MAX_TRIES {
                    self.after(wait, Event::Request(n, Ask { tries: ask.tries + 1, ..ask }));
                }
                return;
            }
        };
        let gateway = &self.gateways[n];
        let asked = (gateway.asked, gateway.granted[ask.target].unwrap_or_default());
        let attempt = Attempt { drawn, tokens: ask.tokens, drawn_at: self.now, asked };
        let purses = &self.gateways[n].purses;
        let low = attempt.drawn.iter().any(|(bucket, _)| purses[*bucket].is_low());
        match self.rng.u32(0..20) {
            // Some give up before they send, some of them after their draw was reported.
            0 => self.give_back(n, start, attempt),
            1 => {
                let late = self.rng.u64(0..4_000);
                self.after(late, Event::GiveBack(n, start, attempt));
            }
            _ => {
                let connecting = self.rng.u64(0..self.setup.faults.connecting);
                self.after(connecting, Event::Send(n, start, attempt));
            }
        }
        if low {
            self.poll_now(n);
        }
    }

    /// Draws from every bucket in turn, or from none.
    fn draw(&mut self, n: usize, ask: Ask) -> Result<Vec<(usize, Drawn)>, Empty> {
        let dimensions = self.setup.dimensions().len();
        let quotas = ask.target * dimensions..(ask.target + 1) * dimensions;
        let client = (self.setup.clients() > 0).then(|| self.setup.targets * dimensions + ask.client);
        let gateway = &self.gateways[n];
        let clock = gateway.process.clock(self.now);
        let mut all: Vec<(usize, Drawn)> = Vec::new();
        for bucket in client.into_iter().chain(quotas) {
            let permits = if self.buckets[bucket].is_tokens() { ask.estimate } else { 1 };
            match gateway.purses[bucket].draw(permits, clock) {
                Ok(drawn) => all.push((bucket, drawn)),
                Err(empty) => {
                    give_all_back(all);
                    return Err(empty);
                }
            }
            if self.setup.flaw.is_none() {
                let sent = gateway.granted[bucket].unwrap();
                assert!(self.now < sent + ms(TERMS.life), "I4: a draw from a lot that is over");
            }
        }
        Ok(all)
    }

    /// The last look before the socket: a permit that is older than the jitter allows, or run out, is given up.
    pub(crate) fn send(&mut self, n: usize, start: u64, attempt: Attempt) {
        let gateway = &self.gateways[n];
        if gateway.process.start != start {
            return;
        }
        let clock = gateway.process.clock(self.now);
        let jitter = ms(TERMS.jitter);
        let spent = self.now - attempt.drawn_at;
        let is_live = spent < jitter && attempt.drawn.iter().all(|(_, drawn)| drawn.is_live(clock));
        if is_live || self.setup.flaw == Some(Flaw::NoLastLook) {
            let on_the_wire = self.rng.u64(0..=jitter.saturating_sub(spent));
            self.after(on_the_wire, Event::Arrive(n, start, attempt));
        } else {
            self.give_back(n, start, attempt);
        }
    }

    pub(crate) fn give_back(&mut self, n: usize, start: u64, attempt: Attempt) {
        if self.gateways[n].process.start == start {
            give_all_back(attempt.drawn);
        }
    }

    /// The answer says how many tokens an arrival really took.
    pub(crate) fn settle(&mut self, n: usize, start: u64, arrival: (usize, u64), drawn: Drawn, spent: u64) {
        let flaw = self.setup.flaw;
        let gateway = &mut self.gateways[n];
        if gateway.process.start != start {
            return;
        }
        let permits = drawn.permits();
        if spent > permits {
            gateway.owing.push(arrival);
        }
        let known = if flaw == Some(Flaw::DebtForgotten) { spent.min(permits) } else { spent };
        drawn.settle(known, &gateway.purses[arrival.0]);
    }

    pub(crate) fn poll(&mut self, n: usize) {
        self.after(self.setup.tick(), Event::Poll(n));
        self.poll_now(n);
    }

    fn poll_now(&mut self, n: usize) {
        let gateway = &mut self.gateways[n];
        let clock = gateway.process.clock(self.now);
        if gateway.leaving {
            return;
        }
        let Some(mut request) = gateway.holder.poll(clock) else { return };
        assert!(request.number > gateway.asked || gateway.asked_at == 0, "a number is used twice");
        gateway.asked_at = self.now;
        gateway.asked = request.number;
        gateway.told = gateway.owing.len();
        if self.setup.flaw == Some(Flaw::ClosedForgotten) {
            let listed = &mut gateway.listed;
            request.reports.retain(|report| !report.closed || listed.insert(report.lot));
        }
        if self.setup.flaw == Some(Flaw::ProbeNotListed) {
            for report in &mut request.reports {
                report.closed |= report.drawn > report.given_back;
            }
        }
        self.transmit(|| Event::Lease(request.clone()));
    }

    pub(crate) fn reply(&mut self, n: usize, start: u64, mut reply: LeaseReply) {
        let gateway = &mut self.gateways[n];
        if gateway.process.start != start {
            return;
        }
        let clock = gateway.process.clock(self.now);
        if self.setup.flaw == Some(Flaw::LifeFromReceipt) {
            for grant in &mut reply.grants {
                grant.life_ms += self.now - gateway.asked_at;
            }
        }
        if !gateway.holder.answered(&reply, clock) {
            return;
        }
        assert_eq!(reply.number, gateway.asked, "I4: an answer to an earlier request");
        assert!(reply.epoch >= gateway.epoch, "I5: an answer of an earlier leader");
        gateway.epoch = reply.epoch;
        for grant in &reply.grants {
            let bucket = self.buckets.iter().position(|bucket| *bucket == grant.bucket).unwrap();
            gateway.granted[bucket] = Some(gateway.asked_at);
        }
        for (bucket, id) in gateway.owing.drain(..std::mem::take(&mut gateway.told)) {
            self.judges[bucket].charged(id, self.now);
        }
    }

    pub(crate) fn restart_gateway(&mut self, n: usize) {
        self.crash(n);
        let terms = self.setup.faults.terms();
        let gateway = &mut self.gateways[n];
        gateway.process.start += 1;
        gateway.asked_at = 0;
        gateway.asked = 0;
        gateway.start(&self.buckets, terms, self.now);
    }

    /// A gateway returns what it has, sends what it drew, and is replaced.
    pub(crate) fn leave(&mut self, n: usize) {
        let gateway = &mut self.gateways[n];
        if gateway.process.paused_until > self.now || gateway.leaving {
            return;
        }
        gateway.leaving = true;
        let request = gateway.holder.leave(gateway.process.clock(self.now));
        gateway.asked = request.number;
        gateway.told = gateway.owing.len();
        let start = gateway.process.start;
        self.transmit(|| Event::Lease(request.clone()));
        self.after(DRAIN, Event::Replace(n, start));
    }

    pub(crate) fn replace(&mut self, n: usize, start: u64) {
        if self.gateways[n].process.start == start {
            self.restart_gateway(n);
        }
    }
}

fn give_all_back(all: Vec<(usize, Drawn)>) {
    for (_, drawn) in all {
        drawn.give_back();
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and a minute")]
fn whole_ms(gap: f64) -> u64 {
    gap.clamp(0.0, 60_000.0) as u64
}
