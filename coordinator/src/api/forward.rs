//! From a standby to the leader: one hop, with the same credential.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, StatusCode, Uri};
use reqwest::Url;

use super::{Api, refuse};
use crate::shown::Said;

/// For whom a standby hands something on. Whoever gets it does not hand it on again.
const FOR: HeaderName = HeaderName::from_static("x-keyfleet-forwarded-for");
/// How long the leader may take: more than it waits itself.
const PATIENCE: Duration = Duration::from_secs(4);
/// The most that a leader says.
const MAX_ANSWER: usize = 64 * 1024;

/// Who asks, for the audit; a standby says for whom.
pub(super) fn asker(peer: SocketAddr, headers: &HeaderMap) -> String {
    let of =
        headers.get(FOR).map(|value| value.to_str().ok().and_then(|text| text.parse::<SocketAddr>().ok()));
    match of {
        None => format!("api {peer}"),
        Some(None) => format!("api {peer} for somebody"),
        Some(Some(of)) => format!("api {peer} for {of}"),
    }
}

/// Has the leader do it. Where that cannot be reached, says who it is.
pub(super) async fn forward(
    api: &Api,
    leader: &str,
    uri: &Uri,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Response {
    let named = |why: &str| {
        let error = format!("this coordinator does not lead, and {why}");
        let said = Said { error: Some(error), leader: Some(leader.to_owned()), done: None };
        (StatusCode::CONFLICT, Json(said)).into_response()
    };
    if headers.contains_key(FOR) {
        return named("was asked by another that does not lead either");
    }
    let Some(url) = url(leader, uri) else { return named("the leader told no address") };
    let mut request = api.client.post(url).timeout(PATIENCE).header(FOR, peer.to_string());
    if let Some(credential) = headers.get(AUTHORIZATION) {
        request = request.header(AUTHORIZATION, credential);
    }
    let mut answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return named("the leader is not reached from here"),
        Err(_) => {
            return refuse(
                StatusCode::GATEWAY_TIMEOUT,
                "the leader did not answer in time; it may have been done or not",
            );
        }
    };
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        if body.len() + chunk.len() > MAX_ANSWER {
            return refuse(StatusCode::BAD_GATEWAY, "the leader's answer is too long");
        }
        body.extend_from_slice(&chunk);
    }
    match serde_json::from_slice::<Said>(&body) {
        Ok(said) => (status, Json(said)).into_response(),
        Err(_) => refuse(StatusCode::BAD_GATEWAY, "the leader's answer is none of ours"),
    }
}

/// The same, at the leader. What a claim tells as an address is a host and a port, and nothing more.
fn url(leader: &str, uri: &Uri) -> Option<Url> {
    let address: SocketAddr = leader.parse().ok()?;
    Url::parse(&format!("http://{address}{}", uri.path_and_query()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_is_asked() {
        let uri = Uri::from_static("/api/v1/keys/a%2Fb/block?minutes=5");
        let asked = |leader| url(leader, &uri).map(String::from);
        assert_eq!(asked("10.0.0.1:4807").unwrap(), "http://10.0.0.1:4807/api/v1/keys/a%2Fb/block?minutes=5");
        assert!(asked("[::1]:4807").is_some());
        for wrong in ["", "host", "u:p@10.0.0.1:1", "10.0.0.1:1/x"] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_audit_tells_for_whom_a_standby_asks() {
        let peer = "10.0.0.1:1".parse().unwrap();
        assert_eq!(asker(peer, &HeaderMap::new()), "api 10.0.0.1:1");
        let said = |text: &str| asker(peer, &[(FOR, text.parse().unwrap())].into_iter().collect());
        assert_eq!(said("10.0.0.2:7"), "api 10.0.0.1:1 for 10.0.0.2:7");
        assert_eq!(said("somebody else, honestly"), "api 10.0.0.1:1 for somebody");
    }
}
