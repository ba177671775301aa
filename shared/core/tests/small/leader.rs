//! Leaders and their store in the small world.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use keyfleet_core::quota::account::{Account, Moment};
use keyfleet_core::quota::grantor::Grantor;
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest};
use keyfleet_core::time::{LedgerTime, Utc};

use super::{Bounds, Flaw, Hashed, QUOTA, State, TERMS, TICK, bucket};

/// A charge at a full tick is counted so much later.
const SLOT: i64 = 250;

/// What is known of the one bucket.
#[derive(Debug)]
struct Book {
    account: Option<Account>,
    /// Its charges, and when their slots end.
    charges: Vec<(i64, u64)>,
    /// When its lots end, what is out in them, and the rest of them.
    lots: Vec<(i64, u64, String)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    epoch: u64,
    commit: u64,
    /// Ledger time, in ticks.
    time: u64,
    book: Rc<Book>,
    pub(crate) taken_over: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { epoch: 0, commit: 0, time: 0, book: Rc::new(Book::new(None)), taken_over: 0 }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Write {
    epoch: u64,
    follows: u64,
    time: u64,
    book: Rc<Book>,
}

/// A leader, for as long as it believes to be one.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    epoch: u64,
    commit: u64,
    /// How far ledger time is behind.
    behind: u64,
    grantor: Rc<Grantor>,
    /// All that the grantor knows, but for the lots that it has numbered.
    book: Rc<Book>,
    lots: u64,
    pending: Option<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    write: Rc<Write>,
    /// Nothing if it is sent already.
    reply: Option<Rc<Hashed<(usize, LeaseReply)>>>,
}

impl Book {
    fn new(account: Option<Account>) -> Self {
        let text = serde_json::to_value(&account).unwrap();
        let list = |part: &serde_json::Value| part.as_array().cloned().unwrap_or_default();
        let charge = |slot: &serde_json::Value| (slot[0].as_i64().unwrap(), slot[1].as_u64().unwrap());
        let lot = |lot: &serde_json::Value| {
            let mut lot = lot.clone();
            let ends = lot["expires"].take().as_i64().unwrap();
            let of = |name: &str| lot[name].as_u64().unwrap();
            (ends, of("size") + of("given_back") - of("drawn"), lot.to_string())
        };
        let charges = list(&text["used"]["window"]).iter().map(charge).collect();
        let lots = list(&text["lots"]).iter().map(lot).collect();
        Self { account, charges, lots }
    }

    /// What it means at a tick of ledger time, whatever the tick. The first thing that a leader does is to write off
    /// what ran out.
    fn fingerprint(&self, tick: u64, hasher: &mut impl Hasher) {
        let now = i64::try_from(tick * TICK).unwrap();
        let window = i64::try_from(TERMS.window.as_millis()).unwrap();
        let mut charges = self.charges.clone();
        for (ends, open, lot) in &self.lots {
            if *ends > now {
                (ends - now, lot).hash(hasher);
            } else if *open > 0 {
                charges.push((ends + SLOT, *open));
            }
        }
        charges.retain(|(end, _)| end + window > now);
        charges.sort_unstable();
        charges.dedup_by(|(later, more), (end, n)| {
            let same = later == end;
            *n += if same { *more } else { 0 };
            same
        });
        for (end, n) in charges {
            (end - now, n).hash(hasher);
        }
    }
}

impl Write {
    fn fingerprint(&self, store: &Store, hasher: &mut impl Hasher) {
        (self.epoch, self.follows).hash(hasher);
        self.book.fingerprint(self.time.max(store.time), hasher);
    }
}

impl Term {
    fn fingerprint(&self, now: u64, store: &Store, hasher: &mut impl Hasher) {
        (self.epoch, self.commit, self.lots).hash(hasher);
        self.book.fingerprint(now - self.behind, hasher);
        if let Some(pending) = &self.pending {
            pending.reply.hash(hasher);
            pending.write.fingerprint(store, hasher);
        }
    }
}

impl Store {
    pub(crate) fn would_take(&self, write: &Write, flaw: Option<Flaw>) -> bool {
        flaw == Some(Flaw::NoFence) || (self.epoch == write.epoch && self.commit == write.follows)
    }

    pub(crate) fn take(&mut self, write: &Write, flaw: Option<Flaw>) -> bool {
        let takes = self.would_take(write, flaw);
        if takes {
            self.commit = write.follows + 1;
            self.time = self.time.max(write.time);
            self.book = write.book.clone();
        }
        takes
    }
}

impl State {
    /// Of the leaders and the store. Which of two leaders is which makes no difference.
    pub(crate) fn fingerprint_of_leaders(&self, order: [usize; 2], hasher: &mut impl Hasher) {
        let store = &self.store;
        (store.epoch, store.commit, store.taken_over).hash(hasher);
        store.book.fingerprint(store.time, hasher);
        for leader in order {
            match &self.leaders[leader] {
                Some(term) => term.fingerprint(self.now, store, hasher),
                None => u64::MAX.hash(hasher),
            }
        }
        for write in &self.strays {
            write.fingerprint(store, hasher);
        }
    }

