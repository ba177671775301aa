//! Who calls: a client's token, compared in constant time; and the limits of clients.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use keyfleet_service::config::{Client, RateLimit};
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq as _;

use crate::api::is_bearer;

/// The most clients and addresses that a limit is kept for.
const MAX_TRACKED: usize = 100_000;

/// Who a request comes from.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    /// It is one of `server.clients`; limits count by name then, else by address.
    pub(crate) named: bool,
}

/// The caller of a request; `None` if there are clients and it is none of them.
pub(crate) fn caller(clients: &[Client], headers: &HeaderMap, query: &str) -> Option<Caller> {
    if clients.is_empty() {
        return Some(Caller { name: Arc::from("anonymous"), named: false });
    }
    let bearer = headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
    let bearer = bearer.filter(|value| is_bearer(value)).map(|value| value[7..].trim_ascii().to_vec());
    let header = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
    let parameter = query.split('&').find_map(|pair| pair.strip_prefix("key="));
    let parameter = parameter.map(|value| percent_decode_str(value).collect());
    let presented = [bearer, header("x-goog-api-key"), header("x-api-key"), parameter];
    let mut found = None;
    for token in presented.into_iter().flatten() {
        // Every client is compared, so that the time says nothing about which one it was.
        for client in clients {
            if bool::from(client.token.expose().as_bytes().ct_eq(&token)) {
                found = Some(client);
            }
        }
    }
    found.map(|client| Caller { name: Arc::from(client.name.as_str()), named: true })
}

/// The limit per client, or per address of those that have no name.
pub(crate) struct Limiter {
    buckets: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit) -> Option<Self> {
        let rate = NonZeroU32::new(limit.requests_per_minute)?;
        let burst = NonZeroU32::new(limit.burst_size).unwrap_or(rate);
        let quota = Quota::per_minute(rate).allow_burst(burst);
        Some(Self { buckets: RateLimiter::keyed(quota), clock: DefaultClock::default() })
    }

    /// Counts a request; `Err` says when the next one may come.
    pub(crate) fn check(&self, caller: &Caller, address: Option<IpAddr>) -> Result<(), Duration> {
        let key = match address {
            Some(address) if !caller.named => address.to_string(),
            _ => caller.name.to_string(),
        };
        if self.buckets.len() > MAX_TRACKED {
            self.buckets.retain_recent();
        }
        self.buckets.check_key(&key).map_err(|refusal| refusal.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyfleet_service::config::Secret;

    fn clients() -> Vec<Client> {
        ["alpha", "beta"]
            .map(|name| Client { name: name.to_owned(), token: Secret::new(format!("{name}+token")) })
            .into()
    }

    fn name(headers: &[(&'static str, &str)], query: &str) -> Option<String> {
        let headers =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        caller(&clients(), &headers.collect(), query).map(|caller| caller.name.to_string())
    }

    #[test]
    fn a_token_is_taken_from_wherever_clients_put_it() {
        assert_eq!(name(&[("authorization", "Bearer alpha+token")], "").as_deref(), Some("alpha"));
        assert_eq!(name(&[("authorization", "bearer  beta+token ")], "").as_deref(), Some("beta"));
        assert_eq!(name(&[("x-goog-api-key", "beta+token")], "").as_deref(), Some("beta"));
        assert_eq!(name(&[], "alt=sse&key=alpha%2Btoken").as_deref(), Some("alpha"));
        for (headers, query) in [
            (vec![], ""),
            (vec![("authorization", "Bearer alpha+toke")], ""),
            (vec![("authorization", "Bearer ")], ""),
            (vec![("authorization", "alpha+token")], ""),
            (vec![("x-goog-api-key", "alpha+token2")], "key="),
        ] {
            assert_eq!(name(&headers, query), None, "{headers:?} {query}");
        }
    }

    #[test]
    fn without_clients_anybody_may_call() {
        assert!(!caller(&[], &HeaderMap::new(), "").unwrap().named);
    }

    #[test]
    fn a_burst_passes_and_the_next_one_is_told_when_to_come_back() {
        let limiter = Limiter::new(RateLimit { requests_per_minute: 1, burst_size: 3 }).unwrap();
        let caller = Caller { name: Arc::from("a"), named: true };
        for _ in 0..3 {
            assert!(limiter.check(&caller, None).is_ok());
        }
        let wait = limiter.check(&caller, None).unwrap_err();
        assert!((50..=60).contains(&wait.as_secs()), "{wait:?}");
        let other = Caller { name: Arc::from("b"), named: true };
        assert!(limiter.check(&other, None).is_ok());
    }
}
