//! A gateway's side of quota: lots in hand, and the conversation that gets the next ones.
//!
//! A [`Purse`] is what requests draw from: one per bucket, shared, without a lock. The [`Holder`] is owned by one
//! task, which sends what [`Holder::poll`] says and hands the answers to [`Holder::answered`].

mod tracked;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::tracked::Tracked;
use super::lot::{Permits, Round, Tally};
use super::message::{LeaseReply, LeaseRequest, LotReport, Want};
use super::{Bucket, LotId, Terms};
use crate::id::ReplicaId;
use crate::time::Mono;

/// How often a holder reports what it used, without being asked for more.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// No request is made sooner than this after the last one if nobody waits for what it asks for: many buckets that get
/// low share one.
const REFILL_EVERY: Duration = Duration::from_millis(250);
/// What a clock may be off by beyond its drift.
const SLACK: Duration = Duration::from_millis(5);
/// A purse that nobody drew from for so long is dropped: nothing is left of what was known of the demand, and clients can
/// invent models faster than that.
const IDLE: Duration = Duration::from_mins(2);
/// The longest request, in bytes. All lots have to be listed, so what might not fit is not asked for; NATS takes a
/// million bytes.
const LONGEST: usize = 768 * 1_024;
/// What a lot or a wish takes of a request at most, beside its names.
const ENTRY: usize = 200;

/// A lot in hand.
#[derive(Debug)]
pub struct Lot {
    id: LotId,
    permits: Permits,
    born: Mono,
    expires: Mono,
    /// The request that it was for has ended with a verdict; probes only.
    over: AtomicBool,
}

impl Lot {
    /// Whether an attempt may still begin that drew from it.
    pub fn is_live(&self, now: Mono) -> bool {
        now < self.expires
    }
}

/// What requests draw from.
#[derive(Debug)]
pub struct Purse {
    bucket: Bucket,
    /// The oldest first.
    lots: ArcSwap<Vec<Arc<Lot>>>,
    /// Everything that was ever drawn.
    drawn: AtomicU64,
    /// What was not there, since the last request.
    unmet: AtomicU64,
    /// The largest single draw of these.
    largest: AtomicU64,
    /// The grantor has nothing until then.
    dry_until: AtomicU64,
    /// What was spent beyond what was drawn, not told yet.
    debt: AtomicU64,
    /// The holder should be polled.
    low: AtomicBool,
    /// Once so much was ever drawn, what is in hand should be refilled,
    refill_at: AtomicU64,
    /// but not before this moment.
    refill_from: AtomicU64,
}

/// Permits that were drawn. Nothing happens on drop: they are spent unless given back.
#[derive(Debug)]
pub struct Drawn {
    lot: Arc<Lot>,
    round: Round,
    n: u64,
}

/// Why nothing was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// Nobody has asked for it yet, or the answer is on its way: it may be worth a short wait.
    Cold,
    /// The grantor has nothing before this moment.
    Spent(Mono),
}

impl Purse {
    fn new(bucket: Bucket) -> Self {
        Self {
            bucket,
            lots: ArcSwap::default(),
            drawn: AtomicU64::new(0),
            unmet: AtomicU64::new(0),
            largest: AtomicU64::new(0),
            dry_until: AtomicU64::new(0),
            debt: AtomicU64::new(0),
            low: AtomicBool::new(false),
            refill_at: AtomicU64::new(u64::MAX),
            refill_from: AtomicU64::new(0),
        }
    }

