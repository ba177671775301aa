//! A gateway's buckets, divided among holders so that no request outgrows a message.
//!
//! A request lists every lot that its holder has: one that is not listed is taken for never accepted. So a holder has a
//! limited number of buckets, and when it is full the next one begins, under a name of its own. To the grantor each is
//! a gateway; since all lots of a bucket are one holder's, what holds for many gateways holds for many holders.

use std::sync::Arc;

use super::holder::{Holder, Purse};
use super::message::{LeaseReply, LeaseRequest};
use super::{Bucket, Terms};
use crate::id::ReplicaId;
use crate::time::Mono;

/// The most buckets of one holder. A bucket has few lots at a time, and each takes some 200 bytes of a request.
pub const MOST_BUCKETS: usize = 512;
/// The most holders. Buckets beyond them are never leased.
const MOST_HOLDERS: usize = 64;
/// The longest names of a bucket that is leased, in bytes. They come from clients, and no upstream has such.
const LONGEST_NAMES: usize = 768;
/// Between the name of a gateway and the number of its holder; the first goes by the gateway's name.
const NUMBERED: char = '#';

/// All conversations of one gateway about quota.
#[derive(Debug)]
pub struct Holders {
    boot: ReplicaId,
    terms: Terms,
    epoch: u64,
    /// Never empty.
    all: Vec<Holder>,
    /// The one that asked last.
    asking: usize,
    /// Keeps the purses that nobody fills: it is never polled.
    refused: Holder,
}

/// The gateway that a holder is part of.
pub fn replica(boot: &ReplicaId) -> ReplicaId {
    match boot.as_str().split_once(NUMBERED) {
        Some((replica, _)) => ReplicaId::new(replica),
        None => boot.clone(),
    }
}

impl Holders {
    /// Holders that have nothing; `boot` names one start of one process.
    pub fn new(boot: ReplicaId, terms: Terms, now: Mono) -> Self {
        let all = vec![Holder::new(boot.clone(), terms, now)];
        let refused = Holder::new(boot.clone(), terms, now);
        Self { boot, terms, epoch: 0, all, asking: 0, refused }
    }

    /// The purse of a bucket. Where there is no room for another bucket it stays empty.
    pub fn purse(&mut self, bucket: &Bucket, now: Mono) -> Arc<Purse> {
        if let Some(known) = self.all.iter_mut().find(|holder| holder.has(bucket)) {
            return known.purse(bucket, now);
        }
        if bucket.names() > LONGEST_NAMES {
            return self.refused.purse(bucket, now);
        }
        let free = self.all.iter().position(|holder| holder.buckets() < MOST_BUCKETS);
        let place = free.unwrap_or(self.all.len());
        if place >= MOST_HOLDERS {
            return self.refused.purse(bucket, now);
        }
        if place == self.all.len() {
            let boot = ReplicaId::new(format!("{}{NUMBERED}{place}", self.boot));
            let mut holder = Holder::new(boot, self.terms, now);
            holder.saw_epoch(self.epoch);
            self.all.push(holder);
        }
        // It may have found no room when it was asked for before.
        self.refused.forget(bucket);
        self.all[place].purse(bucket, now)
    }

    /// Whether buckets that found no room would find some now, if their purses were asked for again.
    pub fn has_room_again(&self) -> bool {
        let has_room =
            self.all.len() < MOST_HOLDERS || self.all.iter().any(|holder| holder.buckets() < MOST_BUCKETS);
        has_room && self.refused.buckets() > 0
    }

    /// How many buckets find no room: what is drawn from them is never there.
    pub fn refused(&self) -> usize {
        self.refused.buckets()
    }

    /// See [`Holder::saw_epoch`].
    pub fn saw_epoch(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
        self.all.iter_mut().for_each(|holder| holder.saw_epoch(epoch));
    }

