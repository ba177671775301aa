//! The small world of `model.rs`: its state, and what can happen in it.

mod gateway;
mod leader;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use keyfleet_core::id::{ClientName, ReplicaId};
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest};
use keyfleet_core::quota::{Bucket, Terms};

pub(crate) use gateway::Gateway;
use leader::{Store, Term, Write};

/// The quota of every window.
pub(crate) const QUOTA: u64 = 2;
/// What passes in a tick, in ms.
pub(crate) const TICK: u64 = 1_000;
/// Ticks that a lot lives.
pub(crate) const LIFE: u64 = 2;
/// Ticks of the upstream's window.
const WINDOW: usize = 3;

/// A charge counts for exactly three ticks: the grantor adds a slot of 250 ms to the window.
pub(crate) const TERMS: Terms = Terms {
    window: Duration::from_millis(2_750),
    jitter: Duration::ZERO,
    life: Duration::from_secs(2),
    drift_permille: 0,
    ahead: Duration::ZERO,
    timeout: Duration::ZERO,
};

/// How much can happen. Time has no bound: what lies so far back that it counts for nothing is forgotten, so that
/// nothing new comes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Requests per gateway.
    pub(crate) requests: [u64; 2],
    /// Terms of leaders, one after the other.
    pub(crate) terms: u64,
    /// How often a leader may get the same request.
    pub(crate) copies: u8,
}

impl Bounds {
    pub(crate) const SMALL: [Self; 3] = [
        Self { requests: [1, 1], terms: 2, copies: 1 },
        Self { requests: [3, 1], terms: 1, copies: 1 },
        Self { requests: [2, 1], terms: 1, copies: 2 },
    ];
    pub(crate) const LARGE: Self = Self { requests: [2, 1], terms: 2, copies: 1 };
}

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The store takes the writes of every leader.
    NoFence,
    /// All leaders have the same epoch.
    EpochsAlike,
    /// The answer is sent before the lot is stored.
    ReplyBeforePersist,
    /// Every lot that is not listed counts as never accepted.
    NoRequestNumbers,
    /// A closed lot is listed once only.
    ClosedForgotten,
    /// A lot's life is counted from when the answer came.
    LifeFromReceipt,
}

impl Flaw {
    pub(crate) const ALL: [Self; 6] = [
        Self::NoFence,
        Self::EpochsAlike,
        Self::ReplyBeforePersist,
        Self::NoRequestNumbers,
        Self::ClosedForgotten,
        Self::LifeFromReceipt,
    ];
}

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    Tick,
    /// A gateway asks, and closes what it has or not.
    Ask {
        gateway: usize,
        close: bool,
    },
    /// A gateway sends a request upstream.
    Draw(usize),
    /// An answer gets to its gateway.
    Hear(usize),
    /// A leader gets a request, and makes up its mind.
    Serve {
        leader: usize,
        place: usize,
    },
    /// What a leader wrote gets to the store.
    Apply(usize),
    /// A copy of an earlier write gets to the store.
    Stray(usize),
    TakeOver(usize),
}

/// A request that may still come, and how often it came to each leader.
#[derive(Debug, Clone, Hash)]
struct Asked {
    request: Rc<Hashed<LeaseRequest>>,
    came: [u8; 2],
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    now: u64,
    gateways: [Gateway; 2],
    leaders: [Option<Term>; 2],
    store: Store,
    requests: Vec<Asked>,
    /// Answers that may still come, and to which gateway.
    replies: Vec<Rc<Hashed<(usize, LeaseReply)>>>,
    /// Writes of which a copy may still come.
    strays: Vec<Rc<Write>>,
    /// What was sent upstream in each tick of the last window.
    admitted: [u64; WINDOW],
    /// Leaders promised more than there is.
    promised: Option<u64>,
    last: Option<Rc<Link>>,
}

/// How a state came about.
#[derive(Debug)]
struct Link {
    step: Step,
    before: Option<Rc<Link>>,
}

/// Something that cannot be hashed, with a text that stands for it.
#[derive(Debug, Clone)]
pub(crate) struct Hashed<T> {
    pub(crate) it: T,
    hash: u64,
}

impl<T: serde::Serialize> Hashed<T> {
    pub(crate) fn new(it: T) -> Self {
        let mut hasher = DefaultHasher::new();
        serde_json::to_string(&it).unwrap().hash(&mut hasher);
        Self { it, hash: hasher.finish() }
    }
}

impl<T> Hash for Hashed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// Which gateway a request came from.
fn sender(boot: &ReplicaId) -> usize {
    usize::from(boot.as_str() == "b")
}

pub(crate) fn bucket() -> Bucket {
    Bucket::Client(ClientName::new("c"))
}

impl State {
    /// The first leader leads already: before, nothing can happen but that messages wait.
    pub(crate) fn new() -> Self {
        let mut first = Self {
            now: 0,
            gateways: ["a", "b"].map(|boot| Gateway::new(ReplicaId::new(boot))),
            leaders: [None, None],
            store: Store::default(),
            requests: Vec::new(),
            replies: Vec::new(),
            strays: Vec::new(),
            admitted: [0; WINDOW],
            promised: None,
            last: None,
        };
        first.take_over(0, None);
        first
    }

