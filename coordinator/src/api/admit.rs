//! Who may use `/api/v1`: whoever knows `server.admin_token`; without one, whoever is on this machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, OriginalUri, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, StatusCode};
use keyfleet_service::config::Secret;
use subtle::ConstantTimeEq as _;

use super::{Api, refuse};

pub(super) async fn admit(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    OriginalUri(uri): OriginalUri,
    request: Request,
    next: Next,
) -> Response {
    let token = api.config.borrow().server.admin_token.clone();
    match refusal(token.as_ref(), peer.ip(), request.headers()) {
        None => next.run(request).await,
        Some((status, fix)) => {
            tracing::warn!(%peer, path = uri.path(), status = status.as_u16(), "refused: {fix}");
            refuse(status, fix)
        }
    }
}

fn refusal(token: Option<&Secret>, peer: IpAddr, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let Some(token) = token else {
        if !peer.to_canonical().is_loopback() {
            return Some((StatusCode::FORBIDDEN, "set server.admin_token to use this from other machines"));
        }
        // A page in a browser on this machine comes from this machine too.
        let by_browser = headers.contains_key(ORIGIN) || !is_local(headers.get(HOST));
        return by_browser.then_some((
            StatusCode::FORBIDDEN,
            "set server.admin_token to use this from a browser or by a name",
        ));
    };
    let expected = format!("Bearer {}", token.expose());
    let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let matches = bool::from(expected.as_bytes().ct_eq(given));
    (!matches).then_some((StatusCode::UNAUTHORIZED, "send Authorization: Bearer with server.admin_token"))
}

/// Whether a `Host` can only mean this machine, whoever is asked for names.
fn is_local(host: Option<&HeaderValue>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((bare, _)) => bare,
        None => host.split(':').next().unwrap_or(host),
    };
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn refused(token: Option<&str>, peer: &str, headers: &[(HeaderName, &str)]) -> Option<u16> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let token = token.map(Secret::new);
        refusal(token.as_ref(), peer.parse().unwrap(), &headers).map(|(status, _)| status.as_u16())
    }

    #[test]
    fn a_token_is_asked_of_everybody() {
        let bearer = |value| [(AUTHORIZATION, value)];
        assert_eq!(refused(Some("t0ken"), "10.0.0.1", &bearer("Bearer t0ken")), None);
        for wrong in ["Bearer t0ke", "Bearer t0ken ", "t0ken", "Basic t0ken"] {
            assert_eq!(refused(Some("t0ken"), "127.0.0.1", &bearer(wrong)), Some(401), "{wrong}");
        }
        assert_eq!(refused(Some("t0ken"), "127.0.0.1", &[(HOST, "localhost")]), Some(401));
    }

    #[test]
    fn without_one_only_this_machine_is_served_and_no_page_in_its_browser() {
        for host in ["localhost:4807", "127.0.0.1:4807", "[::1]:4807", "LOCALHOST"] {
            assert_eq!(refused(None, "127.0.0.1", &[(HOST, host)]), None, "{host}");
        }
        assert_eq!(refused(None, "::ffff:127.0.0.1", &[(HOST, "localhost")]), None);
        assert_eq!(refused(None, "10.0.0.1", &[(HOST, "localhost")]), Some(403));
        assert_eq!(refused(None, "127.0.0.1", &[(HOST, "rebound.example:4807")]), Some(403));
        assert_eq!(refused(None, "127.0.0.1", &[]), Some(403));
        let page = [(HOST, "localhost"), (ORIGIN, "https://page.example")];
        assert_eq!(refused(None, "127.0.0.1", &page), Some(403));
    }
}