    /// The bucket that it holds quota of.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Draws `n` permits of one lot, the oldest that has them.
    pub fn draw(&self, n: u64, now: Mono) -> Result<Drawn, Empty> {
        let lots = self.lots.load();
        for lot in lots.iter() {
            if lot.is_live(now)
                && let Some(round) = lot.permits.draw(n)
            {
                let drawn = self.drawn.fetch_add(n, AcqRel).saturating_add(n);
                if drawn >= self.refill_at.load(Acquire) && now.as_ms() >= self.refill_from.load(Acquire) {
                    self.low.store(true, Release);
                }
                return Ok(Drawn { lot: lot.clone(), round, n });
            }
        }
        let dry = Mono::from_ms(self.dry_until.load(Acquire));
        if now < dry {
            return Err(Empty::Spent(dry));
        }
        self.unmet.fetch_add(n, AcqRel);
        self.largest.fetch_max(n, AcqRel);
        self.low.store(true, Release);
        Err(Empty::Cold)
    }

    /// Whether the holder should be polled at once.
    pub fn is_low(&self) -> bool {
        self.low.load(Acquire)
    }

    /// What can be drawn now.
    pub fn in_hand(&self, now: Mono) -> u64 {
        self.lots.load().iter().filter(|lot| lot.is_live(now)).map(|lot| lot.permits.left()).sum()
    }

    /// When the grantor will have something again, if it has nothing now.
    pub fn dry_until(&self, now: Mono) -> Option<Mono> {
        let dry = Mono::from_ms(self.dry_until.load(Acquire));
        (dry > now && self.in_hand(now) == 0).then_some(dry)
    }

    /// The grantor may have something again, whatever it said before.
    pub fn try_again(&self) {
        self.dry_until.store(0, Release);
    }

    /// More was spent than was drawn: it is charged with the next report.
    pub fn owe(&self, n: u64) {
        self.debt.fetch_add(n, AcqRel);
    }
}

impl Drawn {
    /// Whether the attempt may still begin.
    pub fn is_live(&self, now: Mono) -> bool {
        self.lot.is_live(now)
    }

    /// How many permits.
    pub fn permits(&self) -> u64 {
        self.n
    }

    /// Nothing was sent: the permits are as good as new.
    pub fn give_back(self) {
        self.lot.permits.give_back(self.n, self.round);
    }

    /// The probe has ended, and how it went is told elsewhere, by the name of its lot. That can be closed.
    pub fn judged(self) -> LotId {
        self.lot.over.store(true, Release);
        self.lot.id
    }

    /// Fewer than drawn were spent.
    pub fn settle(self, spent: u64, purse: &Purse) {
        if spent < self.n {
            self.lot.permits.give_back(self.n - spent, self.round);
        } else {
            purse.owe(spent - self.n);
        }
    }
}

#[derive(Debug)]
struct Outstanding {
    number: u64,
    sent: Mono,
    closed: HashSet<LotId>,
    /// What each bucket was asked for, and what was owed to it.
    wants: HashMap<Bucket, (u64, u64)>,
}

/// One gateway's conversation about quota.
#[derive(Debug)]
pub struct Holder {
    boot: ReplicaId,
    terms: Terms,
    epoch: u64,
    number: u64,
    purses: HashMap<Bucket, Tracked>,
    /// Closed lots, until an answer to a report that listed them is in.
    closed: Vec<LotReport>,
    outstanding: Option<Outstanding>,
    /// The last request had no answer.
    unanswered: bool,
    last_sent: Mono,
    looked_at: Mono,
}

impl Holder {
    /// A holder that has nothing; `boot` names one start of one process.
    pub fn new(boot: ReplicaId, terms: Terms, now: Mono) -> Self {
        Self {
            boot,
            terms,
            epoch: 0,
            number: 0,
            purses: HashMap::new(),
            closed: Vec::new(),
            outstanding: None,
            unanswered: false,
            last_sent: Mono::default(),
            looked_at: now,
        }
    }

    /// The purse of a bucket.
    pub fn purse(&mut self, bucket: &Bucket, now: Mono) -> Arc<Purse> {
        if let Some(tracked) = self.purses.get(bucket) {
            return tracked.purse.clone();
        }
        let purse = Arc::new(Purse::new(bucket.clone()));
        self.purses.insert(bucket.clone(), Tracked::new(purse.clone(), now));
        purse
    }

