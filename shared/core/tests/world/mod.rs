//! The simulated world of `sim.rs`.

mod coordinator;
mod gateway;
mod judge;
mod network;
mod probes;
mod setup;
mod store;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::quota::holder::Drawn;
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest};
use keyfleet_core::quota::{Bucket, LotId, Terms};
use keyfleet_core::time::{Mono, Utc};
use keyfleet_core::trust::TermId;

use coordinator::Coordinator;
use gateway::Gateway;
use judge::Judge;
pub(crate) use network::Faults;
use probes::Flight;
pub(crate) use setup::{Flaw, Setup, Shape};
use store::{Claimed, Store, Written};

pub(crate) const TERMS: Terms = Terms::MINUTE;
/// How far the clocks of coordinators and of the upstream may be from the truth; hence twice as far from each other.
const WALL_OFF: i64 = 25_000;

/// How a run went.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Admissions beyond a limit in any window or day, at worst, but for what low estimates excuse.
    pub(crate) worst_excess: u64,
    /// The most that low estimates excused.
    pub(crate) excused: u64,
    pub(crate) admitted: u64,
    pub(crate) takeovers: u64,
    /// How often a new leader did not believe its store.
    pub(crate) doubts: u64,
    /// What was not leapt over, in ms.
    pub(crate) simulated: u64,
}

pub(crate) enum Event {
    /// A client asks a gateway.
    Demand,
    /// A client's request comes back.
    Request(usize, gateway::Ask),
    /// A gateway's task wakes up.
    Poll(usize),
    /// A gateway sends what it drew.
    Send(usize, u64, gateway::Attempt),
    /// A gateway returns what it did not send.
    GiveBack(usize, u64, gateway::Attempt),
    /// The upstream gets it.
    Arrive(usize, u64, gateway::Attempt),
    /// A gateway learns how many tokens a request of that bucket and number really took.
    Settle(usize, u64, usize, u64, Drawn, u64),
    /// The answer to a probe of that bucket has ended.
    Landed(usize, u64, usize, Option<Drawn>),
    /// Leaders hear how the probe of a lot went.
    Judged(ReplicaId, usize, LotId),
    /// A gateway that left is replaced.
    Replace(usize, u64),
    Lease(LeaseRequest),
    Reply(usize, u64, LeaseReply),
    /// A coordinator's task wakes up.
    Lead(usize),
    Claim(usize, u64, store::Claim),
    Claimed(usize, u64, Claimed),
    Write(usize, u64, store::Write),
    Written(usize, u64, Written),
    Trouble,
    /// Everything sleeps until the next midnight is near.
    Leap,
}

