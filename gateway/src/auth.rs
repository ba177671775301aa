//! Who calls: a client's token, compared in constant time.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use keyfleet_service::config::Client;
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq as _;

use crate::api::is_bearer;

/// Who a request comes from.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) name: Arc<str>,
    /// Its place in `server.clients`; without one, limits count by address.
    pub(crate) client: Option<usize>,
}

/// The caller of a request; `None` if there are clients and it is none of them.
pub(crate) fn caller(clients: &[Client], headers: &HeaderMap, query: &str) -> Option<Caller> {
    if clients.is_empty() {
        return Some(Caller { name: Arc::from("anonymous"), client: None });
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
        for (place, client) in clients.iter().enumerate() {
            if bool::from(client.token.expose().as_bytes().ct_eq(&token)) {
                found = Some((place, client));
            }
        }
    }
    found.map(|(place, client)| Caller { name: Arc::from(client.name.as_str()), client: Some(place) })
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
        assert_eq!(caller(&[], &HeaderMap::new(), "").unwrap().client, None);
    }
}