    /// Whether it has a purse for this bucket.
    pub(super) fn has(&self, bucket: &Bucket) -> bool {
        self.purses.contains_key(bucket)
    }

    /// Drops the purse of a bucket, if it has one.
    pub(super) fn forget(&mut self, bucket: &Bucket) {
        self.purses.remove(bucket);
    }

    /// How many buckets it has purses for.
    pub(super) fn buckets(&self) -> usize {
        self.purses.len()
    }

    /// A leader of this epoch was heard of: answers of earlier ones are worth nothing.
    pub fn saw_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// The request to send now, if any. One is outstanding at a time; one that is not answered in time is given up.
    pub fn poll(&mut self, now: Mono) -> Option<LeaseRequest> {
        if let Some(outstanding) = &self.outstanding
            && now.since(outstanding.sent) < self.terms.timeout
        {
            return None;
        }
        self.give_up();
        let urgent = self.purses.values().any(|tracked| {
            let purse = &tracked.purse;
            purse.is_low() && purse.dry_until(now).is_none()
        });
        if !urgent && now.since(self.last_sent) < REPORT_EVERY {
            return None;
        }
        self.compose(now)
    }

    /// When [`Holder::poll`] has something to say if nobody draws.
    pub fn next_poll(&self) -> Mono {
        match &self.outstanding {
            Some(outstanding) => outstanding.sent.plus(self.terms.timeout),
            None => self.last_sent.plus(REPORT_EVERY),
        }
    }

    /// No answer will come to the outstanding request: what was wanted is wanted still, and what was owed is owed.
    pub fn give_up(&mut self) {
        let Some(outstanding) = self.outstanding.take() else { return };
        self.unanswered = true;
        for (bucket, (need, debt)) in outstanding.wants {
            if let Some(tracked) = self.purses.get_mut(&bucket) {
                tracked.missed = need;
                tracked.purse.low.store(true, Release);
                // It may have been charged; twice is better than never.
                tracked.purse.owe(debt);
            }
        }
    }

    /// Takes an answer, if it is the one that is waited for. True if it was.
    pub fn answered(&mut self, reply: &LeaseReply, now: Mono) -> bool {
        let expected = self.outstanding.as_ref().is_some_and(|asked| asked.number == reply.number);
        if !expected || reply.epoch < self.epoch {
            return false;
        }
        let Some(asked) = self.outstanding.take() else { return false };
        self.epoch = reply.epoch;
        self.unanswered = false;
        self.closed.retain(|report| !asked.closed.contains(&report.lot));
        for refusal in &reply.refusals {
            if let Some(tracked) = self.purses.get(&refusal.bucket) {
                let dry = now.plus(Duration::from_millis(refusal.retry_ms));
                tracked.purse.dry_until.store(dry.as_ms(), Release);
            }
        }
        for grant in &reply.grants {
            let tracked = self.purses.get(&grant.bucket);
            let life = grant.life_ms - grant.life_ms * u64::from(self.terms.drift_permille) / 1_000;
            let expires = asked.sent.plus(Duration::from_millis(life)).minus(SLACK);
            let permits = Permits::new(grant.size);
            let over = AtomicBool::new(false);
            let lot = Arc::new(Lot { id: grant.lot, permits, born: asked.sent, expires, over });
            if let Some(tracked) = tracked {
                tracked.purse.lots.rcu(|lots| {
                    let mut lots = Vec::clone(lots);
                    lots.push(lot.clone());
                    lots
                });
            }
        }
        let from = asked.sent.plus(REFILL_EVERY);
        self.purses.values().for_each(|tracked| tracked.watch(from, &self.terms, now));
        true
    }