    /// The request to send now, if any; each holder in its turn.
    pub fn poll(&mut self, now: Mono) -> Option<LeaseRequest> {
        for _ in 0..self.all.len() {
            self.asking = (self.asking + 1) % self.all.len();
            if let Some(request) = self.all[self.asking].poll(now) {
                return Some(request);
            }
        }
        None
    }

    /// See [`Holder::next_poll`].
    pub fn next_poll(&self) -> Mono {
        self.all.iter().map(Holder::next_poll).min().unwrap_or_default()
    }

    /// No answer will come to the last request.
    pub fn give_up(&mut self) {
        self.all[self.asking].give_up();
    }

    /// Takes the answer to the last request; see [`Holder::answered`].
    pub fn answered(&mut self, reply: &LeaseReply, now: Mono) -> bool {
        self.all[self.asking].answered(reply, now)
    }

    /// The last requests of this process; see [`Holder::leave`].
    pub fn leave(&mut self, now: Mono) -> Vec<LeaseRequest> {
        self.all.iter_mut().map(|holder| holder.leave(now)).collect()
    }

    /// See [`Holder::forget_idle`].
    pub fn forget_idle(&mut self, now: Mono) {
        self.refused.forget_idle(now);
        self.all.iter_mut().for_each(|holder| holder.forget_idle(now));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::id::{Model, ProjectId};
    use crate::quota::Dimension;
    use crate::quota::account::Moment;
    use crate::quota::grantor::Grantor;
    use crate::time::{LedgerTime, Utc};

    const LIMIT: u64 = 1_000;

    struct Pair {
        holders: Holders,
        grantor: Grantor,
        ms: u64,
    }

    impl Pair {
        fn new() -> Self {
            let holders = Holders::new(ReplicaId::new("gw"), Terms::MINUTE, Mono::from_ms(0));
            let mut grantor = Grantor::new(Terms::MINUTE, Vec::new());
            // Of models that nobody has answered for, only some are leased.
            grantor.served([&model()]);
            Self { holders, grantor, ms: 60_000 }
        }

        fn serve(&mut self, request: LeaseRequest) -> LeaseReply {
            let moment = Moment { epoch: 1, time: LedgerTime::from_ms(self.ms), utc: Utc::default() };
            self.grantor.serve(&[request], |_| Some(LIMIT), moment).remove(0)
        }

        /// Asks once if there is something to say; returns the size of the request.
        fn say(&mut self, now: Mono) -> usize {
            let Some(request) = self.holders.poll(now) else { return 0 };
            let length = serde_json::to_vec(&request).unwrap().len();
            let reply = self.serve(request);
            assert!(self.holders.answered(&reply, now));
            length
        }

        /// Asks until nobody has anything to say; returns the sizes of the requests, and who sent them.
        fn talk(&mut self) -> (usize, HashSet<ReplicaId>) {
            self.ms += 1_000;
            let now = Mono::from_ms(self.ms);
            let (mut longest, mut boots) = (0, HashSet::new());
            while let Some(request) = self.holders.poll(now) {
                longest = longest.max(serde_json::to_vec(&request).unwrap().len());
                boots.insert(request.boot.clone());
                let reply = self.serve(request);
                assert!(self.holders.answered(&reply, now));
            }
            (longest, boots)
        }
    }

    fn model() -> Model {
        Model::new("gemini-2.5-flash-lite")
    }

    fn bucket(n: usize) -> Bucket {
        Bucket::Quota(ProjectId::new(format!("project-{n}")), model(), Dimension::Rpm)
    }

    #[test]
    fn any_number_of_buckets_is_leased_in_messages_of_limited_size() {
        const MANY: usize = 6_000;
        let mut pair = Pair::new();
        let purses: Vec<_> =
            (0..MANY).map(|n| pair.holders.purse(&bucket(n), Mono::from_ms(pair.ms))).collect();
        let mut longest = 0;
        for _ in 0..12 {
            let now = Mono::from_ms(pair.ms);
            for purse in &purses {
                if let Ok(drawn) = purse.draw(2, now) {
                    assert!(drawn.is_live(now));
                }
            }
            let (size, boots) = pair.talk();
            longest = longest.max(size);
            assert_eq!(boots.len(), MANY.div_ceil(MOST_BUCKETS));
            assert!(boots.iter().all(|boot| replica(boot).as_str() == "gw"), "{boots:?}");
        }
        let now = Mono::from_ms(pair.ms);
        assert!(purses.iter().all(|purse| purse.in_hand(now) > 0), "every bucket has something in hand");
        assert!((100_000..512 * 1_024).contains(&longest), "{longest} bytes");
        // Nothing was taken for never accepted: what was drawn is charged or out.
        let before = pair.grantor.counts().1;
        assert!(before >= MANY, "{before}");
        for request in pair.holders.leave(now) {
            pair.serve(request);
        }
        assert_eq!(pair.grantor.counts().1, 0, "everything is given back");
    }

    /// A hundred requests a second, each of which is followed by a look whether there is something to say.
    #[test]
    fn few_draws_are_followed_by_a_request() {
        const BUCKETS: usize = 10;
        const DRAWS: u64 = 6_000;
        let mut pair = Pair::new();
        let purses: Vec<_> =
            (0..BUCKETS).map(|n| pair.holders.purse(&bucket(n), Mono::from_ms(pair.ms))).collect();
        let (mut requests, mut most, mut cold) = (0, 0, 0);
        for n in 0..DRAWS {
            pair.ms += 10;
            let now = Mono::from_ms(pair.ms);
            let purse = &purses[usize::try_from(n).unwrap() % BUCKETS];
            cold += u64::from(purse.draw(1, now).is_err());
            while let Some(request) = pair.holders.poll(now) {
                requests += 1;
                most = most.max(request.reports.iter().filter(|report| !report.closed).count());
                let reply = pair.serve(request);
                assert!(pair.holders.answered(&reply, now));
            }
        }
        assert!(cold <= 2 * BUCKETS as u64, "{cold} draws found nothing");
        assert!(requests * 20 <= DRAWS, "{requests} requests");
        assert!(most <= 8 * BUCKETS, "{most} lots");
    }

    /// Below four fifths of the quota, whenever it begins, and the lead takes a second to come back.
    #[test]
    fn what_is_in_hand_carries_an_outage_of_five_seconds() {
        const OUTAGE: u64 = 6_000;
        for phase in (0..10_000).step_by(130) {
            let mut pair = Pair::new();
            let purse = pair.holders.purse(&bucket(0), Mono::from_ms(pair.ms));
            let begin = pair.ms + 30_000 + phase;
            let mut tried = 0;
            while pair.ms < begin + OUTAGE {
                pair.ms += 10;
                let now = Mono::from_ms(pair.ms);
                // Eight hundred a minute.
                let is_time = (pair.ms * 800 / 60_000) > ((pair.ms - 10) * 800 / 60_000);
                let is_known = pair.ms > begin - 10_000;
                tried += u64::from(is_time && is_known);
                assert!(
                    !is_time || purse.draw(1, now).is_ok() || !is_known,
                    "{} ms after it began at {phase}",
                    pair.ms - begin
                );
                if pair.ms < begin {
                    pair.say(now);
                } else {
                    let _unheard = pair.holders.poll(now);
                }
            }
            assert!(tried > 200, "{tried}");
        }
    }

    /// All lots have to be listed, and none is forgotten because there are too many.
    #[test]
    fn a_request_never_outgrows_a_message_and_everybody_gets_something() {
        let mut pair = Pair::new();
        let now = Mono::from_ms(pair.ms);
        // What a client may write, and takes several times the room in a message.
        let name = |n: usize| ProjectId::new(format!("{n:04}{}{}", "\u{1}".repeat(60), "p".repeat(300)));
        let buckets = (0..MOST_BUCKETS).map(|n| Bucket::Quota(name(n), model(), Dimension::Rpm));
        let purses: Vec<_> = buckets.map(|bucket| pair.holders.purse(&bucket, now)).collect();
        let mut served = vec![0; purses.len()];
        let mut longest = 0;
        for _ in 0..300 {
            pair.ms += 100;
            let now = Mono::from_ms(pair.ms);
            for (purse, served) in purses.iter().zip(&mut served) {
                *served += u64::from(purse.draw(1, now).is_ok());
            }
            longest = longest.max(pair.say(now));
        }
        assert!((500_000..1_000_000).contains(&longest), "{longest} bytes");
        assert!(served.iter().all(|served| *served > 20), "{served:?}");
    }

    #[test]
    fn what_finds_no_room_is_never_leased_and_passes_nobody() {
        let mut pair = Pair::new();
        let now = Mono::from_ms(pair.ms);
        let long = Bucket::Quota(ProjectId::new("p"), Model::new("m".repeat(1_000)), Dimension::Rpm);
        let long = pair.holders.purse(&long, now);
        let all: Vec<_> =
            (0..MOST_BUCKETS * MOST_HOLDERS).map(|n| pair.holders.purse(&bucket(n), now)).collect();
        let beyond = pair.holders.purse(&bucket(all.len()), now);
        assert_eq!(pair.holders.refused(), 2);
        for _ in 0..2 {
            let now = Mono::from_ms(pair.ms);
            assert!(long.draw(1, now).is_err() && beyond.draw(1, now).is_err());
            let _ = all[0].draw(1, now);
            pair.talk();
        }
        let now = Mono::from_ms(pair.ms);
        assert!(all[0].in_hand(now) > 0);
        assert_eq!((long.in_hand(now), beyond.in_hand(now)), (0, 0));
    }

    #[test]
    fn a_bucket_stays_with_its_holder_and_room_that_is_free_is_used() {
        let mut pair = Pair::new();
        let now = Mono::from_ms(0);
        let first = pair.holders.purse(&bucket(0), now);
        let rest: Vec<_> = (1..=MOST_BUCKETS).map(|n| pair.holders.purse(&bucket(n), now)).collect();
        assert_eq!(pair.holders.all.len(), 2);
        assert!(Arc::ptr_eq(&first, &pair.holders.purse(&bucket(0), now)));
        drop(rest);
        let later = now.plus(std::time::Duration::from_hours(1));
        pair.holders.forget_idle(later);
        let _another = pair.holders.purse(&bucket(9_999), later);
        assert_eq!(pair.holders.all.iter().map(Holder::buckets).collect::<Vec<_>>(), [2, 0]);
    }

    /// Clients can invent more models than there is room for; when they are forgotten, others get their place.
    #[test]
    fn whoever_found_no_room_finds_it_when_others_are_forgotten() {
        let mut pair = Pair::new();
        let start = Mono::from_ms(pair.ms);
        for n in 0..MOST_HOLDERS * MOST_BUCKETS {
            let invented = Model::new(format!("invented-{n}"));
            pair.holders.purse(&Bucket::Quota(ProjectId::new("p"), invented, Dimension::Rpm), start);
        }
        let late = pair.holders.purse(&bucket(0), start);
        assert_eq!((pair.holders.refused(), pair.holders.has_room_again()), (1, false));
        drop(late.draw(1, start));
        pair.ms += 180_000;
        let now = Mono::from_ms(pair.ms);
        pair.holders.forget_idle(now);
        assert!(pair.holders.has_room_again());
        let purse = pair.holders.purse(&bucket(0), now);
        assert_eq!((pair.holders.refused(), pair.holders.has_room_again()), (0, false));
        drop(purse.draw(1, now));
        pair.talk();
        assert!(purse.draw(1, Mono::from_ms(pair.ms)).is_ok());
    }
}
