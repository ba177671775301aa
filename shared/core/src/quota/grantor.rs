//! The coordinator's book of quota: what was used, what is out in lots, and what may be granted.
//!
//! [`Grantor::serve`] takes the requests that wait and answers them together. What it changed is in
//! [`Grantor::changes`]; it must be stored, under the leader's fence, before any of the answers is sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::account::{Account, Moment};
use super::message::{Grant, LeaseReply, LeaseRequest, LotReport, Refusal, Want};
use super::share::share;
use super::{Bucket, LotId, OpenLot, Terms, holders};
use crate::id::{Model, ReplicaId};
use crate::time::LedgerTime;

/// Buckets of models that no upstream has answered for. Their names come from clients.
const MAX_PROVISIONAL: usize = 1_000;
/// All buckets that are kept. Beyond it, new ones get nothing until idle ones are dropped.
const MAX_ACCOUNTS: usize = 200_000;
/// A refused holder asks again after this time at the earliest.
const LEAST_RETRY: Duration = Duration::from_millis(20);

/// The book.
#[derive(Debug, Clone)]
pub struct Grantor {
    terms: Terms,
    accounts: HashMap<Bucket, Account>,
    /// The lots of each holder, to notice those that it never accepted.
    holders: HashMap<ReplicaId, BTreeMap<LotId, Bucket>>,
    /// Models that an upstream has answered for.
    served: HashSet<Model>,
    provisional: usize,
    lots: u64,
    turn: usize,
    changed: BTreeSet<Bucket>,
    /// What happened before this moment is unknown: nothing is granted of a minute's quota.
    blind_until: LedgerTime,
}

impl Grantor {
    /// A book with what an earlier leader stored.
    pub fn new(terms: Terms, accounts: impl IntoIterator<Item = (Bucket, Account)>) -> Self {
        let mut grantor = Self {
            terms,
            accounts: HashMap::new(),
            holders: HashMap::new(),
            served: HashSet::new(),
            provisional: 0,
            lots: 0,
            turn: 0,
            changed: BTreeSet::new(),
            blind_until: LedgerTime::default(),
        };
        for (bucket, account) in accounts {
            for lot in &account.lots {
                grantor.holders.entry(lot.boot.clone()).or_default().insert(lot.id, bucket.clone());
            }
            grantor.provisional += usize::from(grantor.is_provisional(&bucket));
            grantor.accounts.insert(bucket, account);
        }
        grantor
    }

    /// Answers requests together. `limit` says what a bucket may hold; a bucket without one is granted what is asked
    /// for, and no book is kept of it.
    pub fn serve(
        &mut self,
        requests: &[LeaseRequest],
        limit: impl Fn(&Bucket) -> Option<u64>,
        now: Moment,
    ) -> Vec<LeaseReply> {
        let mut wants: BTreeMap<&Bucket, Vec<(usize, &Want)>> = BTreeMap::new();
        for (asker, request) in requests.iter().enumerate() {
            self.settle(request, now);
            for want in &request.wants {
                wants.entry(&want.bucket).or_default().push((asker, want));
            }
        }
        let mut replies: Vec<_> = requests
            .iter()
            .map(|request| LeaseReply {
                epoch: now.epoch,
                number: request.number,
                grants: Vec::new(),
                refusals: Vec::new(),
            })
            .collect();
        for (bucket, wants) in wants {
            self.grant(bucket, &wants, limit(bucket), requests, now, &mut replies);
        }
        replies
    }

    /// Charges to a bucket what was used outside of any lot.
    pub fn charge(&mut self, bucket: &Bucket, n: u64, now: Moment) {
        if n > 0 && self.has_room(bucket) {
            self.account(bucket).charge(n, now.time, now.utc);
            self.changed.insert(bucket.clone());
        }
    }

    /// How the probe of a holder's lot went is known: nothing is waited for any more, and the lot is no more.
    pub fn judged(&mut self, bucket: &Bucket, replica: &ReplicaId, lot: LotId) {
        let Some(account) = self.accounts.get_mut(bucket).filter(|_| bucket.is_probe()) else { return };
        account.judged(lot);
        self.changed.insert(bucket.clone());
        // Any of the replica's holders may have it.
        let own = |boot: &&ReplicaId| holders::replica(boot) == *replica;
        let boots: Vec<_> = self.holders.keys().filter(own).cloned().collect();
        for boot in boots {
            self.forget_lot(&boot, lot);
        }
    }

    /// Grants nothing of a minute's quota for as long as lots and charges may be out that nobody knows of. It must be
    /// stored with [`Grantor::blind_until`] before the next leader trusts the store.
    pub fn quarantine(&mut self, now: LedgerTime) {
        self.stay_blind(now.plus(self.terms.window).plus(self.terms.life).plus(self.terms.jitter));
    }

