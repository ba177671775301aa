//! What a holder knows of one bucket: how much is asked of it, and what to keep in hand for that.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::Duration;

use super::{Lot, Purse, close};
use crate::quota::Terms;
use crate::quota::message::{LotReport, Want};
use crate::time::Mono;

/// Half of what is known of the demand is forgotten in about this time.
const DEMAND_MEMORY: Duration = Duration::from_secs(5);
/// The first request says as much about demand as if it had been watched for this time.
const FIRST: Duration = Duration::from_secs(1);
/// After so long without a request nothing is left of what is known of the demand.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Until the next report has arrived, at the usual pace.
const RETURN: Duration = Duration::from_millis(1_250);
/// What is in hand is filled up so often, whatever is left of it.
const FILL_EVERY: Duration = Duration::from_secs(1);
/// What is in hand is filled up at once below this part of what will be needed.
const LOW: f64 = 0.6;
/// What is old is for others once the young is at least this part of what will be needed. It is less than what is left
/// of it after [`FILL_EVERY`].
const STOCKED: f64 = 0.75;
/// The most lots of a bucket: every one of them is in every request. More are only asked for if a request waits.
const MOST_LOTS: usize = 8;

#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) purse: Arc<Purse>,
    /// Permits per second.
    demand: f64,
    /// Since when it has been watched: what is known of a short time says little about a long one.
    since: Mono,
    seen: u64,
    pub(super) active_at: Mono,
    filled_at: Mono,
    /// What the last request asked for in vain. It is no more demand, and the next one asks for no sum of both:
    /// requests draw again for as long as they wait, and those of a long silence have gone.
    pub(super) missed: u64,
}

impl Tracked {
    pub(super) fn new(purse: Arc<Purse>, now: Mono) -> Self {
        Self {
            purse,
            demand: 0.0,
            since: now,
            seen: 0,
            active_at: now,
            filled_at: Mono::default(),
            missed: 0,
        }
    }

    /// How many lots are in hand.
    pub(super) fn lots(&self) -> usize {
        self.purse.lots.load().len()
    }

    /// Follows the demand. Returns what was not there since the last look, and the largest single draw of it.
    pub(super) fn look(&mut self, elapsed: Duration, now: Mono) -> (u64, u64) {
        let purse = &self.purse;
        // Until the answer is in, nothing is known of what will be in hand.
        purse.refill_at.store(u64::MAX, Release);
        purse.low.store(false, Release);
        let unmet = purse.unmet.swap(0, AcqRel);
        let largest = purse.largest.swap(0, AcqRel);
        self.learn(unmet, elapsed, now);
        let unmet = unmet.max(std::mem::take(&mut self.missed));
        // Of a probe there is but one.
        (if self.purse.bucket.is_probe() { unmet.min(1) } else { unmet }, largest)
    }

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
    fn soon(&self, terms: &Terms, now: Mono) -> u64 {
        let age = now.since(self.since).max(FIRST);
        let known = 1.0 - (-age.as_secs_f64() / DEMAND_MEMORY.as_secs_f64()).exp2();
        let soon = self.demand / known * terms.ahead.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is not negative")]
        let soon = soon as u64;
        soon
    }

    /// What is in hand of lots of which less than half of the life is over.
    fn young(&self, terms: &Terms, now: Mono) -> u64 {
        let lots = self.purse.lots.load();
        lots.iter().filter(|lot| !is_old(lot, terms, now)).map(|lot| lot.permits.left()).sum()
    }

    /// What to ask for, if anything. `need` is what requests wait for; what they will need is added with `may_stock`.
    pub(super) fn want(&mut self, need: u64, may_stock: bool, terms: &Terms, now: Mono) -> Option<Want> {
        let bucket = self.purse.bucket.clone();
        let dry = self.purse.dry_until(now).is_some();
        let need = if dry { 0 } else { need };
        let may_stock = may_stock && !dry && !bucket.is_probe() && self.lots() < MOST_LOTS;
        let ahead = if may_stock { self.ahead(terms, now) } else { 0 };
        if ahead > 0 {
            self.filled_at = now;
        }
        let debt = self.purse.debt.swap(0, AcqRel);
        (need + ahead + debt > 0).then_some(Want { bucket, need, ahead, debt })
    }

    /// What to ask for beyond what requests wait for.
    fn ahead(&self, terms: &Terms, now: Mono) -> u64 {
        let (soon, young) = (self.soon(terms, now), self.young(terms, now));
        let is_due = now.since(self.filled_at) >= FILL_EVERY;
        if is_due || young < part(LOW, soon) { soon.saturating_sub(young) } else { 0 }
    }

    /// Lets requests say, from a moment on, when what is in hand is low. Where less was granted than will be needed, it
    /// is a part of that which is low.
    pub(super) fn watch(&self, from: Mono, terms: &Terms, now: Mono) {
        let soon = self.soon(terms, now);
        if soon == 0 || self.purse.bucket.is_probe() {
            return;
        }
        let in_hand = self.purse.in_hand(now);
        let least = part(LOW, soon.min(in_hand));
        let drawn = self.purse.drawn.load(Acquire);
        self.purse.refill_from.store(from.as_ms(), Release);
        self.purse.refill_at.store(drawn.saturating_add(in_hand - least), Release);
    }

    /// Takes lots out that are spent, over, too small for what requests ask, or old and not needed. While nobody answers,
    /// what can be drawn is kept.
    pub(super) fn close_spent(
        &self,
        largest: u64,
        unanswered: bool,
        terms: &Terms,
        now: Mono,
    ) -> Vec<LotReport> {
        let lots = self.purse.lots.load_full();
        let soon = self.soon(terms, now);
        let needs_old = soon > 0 && self.young(terms, now) < part(STOCKED, soon);
        let keep = |lot: &Lot| {
            let left = lot.permits.left();
            if self.purse.bucket.is_probe() && left == 0 {
                return !lot.over.load(Acquire); // it is under way, and listing it says so
            }
            if left == 0 || !lot.is_live(now) {
                return false;
            }
            // What is not returned before the grantor writes it off is lost for a whole window.
            let may_wait = lot.is_live(now.plus(RETURN));
            unanswered || (left >= largest && (!is_old(lot, terms, now) || (needs_old && may_wait)))
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

/// A part of so many permits, rounded up: there is none of nothing only.
fn part(share: f64, permits: u64) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "it is a part of an estimate")]
    let part = (share * permits as f64).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is not negative")]
    let part = part as u64;
    part
}

/// Half of a lot's life is over: what is left of it is for others, unless it is about to be used.
fn is_old(lot: &Lot, terms: &Terms, now: Mono) -> bool {
    now.since(lot.born) * 2 >= terms.life
}