    /// The last request of this process: everything is returned, what is owed is told as far as there is room, nothing
    /// is asked for.
    pub fn leave(&mut self, now: Mono) -> LeaseRequest {
        self.give_up();
        for (bucket, tracked) in &self.purses {
            for lot in tracked.purse.lots.swap(Arc::default()).iter() {
                close(bucket, lot, &mut self.closed);
            }
        }
        let mut room = LONGEST.saturating_sub(self.closed.iter().map(|report| entry(&report.bucket)).sum());
        let mut wants = Vec::new();
        for (bucket, tracked) in &self.purses {
            let debt = tracked.purse.debt.swap(0, AcqRel);
            if debt > 0 && room >= entry(bucket) {
                room -= entry(bucket);
                wants.push(Want { bucket: bucket.clone(), need: 0, ahead: 0, debt });
            }
        }
        self.send(wants, now)
    }

    /// Forgets purses that nobody else knows and nobody draws from.
    pub fn forget_idle(&mut self, now: Mono) {
        self.purses.retain(|_, tracked| {
            now.since(tracked.active_at) < IDLE
                || Arc::strong_count(&tracked.purse) > 1
                || !tracked.purse.lots.load().is_empty()
        });
    }

    fn compose(&mut self, now: Mono) -> Option<LeaseRequest> {
        let elapsed = now.since(self.looked_at);
        self.looked_at = now;
        self.last_sent = now;
        let mut all = Vec::new();
        for (bucket, tracked) in &mut self.purses {
            let (need, largest) = tracked.look(elapsed, now);
            self.closed.extend(tracked.close_spent(largest, self.unanswered, &self.terms, now));
            all.push((tracked.lots(), need, bucket, tracked));
        }
        // Those that have the least come first, if there is not room for all.
        all.sort_unstable_by_key(|(lots, ..)| *lots);
        let open = all.iter().map(|(lots, _, bucket, _)| lots * entry(bucket));
        let listed = open.chain(self.closed.iter().map(|report| entry(&report.bucket))).sum();
        let mut room = LONGEST.saturating_sub(listed);
        let mut wants = Vec::new();
        for (_, need, bucket, tracked) in all {
            if room < entry(bucket) {
                continue; // whoever still waits for it draws again
            }
            // Half of the room is for what requests wait for.
            let may_stock = room * 2 > LONGEST;
            if let Some(want) = tracked.want(need, may_stock, &self.terms, now) {
                room -= entry(bucket);
                wants.push(want);
            }
        }
        let holds = self.purses.values().any(|tracked| !tracked.purse.lots.load().is_empty());
        (holds || !wants.is_empty() || !self.closed.is_empty()).then(|| self.send(wants, now))
    }

    fn send(&mut self, wants: Vec<Want>, now: Mono) -> LeaseRequest {
        self.number += 1;
        self.last_sent = now;
        let open = self.purses.iter().flat_map(|(bucket, tracked)| {
            let lots = tracked.purse.lots.load_full();
            lots.iter().map(|lot| report(bucket, lot, lot.permits.tally(), false)).collect::<Vec<_>>()
        });
        let reports: Vec<_> = open.chain(self.closed.iter().cloned()).collect();
        self.outstanding = Some(Outstanding {
            number: self.number,
            sent: now,
            closed: self.closed.iter().map(|report| report.lot).collect(),
            wants: wants.iter().map(|want| (want.bucket.clone(), (want.need, want.debt))).collect(),
        });
        LeaseRequest { boot: self.boot.clone(), number: self.number, epoch: self.epoch, reports, wants }
    }
}

/// The bytes that a lot or a wish takes of a request at most.
fn entry(bucket: &Bucket) -> usize {
    ENTRY + bucket.names()
}

fn report(bucket: &Bucket, lot: &Lot, tally: Tally, closed: bool) -> LotReport {
    let Tally { drawn, given_back } = tally;
    LotReport { bucket: bucket.clone(), lot: lot.id, drawn, given_back, closed }
}

fn close(bucket: &Bucket, lot: &Lot, closed: &mut Vec<LotReport>) {
    closed.extend(lot.permits.close().map(|tally| report(bucket, lot, tally, true)));
}

#[cfg(test)]
mod tests;
