//! A gateway in the small world: the rules of the holder, without its guesses of demand.

use std::hash::{Hash, Hasher};

use keyfleet_core::id::ReplicaId;
use keyfleet_core::quota::LotId;
use keyfleet_core::quota::message::{LeaseReply, LeaseRequest, LotReport, Want};

use super::{Flaw, LIFE, bucket};

#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    boot: ReplicaId,
    epoch: u64,
    number: u64,
    lots: Vec<Lot>,
    /// Closed lots and what was drawn from them, until an answer to a report of them is in.
    closed: Vec<(LotId, u64)>,
    outstanding: Option<Outstanding>,
}

#[derive(Debug, Clone)]
struct Lot {
    id: LotId,
    size: u64,
    left: u64,
    expires: u64,
}

#[derive(Debug, Clone)]
struct Outstanding {
    sent: u64,
    closed: Vec<LotId>,
}

impl Gateway {
    pub(crate) fn new(boot: ReplicaId) -> Self {
        Self { boot, epoch: 0, number: 0, lots: Vec::new(), closed: Vec::new(), outstanding: None }
    }

    /// What tells it from others, whenever it is.
    pub(crate) fn fingerprint(&self, now: u64, hasher: &mut impl Hasher) {
        (self.epoch, self.number, &self.closed).hash(hasher);
        for lot in &self.lots {
            (lot.id, lot.size, lot.left, lot.expires.saturating_sub(now)).hash(hasher);
        }
        if let Some(asked) = &self.outstanding {
            ((asked.sent + LIFE).saturating_sub(now), &asked.closed).hash(hasher);
        }
    }

    /// Forgets what could only be told, since nothing more is.
    pub(crate) fn say_no_more(&mut self, now: u64, flaw: Option<Flaw>) {
        self.closed.clear();
        self.lots.retain(|lot| lot.left > 0 && now < lot.expires);
        let is_late = |asked: &Outstanding| asked.sent + LIFE <= now && flaw != Some(Flaw::LifeFromReceipt);
        self.outstanding.take_if(|asked| is_late(asked));
        if let Some(asked) = &mut self.outstanding {
            asked.closed.clear();
        }
    }

    /// How many requests it made.
    pub(crate) fn asked(&self) -> u64 {
        self.number
    }

    /// One permit from the oldest lot that has one and is not over.
    pub(crate) fn draw(&mut self, now: u64) -> bool {
        let Some(lot) = self.lots.iter_mut().find(|lot| lot.left > 0 && now < lot.expires) else {
            return false;
        };
        lot.left -= 1;
        true
    }

    /// Gives up the outstanding request, if any, and makes the next. Lots that are spent or over are closed, and the
    /// others too with `close`; nothing if that would make no difference.
    pub(crate) fn ask(
        &mut self,
        need: u64,
        close: bool,
        now: u64,
        flaw: Option<Flaw>,
    ) -> Option<LeaseRequest> {
        let is_done = |lot: &Lot| lot.left == 0 || now >= lot.expires;
        let makes_a_difference = !close || !self.lots.iter().all(is_done);
        makes_a_difference.then(|| self.ask_closing(|_| close, need, now, flaw))
    }

    /// The same, with some of the others closed.
    pub(crate) fn ask_closing(
        &mut self,
        close: impl Fn(LotId) -> bool,
        need: u64,
        now: u64,
        flaw: Option<Flaw>,
    ) -> LeaseRequest {
        let out = self.lots.extract_if(.., |lot| lot.left == 0 || now >= lot.expires || close(lot.id));
        self.closed.extend(out.map(|lot| (lot.id, lot.size - lot.left)));
        self.number += 1;
        let report = |lot, drawn, closed| LotReport { bucket: bucket(), lot, drawn, given_back: 0, closed };
        let open = self.lots.iter().map(|lot| report(lot.id, lot.size - lot.left, false));
        let closed = self.closed.iter().map(|(lot, drawn)| report(*lot, *drawn, true));
        let reports = open.chain(closed).collect();
        let closed = self.closed.iter().map(|(lot, _)| *lot).collect();
        self.outstanding = Some(Outstanding { sent: now, closed });
        if flaw == Some(Flaw::ClosedForgotten) {
            self.closed.clear();
        }
        let wants = vec![Want { bucket: bucket(), need, ahead: 0, debt: 0 }];
        LeaseRequest { boot: self.boot.clone(), number: self.number, epoch: self.epoch, reports, wants }
    }

    /// Waits no longer. To the search it is all one: the answer never comes.
    pub(crate) fn give_up(&mut self) {
        self.outstanding = None;
    }

    /// Whether an answer would be accepted.
    pub(crate) fn waits_for(&self, reply: &LeaseReply) -> bool {
        self.outstanding.is_some() && reply.number == self.number && reply.epoch >= self.epoch
    }

    /// Takes an answer, if it is the one that is waited for.
    pub(crate) fn hear(&mut self, reply: &LeaseReply, now: u64, flaw: Option<Flaw>) -> bool {
        if !self.waits_for(reply) {
            return false;
        }
        let Some(asked) = self.outstanding.take() else { return false };
        self.epoch = reply.epoch;
        self.closed.retain(|(lot, _)| !asked.closed.contains(lot));
        let from = if flaw == Some(Flaw::LifeFromReceipt) { now } else { asked.sent };
        self.lots.extend(reply.grants.iter().map(|grant| Lot {
            id: grant.lot,
            size: grant.size,
            left: grant.size,
            expires: from + LIFE,
        }));
        true
    }
}
