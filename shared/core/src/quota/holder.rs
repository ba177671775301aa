//! A gateway's side of quota: lots in hand, and the conversation that gets the next ones.
//!
//! A [`Purse`] is what requests draw from: one per bucket, shared, without a lock. The [`Holder`] is owned by one
//! task, which sends what [`Holder::poll`] says and hands the answers to [`Holder::answered`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::lot::{Permits, Round, Tally};
use super::message::{LeaseReply, LeaseRequest, LotReport, Want};
use super::{Bucket, LotId, Terms};
use crate::id::ReplicaId;
use crate::time::Mono;

/// How often a holder reports what it used, without being asked for more.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Until the next report has arrived, at the usual pace.
const RETURN: Duration = Duration::from_millis(1_250);
/// Half of what is known of the demand is forgotten in about this time.
const DEMAND_MEMORY: Duration = Duration::from_secs(5);
/// The first request says as much about demand as if it had been watched for this time.
const FIRST: Duration = Duration::from_secs(1);
/// After so long without a request nothing is left of what is known of the demand.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// What a clock may be off by beyond its drift.
const SLACK: Duration = Duration::from_millis(5);
/// A purse that nobody drew from for so long is dropped.
const IDLE: Duration = Duration::from_mins(10);

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
                self.drawn.fetch_add(n, AcqRel);
                if lot.permits.left() * 5 < lot.permits.size() * 2 {
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
struct Tracked {
    purse: Arc<Purse>,
    /// Permits per second.
    demand: f64,
    /// Since when it has been watched: what is known of a short time says little about a long one.
    since: Mono,
    seen: u64,
    active_at: Mono,
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
        let tracked = Tracked { purse: purse.clone(), demand: 0.0, since: now, seen: 0, active_at: now };
        self.purses.insert(bucket.clone(), tracked);
        purse
    }

    /// Whether it has a purse for this bucket.
    pub(super) fn has(&self, bucket: &Bucket) -> bool {
        self.purses.contains_key(bucket)
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
        for (bucket, (need, debt)) in outstanding.wants {
            if let Some(tracked) = self.purses.get(&bucket) {
                tracked.purse.unmet.fetch_max(need, AcqRel);
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
        true
    }

    /// The last request of this process: everything is returned, what is owed is told, nothing is asked for.
    pub fn leave(&mut self, now: Mono) -> LeaseRequest {
        self.give_up();
        let mut wants = Vec::new();
        for (bucket, tracked) in &self.purses {
            for lot in tracked.purse.lots.swap(Arc::default()).iter() {
                close(bucket, lot, &mut self.closed);
            }
            let debt = tracked.purse.debt.swap(0, AcqRel);
            if debt > 0 {
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
        let mut wants = Vec::new();
        for (bucket, tracked) in &mut self.purses {
            let purse = tracked.purse.clone();
            purse.low.store(false, Release);
            let unmet = purse.unmet.swap(0, AcqRel);
            let largest = purse.largest.swap(0, AcqRel);
            tracked.learn(unmet, elapsed, now);
            let ahead = tracked.ahead(&self.terms, now);
            self.closed.extend(tracked.close_spent(largest, &self.terms, now));
            let dry = purse.dry_until(now).is_some();
            let debt = purse.debt.swap(0, AcqRel);
            // Of a probe there is but one.
            let unmet = if bucket.is_probe() { unmet.min(1) } else { unmet };
            let need = if dry { 0 } else { unmet };
            let ahead = if dry || bucket.is_probe() { 0 } else { ahead };
            if need + ahead + debt > 0 {
                wants.push(Want { bucket: bucket.clone(), need, ahead, debt });
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

impl Tracked {
    /// Follows the demand.
    fn learn(&mut self, unmet: u64, elapsed: Duration, now: Mono) {
        let drawn = self.purse.drawn.load(Acquire);
        let asked = drawn - self.seen + unmet;
        self.seen = drawn;
        if asked > 0 {
            if now.since(self.active_at) > FORGOTTEN {
                self.since = now;
                self.demand = 0.0;
            }
            self.active_at = now;
        }
        let kept = (-elapsed.as_secs_f64() / DEMAND_MEMORY.as_secs_f64()).exp2();
        // In the long run this is the rate: what is added in a second is what is forgotten of it.
        #[expect(clippy::cast_precision_loss, reason = "demand is an estimate")]
        let asked = asked as f64 * std::f64::consts::LN_2 / DEMAND_MEMORY.as_secs_f64();
        self.demand = self.demand * kept + asked;
    }

    /// What requests will need soon. Of the first moments only a part of the demand is in the mean as yet; the same
    /// part is what it is divided by. So a bucket that was used for a second is stocked for a takeover of two.
    fn soon(&self, terms: &Terms, now: Mono) -> f64 {
        let age = now.since(self.since).max(FIRST);
        let known = 1.0 - (-age.as_secs_f64() / DEMAND_MEMORY.as_secs_f64()).exp2();
        self.demand / known * terms.ahead.as_secs_f64()
    }

    /// What to ask for beyond what requests wait for.
    fn ahead(&self, terms: &Terms, now: Mono) -> u64 {
        let soon = self.soon(terms, now);
        if soon < 1.0 {
            return 0;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be positive")]
        let soon = soon as u64;
        let lots = self.purse.lots.load();
        let young = lots.iter().filter(|lot| !is_old(lot, terms, now));
        soon.saturating_sub(young.map(|lot| lot.permits.left()).sum())
    }

    /// Takes lots out that are spent, over, too small for what requests ask, or old and not needed.
    fn close_spent(&self, largest: u64, terms: &Terms, now: Mono) -> Vec<LotReport> {
        let lots = self.purse.lots.load_full();
        let in_demand = self.demand * terms.ahead.as_secs_f64() >= 1.0;
        let has_young = lots.iter().any(|lot| !is_old(lot, terms, now) && lot.permits.left() > 0);
        let keep = |lot: &Lot| {
            let old = is_old(lot, terms, now);
            let left = lot.permits.left();
            if self.purse.bucket.is_probe() && left == 0 {
                return !lot.over.load(Acquire); // it is under way, and listing it says so
            }
            // What is not returned before the grantor writes it off is lost for a whole window.
            let may_wait = lot.is_live(now.plus(RETURN));
            left > 0 && left >= largest && lot.is_live(now) && (!old || (in_demand && !has_young && may_wait))
        };
        let (kept, out): (Vec<_>, Vec<_>) = lots.iter().cloned().partition(|lot| keep(lot));
        let mut closed = Vec::new();
        if !out.is_empty() {
            self.purse.lots.store(Arc::new(kept));
            for lot in &out {
                close(&self.purse.bucket, lot, &mut closed);
            }
        }
        closed
    }
}

/// Half of a lot's life is over: what is left of it is for others, unless it is about to be used.
fn is_old(lot: &Lot, terms: &Terms, now: Mono) -> bool {
    now.since(lot.born) * 2 >= terms.life
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