    /// A leader begins, or begins anew: it goes by what is stored.
    pub(crate) fn take_over(&mut self, leader: usize, flaw: Option<Flaw>) -> bool {
        if let Some(pending) = self.leaders[leader].take().and_then(|term| term.pending) {
            self.strays.push(pending.write);
        }
        let store = &mut self.store;
        store.taken_over += 1;
        store.epoch = if flaw == Some(Flaw::EpochsAlike) { 1 } else { store.epoch + 1 };
        let accounts = store.book.account.clone().map(|account| (bucket(), account));
        self.leaders[leader] = Some(Term {
            epoch: store.epoch,
            commit: store.commit,
            behind: self.now - store.time,
            grantor: Rc::new(Grantor::new(TERMS, accounts)),
            book: store.book.clone(),
            lots: 0,
            pending: None,
        });
        true
    }

    /// A leader that was replaced can make no difference, unless what it wrote is on its way: the store's epoch never
    /// falls, so the fence refuses whatever it writes from now on. And no request can come to one that is no more.
    pub(crate) fn tidy_leaders(&mut self, bounds: Bounds, flaw: Option<Flaw>) {
        let is_fenced = !matches!(flaw, Some(Flaw::NoFence | Flaw::EpochsAlike | Flaw::ReplyBeforePersist));
        for (leader, slot) in self.leaders.iter_mut().enumerate() {
            slot.take_if(|term| is_fenced && term.pending.is_none() && term.epoch < self.store.epoch);
            if slot.is_none() && self.store.taken_over == bounds.terms {
                self.requests.iter_mut().for_each(|asked| asked.came[leader] = bounds.copies);
            }
        }
        self.requests.retain(|asked| asked.came.iter().any(|came| *came < bounds.copies));
        if self.requests.is_empty()
            && self.gateways.iter().zip(bounds.requests).all(|(gateway, most)| gateway.asked() == most)
        {
            for slot in &mut self.leaders {
                slot.take_if(|term| term.pending.as_ref().is_none_or(|pending| pending.reply.is_none()));
            }
            if self.leaders.iter().all(Option::is_none) {
                self.strays.clear();
                self.store = Store { taken_over: bounds.terms, ..Store::default() };
            }
        }
    }

    pub(crate) fn serve(&mut self, leader: usize, place: usize, flaw: Option<Flaw>) -> bool {
        let Some(term) = &mut self.leaders[leader] else { return false };
        if term.pending.is_some() {
            return false;
        }
        let asked = &mut self.requests[place];
        asked.came[leader] += 1;
        let request = &asked.request.it;
        if term.epoch < request.epoch {
            self.leaders[leader] = None;
            return true;
        }
        let time = self.now - term.behind;
        let moment =
            Moment { epoch: term.epoch, time: LedgerTime::from_ms(time * TICK), utc: Utc::default() };
        let grantor = Rc::make_mut(&mut term.grantor);
        grantor.sweep(moment);
        if flaw == Some(Flaw::NoRequestNumbers) {
            let newest = LeaseRequest { number: u64::MAX, wants: Vec::new(), ..request.clone() };
            grantor.serve(&[newest], |_| Some(QUOTA), moment);
        }
        let mut reply = grantor.serve(std::slice::from_ref(request), |_| Some(QUOTA), moment).remove(0);
        // Who is asked for it is who gets it; refusals matter to nobody here.
        reply.refusals.clear();
        term.lots += reply.grants.len() as u64;
        if let Some((_, account)) = grantor.changes().pop() {
            term.book = Rc::new(Book::new(account));
        }
        let promised = grantor.usage(moment).into_iter().map(|(_, used, open)| used + open);
        self.promised = promised.max().filter(|promised| flaw.is_none() && *promised > QUOTA);
        let write = Write { epoch: term.epoch, follows: term.commit, time, book: term.book.clone() };
        let to = super::sender(&request.boot);
        let reply = Rc::new(Hashed::new((to, reply)));
        let early = flaw == Some(Flaw::ReplyBeforePersist);
        if early {
            self.replies.push(reply.clone());
        }
        term.pending = Some(Pending { write: Rc::new(write), reply: (!early).then_some(reply) });
        true
    }

    /// What a leader wrote gets to the store, which tells it so. A write that is refused ends the term; otherwise the
    /// leader answers: if it does so late, the answer comes late, which is another step.
    pub(crate) fn apply(&mut self, leader: usize, flaw: Option<Flaw>) -> bool {
        let Some(term) = &mut self.leaders[leader] else { return false };
        let Some(Pending { write, reply }) = term.pending.take() else { return false };
        // What is there already is taken for the first copy of this very write.
        let there = self.store.epoch == write.epoch && self.store.commit == write.follows + 1;
        if there || self.store.take(&write, flaw) {
            term.commit += 1;
            self.replies.extend(reply);
            self.strays.push(write);
        } else {
            self.leaders[leader] = None;
        }
        true
    }
}