    /// What tells it from other states: everything but how it came about, and when.
    pub(crate) fn fingerprint(&self) -> u64 {
        [[0, 1], [1, 0]].map(|order| self.fingerprint_in(order)).into_iter().min().unwrap_or_default()
    }

    fn fingerprint_in(&self, order: [usize; 2]) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.fingerprint_of_leaders(order, &mut hasher);
        for gateway in &self.gateways {
            gateway.fingerprint(self.now, &mut hasher);
        }
        (&self.replies, self.admitted).hash(&mut hasher);
        for asked in &self.requests {
            (&asked.request, order.map(|leader| asked.came[leader])).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// What is wrong with it.
    pub(crate) fn broken(&self) -> Option<String> {
        let admitted: u64 = self.admitted.iter().sum();
        if admitted > QUOTA {
            return Some(format!("{admitted} of {QUOTA} are admitted"));
        }
        self.promised.map(|promised| format!("{promised} of {QUOTA} are used or out in lots"))
    }

    pub(crate) fn path(&self) -> String {
        let mut steps = Vec::new();
        let mut link = self.last.as_deref();
        while let Some(Link { step, before }) = link {
            steps.push(step);
            link = before.as_deref();
        }
        let mut path = format!("{} steps:", steps.len());
        for step in steps.iter().rev() {
            write!(path, " {step:?}").unwrap();
        }
        path
    }

    /// Every state that one step leads to.
    pub(crate) fn successors(&self, bounds: Bounds, flaw: Option<Flaw>) -> Vec<Self> {
        self.steps(bounds)
            .into_iter()
            .filter_map(|step| {
                let mut next = self.clone();
                next.last = Some(Rc::new(Link { step, before: self.last.clone() }));
                next.take(step, flaw).then(|| next.tidy(bounds, flaw))
            })
            .collect()
    }

    /// Every step that may be possible.
    fn steps(&self, bounds: Bounds) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.push(Step::Tick);
        for (gateway, most) in bounds.requests.into_iter().enumerate() {
            steps.push(Step::Draw(gateway));
            if self.gateways[gateway].asked() < most {
                steps.extend([true, false].map(|close| Step::Ask { gateway, close }));
            }
        }
        steps.extend((0..self.replies.len()).map(Step::Hear));
        for leader in 0..2 {
            let may_come = |asked: &Asked| asked.came[leader] < bounds.copies;
            let places = (0..self.requests.len()).filter(|place| may_come(&self.requests[*place]));
            steps.extend(places.map(|place| Step::Serve { leader, place }));
            steps.push(Step::Apply(leader));
            if self.store.taken_over < bounds.terms {
                steps.push(Step::TakeOver(leader));
            }
        }
        steps.extend((0..self.strays.len()).map(Step::Stray));
        steps
    }

    /// Takes a step; false if it is not possible or changes nothing.
    fn take(&mut self, step: Step, flaw: Option<Flaw>) -> bool {
        match step {
            Step::Tick => {
                self.now += 1;
                self.admitted.rotate_left(1);
                self.admitted[WINDOW - 1] = 0;
                true
            }
            Step::Ask { gateway, close } => {
                let need = QUOTA - gateway as u64;
                let Some(request) = self.gateways[gateway].ask(need, close, self.now, flaw) else {
                    return false;
                };
                self.requests.push(Asked { request: Rc::new(Hashed::new(request)), came: [0; 2] });
                true
            }
            Step::Draw(gateway) => {
                let drawn = self.gateways[gateway].draw(self.now);
                self.admitted[WINDOW - 1] += u64::from(drawn);
                drawn
            }
            Step::Hear(place) => {
                let reply = self.replies.remove(place);
                self.gateways[reply.it.0].hear(&reply.it.1, self.now, flaw)
            }
            Step::Serve { leader, place } => self.serve(leader, place, flaw),
            Step::Apply(leader) => self.apply(leader, flaw),
            Step::Stray(place) => {
                let write = self.strays.remove(place);
                self.store.take(&write, flaw)
            }
            Step::TakeOver(leader) => self.take_over(leader, flaw),
        }
    }

    /// Forgets what can have no effect any more, so that states which differ in nothing else are one.
    fn tidy(mut self, bounds: Bounds, flaw: Option<Flaw>) -> Self {
        for (gateway, most) in self.gateways.iter_mut().zip(bounds.requests) {
            if gateway.asked() == most {
                gateway.say_no_more(self.now, flaw);
            }
        }
        let gateways = &self.gateways;
        self.replies.retain(|reply| gateways[reply.it.0].waits_for(&reply.it.1));
        self.replies.sort_by_key(|reply| reply.hash);
        self.replies.dedup_by_key(|reply| reply.hash);
        let store = &self.store;
        self.strays.retain(|write| store.would_take(write, flaw));
        self.strays.truncate(2);
        self.tidy_leaders(bounds, flaw);
        self.requests.sort_by_key(|asked| asked.request.hash);
        self
    }
}