struct Entry(u64, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A process: its clocks, and whether it runs.
#[derive(Debug)]
pub(crate) struct Process {
    /// Which start of it this is.
    pub(crate) start: u64,
    offset: u64,
    /// Parts per million by which its clock is fast.
    drift: i64,
    /// By how much its calendar is fast, in ms.
    wall: i64,
    paused_until: u64,
}

impl Process {
    fn new(rng: &mut fastrand::Rng) -> Self {
        Self {
            start: 1,
            offset: rng.u64(1_000..1_000_000),
            drift: rng.i64(-500..=500),
            wall: rng.i64(-WALL_OFF..=WALL_OFF),
            paused_until: 0,
        }
    }

    /// What its clock shows at a moment of real time.
    pub(crate) fn clock(&self, now: u64) -> Mono {
        let gained = signed(now) * self.drift / 1_000_000;
        Mono::from_ms((self.offset + now).saturating_add_signed(gained))
    }
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: u64,
    /// The calendar at the beginning.
    began: i64,
    /// By how much the upstream's calendar is fast, in ms.
    upstream_wall: i64,
    queue: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    /// Of the targets, one after the other, then of the clients.
    buckets: Vec<Bucket>,
    limits: Rc<HashMap<Bucket, u64>>,
    gateways: Vec<Gateway>,
    coordinators: Vec<Coordinator>,
    store: Store,
    /// The last term that was begun.
    witness: Option<TermId>,
    judges: Vec<Judge>,
    /// Of each bucket, the probes under way.
    flights: Vec<Vec<Flight>>,
    verdict: Verdict,
}

impl World {
    pub(crate) fn new(setup: Setup, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = setup.limits();
        let buckets: Vec<_> = limits.iter().map(|(bucket, _)| bucket.clone()).collect();
        let judge = |(bucket, limit): &(Bucket, u64)| {
            if bucket.is_daily() { Judge::of_days(*limit) } else { Judge::of_window(*limit) }
        };
        let gateways =
            (0..setup.gateways).map(|n| Gateway::new(n, &buckets, setup.faults.terms(), &mut rng)).collect();
        let coordinators = (0..setup.coordinators).map(|_| Coordinator::new(&mut rng)).collect();
        let mut world = Self {
            setup,
            now: 0,
            began: setup::begins(seed),
            upstream_wall: rng.i64(-WALL_OFF..=WALL_OFF),
            rng,
            queue: BinaryHeap::new(),
            sequence: 0,
            judges: limits.iter().map(judge).collect(),
            flights: limits.iter().map(|_| Vec::new()).collect(),
            limits: Rc::new(limits.into_iter().collect()),
            buckets,
            gateways,
            coordinators,
            store: Store::default(),
            witness: None,
            verdict: Verdict::default(),
        };
        for n in 0..setup.gateways {
            world.after(n as u64, Event::Poll(n));
        }
        for n in 0..setup.coordinators {
            world.after(100 * n as u64, Event::Lead(n));
        }
        world.after(1_000, Event::Demand);
        world.after(2_000, Event::Trouble);
        if setup.shape == Shape::Midnights {
            world.after(2 * setup::NEAR, Event::Leap);
        }
        world
    }

    /// Runs for so much time, leaps not counted.
    pub(crate) fn run(mut self, ms: u64) -> Verdict {
        while let Some(Reverse(Entry(at, _, event))) = self.queue.pop() {
            // What was due during a leap comes after it.
            let at = at.max(self.now);
            self.verdict.simulated += at - self.now;
            if self.verdict.simulated > ms {
                break;
            }
            self.now = at;
            self.handle(event);
        }
        self.verdict
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Entry(self.now + ms, self.sequence, event)));
    }

    fn handle(&mut self, event: Event) {
        // What is addressed to a process that stands still waits for it.
        let waits_for = match &event {
            Event::Poll(n)
            | Event::Send(n, ..)
            | Event::GiveBack(n, ..)
            | Event::Settle(n, ..)
            | Event::Landed(n, ..)
            | Event::Reply(n, ..) => self.gateways[*n].process.paused_until,
            Event::Lead(n) | Event::Claimed(n, ..) | Event::Written(n, ..) => {
                self.coordinators[*n].process.paused_until
            }
            _ => 0,
        };
        if waits_for > self.now {
            return self.after(waits_for - self.now, event);
        }
        match event {
            Event::Demand => self.demand(),
            Event::Request(n, ask) => self.request(n, ask),
            Event::Poll(n) => self.poll(n),
            Event::Send(n, start, attempt) => self.send(n, start, attempt),
            Event::GiveBack(n, start, attempt) => self.give_back(n, start, attempt),
            Event::Arrive(n, start, attempt) => self.arrive(n, start, attempt),
            Event::Settle(n, start, bucket, id, drawn, spent) => {
                self.settle(n, start, (bucket, id), drawn, spent);
            }
            Event::Landed(n, start, bucket, drawn) => self.land(n, start, bucket, drawn),
            Event::Judged(boot, bucket, lot) => self.judged(&boot, bucket, lot),
            Event::Replace(n, start) => self.replace(n, start),
            Event::Lease(request) => self.lease(&request),
            Event::Reply(n, start, reply) => self.reply(n, start, reply),
            Event::Lead(n) => self.lead(n),
            Event::Claim(n, start, claim) => self.claim(n, start, &claim),
            Event::Claimed(n, start, claimed) => self.claimed(n, start, claimed),
            Event::Write(n, start, write) => self.write(n, start, &write),
            Event::Written(n, start, written) => self.written(n, start, written),
            Event::Trouble => self.trouble(),
            Event::Leap => self.leap(),
        }
    }

    /// The upstream counts a request.
    fn arrive(&mut self, n: usize, start: u64, attempt: gateway::Attempt) {
        let utc_ms = self.began + signed(self.now) + self.upstream_wall;
        self.verdict.admitted += 1;
        for (bucket, drawn) in attempt.drawn {
            if self.buckets[bucket].is_probe() {
                self.take_off(n, start, bucket, Some(drawn), attempt.asked);
                continue;
            }
            let is_tokens = self.buckets[bucket].is_tokens();
            let size = if is_tokens { attempt.tokens } else { 1 };
            let under = size.saturating_sub(drawn.permits());
            let counted = self.judges[bucket].arrive(size, under, self.now, utc_ms);
            self.verdict.worst_excess = self.verdict.worst_excess.max(counted.over - counted.excused);
            self.verdict.excused = self.verdict.excused.max(counted.excused);
            if is_tokens {
                let answer_after = self.rng.u64(50..5_000);
                self.after(answer_after, Event::Settle(n, start, bucket, counted.id, drawn, size));
            }
        }
    }

    /// Requests that are on the wire are counted before.
    fn leap(&mut self) {
        let mut left = Vec::new();
        while let Some(Reverse(Entry(at, sequence, event))) = self.queue.pop() {
            match event {
                Event::Arrive(n, start, attempt) => {
                    self.now = at;
                    self.arrive(n, start, attempt);
                }
                event => left.push(Reverse(Entry(at, sequence, event))),
            }
        }
        self.queue.extend(left);
        let near = signed(setup::NEAR);
        let today = self.began + signed(self.now);
        self.now = u64::try_from(judge::next_midnight(today + near) - near - self.began).unwrap();
        self.after(2 * setup::NEAR, Event::Leap);
    }

    /// What the calendar shows somewhere.
    fn utc(&self, process: &Process) -> Utc {
        Utc::from_ms(self.began + signed(self.now) + process.wall)
    }
}

/// What the world asks of buckets.
trait Kind {
    fn is_tokens(&self) -> bool;
}

impl Kind for Bucket {
    fn is_tokens(&self) -> bool {
        matches!(self, Self::Quota(_, _, keyfleet_core::quota::Dimension::Tpm))
    }
}

pub(crate) fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap()
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap()
}
