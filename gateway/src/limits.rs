//! How often clients may ask.
//!
//! A named client has one limit for all replicas together: each request draws from a lease, like any other quota. What
//! each replica does by itself is to spread a client's requests, where a burst is to be smaller than what a minute
//! allows, and to count those without a name, by their address.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use keyfleet_core::quota::holder::Empty;
use keyfleet_service::clock;
use keyfleet_service::config::RateLimit;

use crate::auth::Caller;
use crate::live::Live;
use crate::pool;

/// The most addresses that are counted each for itself. Beyond them addresses share a limit, a group of them each.
const MAX_ADDRESSES: usize = 100_000;
/// How many groups.
const GROUPS: u64 = 1_024;
/// After so many requests it is looked at how many addresses there are.
const LOOK_EVERY: u64 = 1_024;

/// What this replica counts by itself.
pub(crate) struct Limiter {
    addresses: DefaultKeyedRateLimiter<Counted>,
    /// The requests of named clients, if they are to be spread over the minute.
    spread: Option<DefaultKeyedRateLimiter<Arc<str>>>,
    room: usize,
    full: AtomicBool,
    checks: AtomicU64,
    groups: RandomState,
    clock: DefaultClock,
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counted {
    Address(IpAddr),
    Group(u64),
}

/// Counts a request of a caller, or says why it may not come in now. Without a limit there is nothing to count. A request
/// that was let in may wait for so long for other leases.
pub(crate) async fn admit(
    live: &Live,
    quota: &pool::Quota,
    caller: &Caller,
    address: Option<IpAddr>,
) -> Option<Result<Duration, Empty>> {
    let limiter = live.limiter.as_ref()?;
    let patience = live.config.quota.lease_wait;
    let Some(slot) = caller.client.and_then(|client| live.allowances.get(client)) else {
        return Some(limiter.check(address).map(|()| patience));
    };
    if let Err(refusal) = limiter.spread(&caller.name) {
        return Some(Err(refusal));
    }
    Some(quota.admit(slot, patience).await)
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit) -> Option<Self> {
        Self::with_room(limit, MAX_ADDRESSES)
    }

    fn with_room(limit: RateLimit, room: usize) -> Option<Self> {
        let rate = NonZeroU32::new(limit.requests_per_minute)?;
        let burst = NonZeroU32::new(limit.burst_size).unwrap_or(rate);
        let quota = Quota::per_minute(rate).allow_burst(burst);
        Some(Self {
            addresses: RateLimiter::keyed(quota),
            spread: (burst < rate).then(|| RateLimiter::keyed(quota)),
            room,
            full: AtomicBool::new(false),
            checks: AtomicU64::new(0),
            groups: RandomState::new(),
            clock: DefaultClock::default(),
        })
    }

    /// Counts a request of one without a name.
    fn check(&self, address: Option<IpAddr>) -> Result<(), Empty> {
        if self.checks.fetch_add(1, Relaxed).is_multiple_of(LOOK_EVERY) {
            self.make_room();
        }
        let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let counted = if self.full.load(Relaxed) {
            Counted::Group(self.groups.hash_one(address) % GROUPS)
        } else {
            Counted::Address(address)
        };
        self.addresses.check_key(&counted).map_err(|refusal| until(refusal.wait_time_from(self.clock.now())))
    }

    /// Counts a request of a named client, which has a limit of its own.
    fn spread(&self, name: &Arc<str>) -> Result<(), Empty> {
        let Some(spread) = &self.spread else { return Ok(()) };
        spread.check_key(name).map_err(|refusal| until(refusal.wait_time_from(self.clock.now())))
    }

    /// Forgets addresses that have not called for long.
    fn make_room(&self) {
        if self.addresses.len() >= self.room {
            self.addresses.retain_recent();
        }
        self.full.store(self.addresses.len() >= self.room, Relaxed);
    }
}

fn until(wait: Duration) -> Empty {
    Empty::Spent(clock::mono().plus(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(limiter: &Limiter, number: u32) -> Result<(), Empty> {
        limiter.check(Some(IpAddr::V4(Ipv4Addr::from_bits(number))))
    }

    #[test]
    fn a_burst_passes_and_the_next_one_is_told_when_to_come_back() {
        let limiter = Limiter::new(RateLimit { requests_per_minute: 1, burst_size: 3 }).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&limiter, 1), Ok(()));
        }
        let Err(Empty::Spent(until)) = ask(&limiter, 1) else { panic!("it passes") };
        let wait = until.since(clock::mono());
        assert!((50..=60).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(ask(&limiter, 2), Ok(()));
    }

    #[test]
    fn named_clients_are_spread_only_where_a_burst_is_less_than_a_minute_allows() {
        let client = Arc::from("a");
        let even = Limiter::new(RateLimit { requests_per_minute: 60, burst_size: 2 }).unwrap();
        let spread: Vec<_> = (0..3).map(|_| even.spread(&client).is_ok()).collect();
        assert_eq!(spread, [true, true, false]);
        let at_once = Limiter::new(RateLimit { requests_per_minute: 2, burst_size: 2 }).unwrap();
        assert!((0..3).all(|_| at_once.spread(&client).is_ok()), "the lease limits it");
    }

    #[test]
    fn addresses_are_bounded_and_none_of_them_is_free_of_a_limit() {
        let limiter = Limiter::with_room(RateLimit { requests_per_minute: 1, burst_size: 1 }, 2_000).unwrap();
        for number in 0..20_000 {
            let _ = ask(&limiter, number);
        }
        let most = 2_000 + usize::try_from(LOOK_EVERY + GROUPS).unwrap();
        assert!(limiter.addresses.len() <= most, "{}", limiter.addresses.len());
        assert!(ask(&limiter, 50_000).is_err(), "its group has called already");
    }
}