    /// Goes on with a quarantine that an earlier leader began.
    pub fn stay_blind(&mut self, until: LedgerTime) {
        self.blind_until = self.blind_until.max(until);
    }

    /// Until when nothing is granted.
    pub fn blind_until(&self) -> LedgerTime {
        self.blind_until
    }

    /// An upstream has answered for these models: their buckets are here to stay.
    pub fn served<'a>(&mut self, models: impl IntoIterator<Item = &'a Model>) {
        let before = self.served.len();
        for model in models {
            if self.served.len() < MAX_PROVISIONAL && !self.served.contains(model) {
                self.served.insert(model.clone());
            }
        }
        if self.served.len() > before {
            self.provisional = self.accounts.keys().filter(|bucket| self.is_provisional(bucket)).count();
        }
    }

    /// Writes off what ran out, and drops accounts that say nothing any more.
    pub fn sweep(&mut self, now: Moment) {
        let buckets: Vec<_> = self.accounts.keys().cloned().collect();
        for bucket in buckets {
            self.expire(&bucket, now);
            let terms = self.terms;
            let Some(account) = self.accounts.get_mut(&bucket) else { continue };
            if account.lots.is_empty() && account.used(&terms, now) == 0 {
                self.provisional -= usize::from(self.is_provisional(&bucket));
                self.accounts.remove(&bucket);
                self.changed.insert(bucket);
            }
        }
    }

    /// What changed since the last call: accounts to store, and to forget.
    pub fn changes(&mut self) -> Vec<(Bucket, Option<Account>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|bucket| (bucket.clone(), self.accounts.get(&bucket).cloned())).collect()
    }

    /// What is used and what is out of every bucket, for people.
    pub fn usage(&mut self, now: Moment) -> Vec<(Bucket, u64, u64)> {
        let terms = self.terms;
        let usage = self.accounts.iter_mut();
        usage.map(|(bucket, account)| (bucket.clone(), account.used(&terms, now), account.open())).collect()
    }

    /// What is used or out of a bucket.
    pub fn taken(&mut self, bucket: &Bucket, now: Moment) -> u64 {
        self.expire(bucket, now);
        let terms = self.terms;
        let account = self.accounts.get_mut(bucket);
        account.map_or(0, |account| account.used(&terms, now).saturating_add(account.open()))
    }

    /// Buckets of which nothing is left and somebody was refused.
    pub fn spent(&mut self, limit: impl Fn(&Bucket) -> Option<u64>, now: Moment) -> Vec<Bucket> {
        let terms = self.terms;
        let refused = self.accounts.iter_mut().filter(|(_, account)| account.refused_at.is_some());
        let spent = refused.filter_map(|(bucket, account)| {
            let taken = account.used(&terms, now).saturating_add(account.open());
            limit(bucket).is_some_and(|limit| taken >= limit).then(|| bucket.clone())
        });
        spent.collect()
    }

    /// Whether a bucket was, a moment ago, asked for more than it had.
    pub fn is_short_of(&self, bucket: &Bucket, now: Moment) -> bool {
        self.accounts.get(bucket).is_some_and(|account| now.time < account.short_until)
    }

    /// The buckets of which somebody was refused by a limit that is no more, as `is_over` says. Each is told of once.
    pub fn let_ask_again(&mut self, is_over: impl Fn(&Bucket, u64) -> bool) -> Vec<Bucket> {
        let again = self.accounts.iter_mut().filter_map(|(bucket, account)| {
            account.refused_at.take_if(|limit| is_over(bucket, *limit)).map(|_| bucket.clone())
        });
        let again: Vec<_> = again.collect();
        self.changed.extend(again.iter().cloned());
        again
    }

    /// How many buckets are in the book, and how many lots are out.
    pub fn counts(&self) -> (usize, usize) {
        (self.accounts.len(), self.accounts.values().map(|account| account.lots.len()).sum())
    }

    /// Who has lots.
    pub fn holders(&self) -> impl Iterator<Item = &ReplicaId> {
        self.holders.keys()
    }

    /// Every lot that is out.
    pub fn lots(&self) -> Vec<(Bucket, OpenLot)> {
        let lots = self.accounts.iter();
        lots.flat_map(|(bucket, account)| account.lots.iter().map(|lot| (bucket.clone(), lot.clone())))
            .collect()
    }

    fn settle(&mut self, request: &LeaseRequest, now: Moment) {
        for report in &request.reports {
            self.settle_lot(&request.boot, report, now);
        }
        // A lot of an earlier request that is not listed was never accepted, and never will be.
        let listed: HashSet<LotId> = request.reports.iter().map(|report| report.lot).collect();
        let Some(lots) = self.holders.get(&request.boot) else { return };
        let unlisted = lots.iter().filter(|(lot, _)| !listed.contains(lot));
        let unlisted: Vec<_> = unlisted.map(|(lot, bucket)| (*lot, bucket.clone())).collect();
        for (lot, bucket) in unlisted {
            let Some(account) = self.accounts.get_mut(&bucket) else { continue };
            let never = |open: &mut OpenLot| open.id == lot && open.request < request.number;
            if account.lots.extract_if(.., never).next().is_some() {
                self.changed.insert(bucket);
                self.forget_lot(&request.boot, lot);
            }
        }
    }

    fn settle_lot(&mut self, boot: &ReplicaId, report: &LotReport, now: Moment) {
        self.expire(&report.bucket, now);
        let Some(account) = self.accounts.get_mut(&report.bucket) else { return };
        let Some(place) = account.lots.iter().position(|lot| lot.id == report.lot && lot.boot == *boot)
        else {
            return; // charged in full when it ran out
        };
        if report.bucket.is_probe() {
            self.settle_probe(boot, report, place, now);
            return;
        }
        let lot = &mut account.lots[place];
        let drawn = report.drawn.min(lot.size + report.given_back).saturating_sub(lot.drawn);
        let given_back = report.given_back.saturating_sub(lot.given_back);
        if drawn + given_back == 0 && !report.closed {
            return;
        }
        lot.drawn += drawn;
        lot.given_back += given_back;
        if report.closed {
            account.lots.remove(place);
        }
        account.charge(drawn, now.time, now.utc);
        account.refund(given_back, now.utc);
        self.changed.insert(report.bucket.clone());
        if report.closed {
            self.forget_lot(boot, report.lot);
        }
    }

    /// A probe's lot lives on while its holder lists it. Once it is closed, the verdict is waited for if it was used.
    fn settle_probe(&mut self, boot: &ReplicaId, report: &LotReport, place: usize, now: Moment) {
        let until = now.time.plus(self.terms.life);
        let Some(account) = self.accounts.get_mut(&report.bucket) else { return };
        if report.closed {
            account.lots.remove(place);
            if report.drawn > report.given_back {
                account.await_verdict(report.lot, until);
            }
            self.forget_lot(boot, report.lot);
        } else {
            account.lots[place].expires = until;
        }
        self.changed.insert(report.bucket.clone());
    }

    fn grant(
        &mut self,
        bucket: &Bucket,
        wants: &[(usize, &Want)],
        limit: Option<u64>,
        requests: &[LeaseRequest],
        now: Moment,
        replies: &mut [LeaseReply],
    ) {
        let debt = wants.iter().map(|(_, want)| want.debt).sum();
        let Some(limit) = limit else {
            for (asker, want) in wants {
                let lot = self.next_lot(now.epoch);
                let life_ms = millis(self.terms.life);
                let size = want.need.saturating_add(want.ahead);
                replies[*asker].grants.push(Grant { bucket: bucket.clone(), lot, size, life_ms });
            }
            return;
        };
        self.charge(bucket, debt, now);
        let (left, returns) = self.left(bucket, limit, now);
        let needs: Vec<u64> = wants.iter().map(|(_, want)| want.need).collect();
        let needed = share(&needs, left, self.turn);
        let rest = left - needed.iter().sum::<u64>();
        // Nobody takes more than a part of what is left for later: others may need it sooner.
        let most = (rest / if bucket.is_daily() { 100 } else { 4 }).max(1);
        let most = if self.is_short(bucket, needed != needs, now) { 0 } else { most };
        // A probe is for a request that is there.
        let most = if bucket.is_probe() { 0 } else { most };
        let aheads: Vec<u64> = wants
            .iter()
            .map(|(asker, want)| {
                want.ahead.min(most.saturating_sub(self.kept(bucket, &requests[*asker].boot)))
            })
            .collect();
        let ahead = share(&aheads, rest, self.turn);
        self.turn = self.turn.wrapping_add(1);
        for (place, (asker, _)) in wants.iter().enumerate() {
            let size = needed[place] + ahead[place];
            if size > 0 {
                let lot = self.open_lot(bucket, size, &requests[*asker], now);
                // The other half is for telling that a probe has begun, however often that gets lost.
                let life = if bucket.is_probe() { self.terms.life / 2 } else { self.terms.life };
                let life_ms = millis(life);
                replies[*asker].grants.push(Grant { bucket: bucket.clone(), lot, size, life_ms });
            }
        }
        if needed == needs {
            return;
        }
        // What was granted just now comes back like everything else.
        let left = self.accounts.get(bucket).filter(|_| needed.iter().any(|size| *size > 0));
        let returns = left.map_or(returns, |account| account.returns_in(&self.terms, now));
        let retry_ms = millis(returns.max(LEAST_RETRY));
        for ((asker, _), _) in
            wants.iter().zip(needed.iter().zip(&needs)).filter(|(_, (got, need))| got < need)
        {
            replies[*asker].refusals.push(Refusal { bucket: bucket.clone(), retry_ms });
        }
        self.refuse(bucket, limit);
    }

    fn refuse(&mut self, bucket: &Bucket, limit: u64) {
        if let Some(account) = self.accounts.get_mut(bucket).filter(|_| !bucket.is_probe())
            && account.refused_at.replace(limit) != Some(limit)
        {
            self.changed.insert(bucket.clone());
        }
    }

    /// What a holder has ahead already that is lost for the day if it ends without a word.
    fn kept(&self, bucket: &Bucket, boot: &ReplicaId) -> u64 {
        let account = self.accounts.get(bucket).filter(|_| bucket.is_daily());
        let lots = account.into_iter().flat_map(|account| &account.lots).filter(|lot| lot.boot == *boot);
        lots.map(OpenLot::open).sum()
    }

    /// What may be granted of a bucket, and when more of it comes back.
    fn left(&mut self, bucket: &Bucket, limit: u64, now: Moment) -> (u64, Duration) {
        if now.time < self.blind_until && !bucket.is_daily() {
            return (0, self.blind_until.since(now.time));
        }
        if !self.has_room(bucket) {
            return (0, self.terms.window);
        }
        self.expire(bucket, now);
        let terms = self.terms;
        let Some(account) = self.accounts.get_mut(bucket) else { return (limit, Duration::ZERO) };
        let taken = account.used(&terms, now).saturating_add(account.open());
        (limit.saturating_sub(taken), account.returns_in(&terms, now))
    }

    /// Whether a bucket is, or was a moment ago, asked for more than it has.
    fn is_short(&mut self, bucket: &Bucket, now_short: bool, now: Moment) -> bool {
        // By then what others have and do not need has come back.
        let until = now.time.plus(self.terms.life / 2);
        let Some(account) = self.accounts.get_mut(bucket) else { return now_short };
        if now_short {
            account.short_until = until;
        }
        now.time < account.short_until
    }

    fn open_lot(&mut self, bucket: &Bucket, size: u64, request: &LeaseRequest, now: Moment) -> LotId {
        let id = self.next_lot(now.epoch);
        let expires = now.time.plus(self.terms.life);
        let (boot, number) = (request.boot.clone(), request.number);
        self.holders.entry(boot.clone()).or_default().insert(id, bucket.clone());
        let lot = OpenLot { id, boot, request: number, size, drawn: 0, given_back: 0, expires };
        self.account(bucket).lots.push(lot);
        self.changed.insert(bucket.clone());
        id
    }

    fn next_lot(&mut self, epoch: u64) -> LotId {
        self.lots += 1;
        LotId { epoch, number: self.lots }
    }

    fn expire(&mut self, bucket: &Bucket, now: Moment) {
        let Some(account) = self.accounts.get_mut(bucket) else { return };
        let over = account.expire(now);
        if !over.is_empty() {
            self.changed.insert(bucket.clone());
        }
        for lot in over {
            self.forget_lot(&lot.boot, lot.id);
        }
    }

    fn forget_lot(&mut self, boot: &ReplicaId, lot: LotId) {
        let Some(lots) = self.holders.get_mut(boot) else { return };
        lots.remove(&lot);
        if lots.is_empty() {
            self.holders.remove(boot);
        }
    }

    fn account(&mut self, bucket: &Bucket) -> &mut Account {
        if !self.accounts.contains_key(bucket) {
            self.provisional += usize::from(self.is_provisional(bucket));
        }
        self.accounts.entry(bucket.clone()).or_insert_with(|| Account::new(bucket))
    }

    fn has_room(&self, bucket: &Bucket) -> bool {
        let crowded = self.accounts.len() >= MAX_ACCOUNTS
            || (self.provisional >= MAX_PROVISIONAL && self.is_provisional(bucket));
        !crowded || self.accounts.contains_key(bucket)
    }

    fn is_provisional(&self, bucket: &Bucket) -> bool {
        matches!(bucket, Bucket::Quota(_, model, _) if !self.served.contains(model))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
