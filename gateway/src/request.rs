//! From an HTTP request to a [`Call`]: who asks, for what, with which body.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{ALLOW, CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use keyfleet_core::id::{Model, Resource};
use keyfleet_core::quota::holder::Empty;
use keyfleet_core::select::mix;
use keyfleet_service::clock;
use keyfleet_service::config::{IpNet, SessionAffinity};
use std::hash::{BuildHasher as _, Hasher as _};

use crate::answer::Expected;
use crate::api::{self, Way};
use crate::auth::{self, Caller};
use crate::budget::{self, Limits};
use crate::call::{Call, Kind, ModelAt, Payload, Surface};
use crate::error::{Fault, Party, Retry};
use crate::limits;
use crate::live::Live;
use crate::pool::{LEASE_RETRY, is_combined};
use crate::skim::{self, Skim};
use crate::sse::UsageWatch;
use crate::trace::{self, Trace};
use crate::trail::Trail;
use crate::{Worker, heartbeat, pipeline, upload, upstream};

/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 128;
/// Uploads begin with a small description, which is worth holding: it can be sent again.
const MAX_UPLOAD_START: usize = 64 * 1024;

/// The address of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Everything that is not ours to answer goes upstream.
pub(crate) async fn handle(State(worker): State<Worker>, request: Request) -> Response {
    let live = worker.app.pool.live();
    let mut trail = Trail::new(worker.app.clone(), request_id(request.headers()));
    trail.trace = Trace::begin(&request);
    if request.method() == Method::OPTIONS {
        return allowed(trail);
    }
    let Some(way) = api::way(request.uri(), request.headers()) else {
        let surface =
            if request.headers().contains_key("x-goog-api-key") { Surface::Native } else { Surface::Compat };
        let fault = Fault::new(
            StatusCode::NOT_FOUND,
            "No API has this path. OpenAI clients use the base URL http://HOST/v1, Gemini clients http://HOST.",
        );
        return refuse(&fault, surface, trail);
    };
    let surface = way.surface;
    trail.surface = surface;
    trail.path.clone_from(&way.path);
    let prepared = tokio::select! {
        biased;
        prepared = prepare(&worker, &live, way, request, &mut trail) => prepared,
        () = worker.app.hard.cancelled() => Err(Fault::shutting_down()),
    };
    trail.trace.admitted();
    match prepared {
        Ok(call) => match live.config.server.stream_heartbeat.filter(|_| call.expects_events()) {
            None => pipeline::answer(&worker, call, live, trail).await,
            Some(interval) => {
                let known = heartbeat::Early::of(&call, &trail);
                let page = async move { pipeline::answer(&worker, call, live, trail).await };
                heartbeat::with(Box::pin(page), interval, known).await
            }
        },
        Err(fault) => refuse(&fault, surface, trail),
    }
}

/// Answers with an error of our own.
pub(crate) fn refuse(fault: &Fault, surface: Surface, mut trail: Trail) -> Response {
    trail.refused(fault);
    let mut response = fault.respond(surface);
    pipeline::mark(response.headers_mut(), &trail);
    response
}

/// What may be asked is known here: that needs no token and costs no key.
fn allowed(mut trail: Trail) -> Response {
    trail.status = StatusCode::NO_CONTENT;
    trail.party = Party::Nobody;
    let mut response = Response::default();
    *response.status_mut() = trail.status;
    let methods = ALLOWED.map(|method| method.as_str().to_owned()).join(", ");
    if let Ok(methods) = HeaderValue::from_str(&methods) {
        response.headers_mut().insert(ALLOW, methods);
    }
    pipeline::mark(response.headers_mut(), &trail);
    response
}

async fn prepare(
    worker: &Worker,
    live: &Live,
    way: Way,
    request: Request,
    trail: &mut Trail,
) -> Result<Call, Fault> {
    let (head, body) = request.into_parts();
    let peer = head.extensions.get::<Peer>().map(|peer| peer.0.ip());
    let query = head.uri.query().unwrap_or_default();
    let caller = identify(worker, live, &way.path, &head.headers, query).await?;
    trail.client = caller.name.clone();
    let patience = admit(worker, live, &caller, &head.headers, peer).await?;
    let kind = match way.surface {
        Surface::Compat => api::openai::kind(&head.method, &way.path),
        Surface::Native => Kind::Other,
    };
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let server = &live.config.server;
    let limits =
        Limits { body: server.max_body_bytes, total: server.max_buffered_bytes, idle: server.idle_timeout };
    let starts_upload = head.headers.get("x-goog-upload-command").is_some_and(|command| command == "start")
        && announced.is_some_and(|bytes| bytes <= MAX_UPLOAD_START);
    let payload = if way.path.starts_with("upload/") && !starts_upload {
        Payload::Stream(Some(body))
    } else {
        let read = budget::read(body, announced, limits, &worker.app.budget).await;
        let (bytes, held) = read.map_err(|why| Fault::body_refused(why, limits.body))?;
        Payload::Held(bytes, held)
    };
    let mut call = Call {
        surface: way.surface,
        kind,
        path: way.path,
        query: without_credentials(query),
        headers: upstream::forwarded(&head.headers),
        payload,
        model: Model::new(""),
        quota: "",
        model_at: ModelAt::Nowhere,
        not_stored: false,
        stream: false,
        top_p_at: None,
        resources: Vec::new(),
        session: None,
        patience,
        own_base: own_base(live, &head, peer),
        method: head.method,
    };
    if live.config.telemetry.propagate_upstream
        && let Some(state) = trace::state(&head.headers).and_then(|state| HeaderValue::try_from(state).ok())
    {
        call.headers.insert(trace::STATE_HEADER, state);
    }
    understand(&mut call, live, &head.headers, &caller);
    if may_be_rewritten(&call, live)
        && let Payload::Held(bytes, held) = &mut call.payload
    {
        held.grow(bytes.len(), limits.total).map_err(|why| Fault::body_refused(why, limits.body))?;
    }
    trail.model.clear();
    trail.model.push_str(call.model.as_str());
    trail.stream = call.stream;
    trail.usage = Expected::of(&call).spends().then(UsageWatch::default);
    Ok(call)
}

/// Who asks, if it may.
async fn identify(
    worker: &Worker,
    live: &Live,
    path: &str,
    headers: &HeaderMap,
    query: &str,
) -> Result<Caller, Fault> {
    if let Some(caller) = auth::caller(&live.config.server.clients, headers, query) {
        return Ok(caller);
    }
    // The upload's id is its capability: Google's clients send nothing else with it.
    let continues = path.starts_with("upload/")
        && headers.get("x-goog-upload-command").is_some_and(|command| command != "start");
    let begun = upload::id(query).filter(|_| continues).map(|id| [Resource::new(upload::resource(id))]);
    if let Some(begun) = begun
        && pipeline::owner(worker, &begun).await.is_some()
    {
        return Ok(Caller { name: Arc::from("upload"), client: None });
    }
    Err(Fault::new(
        StatusCode::UNAUTHORIZED,
        "This token is not one of the gateway's clients. Send one as Authorization: Bearer, x-goog-api-key or ?key=.",
    ))
}

/// Counts the request against the caller's limit. What is left of the time that it may wait for leases.
async fn admit(
    worker: &Worker,
    live: &Live,
    caller: &Caller,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Result<Duration, Fault> {
    let address = peer.map(|peer| client_address(&live.config.server.trusted_proxies, headers, peer));
    let Some(admitted) = limits::admit(live, &worker.app.pool.quota, caller, address).await else {
        return Ok(live.config.quota.lease_wait);
    };
    worker.app.metrics.limited(caller.client.is_some(), admitted.is_ok());
    let (message, wait, party) = match admitted {
        Ok(patience) => return Ok(patience),
        Err(Empty::Spent(until)) => {
            ("The gateway's own limit for this client is reached.", until.since(clock::mono()), Party::Client)
        }
        Err(Empty::Cold) => (
            "The gateway's own limit for this client is kept by the coordinator, which does not answer in time.",
            LEASE_RETRY,
            Party::Keyfleet,
        ),
    };
    let wait = wait.max(Duration::from_millis(1));
    Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, message).with_retry(Retry::After(wait)).by(party))
}

/// Fills in what path and body say.
fn understand(call: &mut Call, live: &Live, headers: &HeaderMap, caller: &Caller) {
    let found = match &call.payload {
        Payload::Held(body, _) => skim::skim(body),
        Payload::Stream(_) => Skim::default(),
    };
    if call.surface == Surface::Native {
        let asked = api::gemini::asked(&call.method, &call.path);
        call.kind = asked.kind;
        call.model = asked.model;
        call.model_at = asked.model_at;
        call.quota = asked.quota;
        call.stream = asked.stream || found.stream;
        call.resources.extend(asked.resource);
        // Of what else can be made, everything is stored, whatever the request says.
        call.not_stored = found.not_stored && api::interactions::has_path(&call.path);
    } else {
        call.stream = found.stream;
    }
    if let Payload::Held(body, _) = &call.payload {
        if call.model_at == ModelAt::Nowhere && found.model.is_some() {
            (call.model, call.model_at) = api::openai::model(body, &found);
        }
        if call.path == "chat/completions"
            && live.config.server.top_p.is_some()
            && !found.top_p
            && found.model.is_some()
        {
            call.top_p_at = found.after_brace;
        }
        let text = |at: &std::ops::Range<usize>| std::str::from_utf8(&body[at.clone()]).ok();
        call.resources.extend(found.references.iter().cloned());
        let previous = found.previous_interaction.as_ref().and_then(text);
        call.resources.extend(previous.map(|id| Resource::new(format!("interactions/{id}"))));
    }
    if let Some(id) = upload::id(&call.query) {
        call.resources.push(Resource::new(upload::resource(id)));
    }
    if call.kind == Kind::Create && call.model.as_str().is_empty() {
        // A project that can store nothing more still has what it holds.
        call.quota = "store";
    }
    call.session = session(call, &found, live.config.server.session_affinity, headers, caller);
}

/// Whether a copy of the body may be sent in its place.
fn may_be_rewritten(call: &Call, live: &Live) -> bool {
    let name = call.model.as_str();
    let has_other_names = || {
        live.config.fallbacks.contains_key(name)
            || live.config.groups.iter().any(|group| group.model_aliases.contains_key(name))
    };
    call.top_p_at.is_some() || matches!(call.model_at, ModelAt::Body(_)) && has_other_names()
}

/// What keeps requests together, if anything does.
fn session(
    call: &Call,
    found: &Skim,
    affinity: SessionAffinity,
    headers: &HeaderMap,
    caller: &Caller,
) -> Option<u64> {
    let named = headers.get("x-keyfleet-session").map(HeaderValue::as_bytes);
    let together = match call.kind {
        // What refers to nothing, and is not needed together with anything, may be made in any project.
        Kind::Create => named.is_some() || !call.resources.is_empty() || is_combined(&call.path),
        _ => skim::names_a_collection(&call.path),
    };
    if together {
        // What a client stores should be together, so that one request can refer to all of it.
        return Some(hash(named.unwrap_or(caller.name.as_bytes())));
    }
    match (affinity, named, &call.payload, &found.opening) {
        (SessionAffinity::Off, ..) => None,
        (_, Some(name), ..) => Some(hash(name)),
        (SessionAffinity::Conversation, None, Payload::Held(body, _), Some(opening)) => {
            Some(hash(&body[opening.clone()]) ^ hash(call.model.as_str().as_bytes()))
        }
        _ => None,
    }
}

/// The same in every replica and every run.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(0x6b65_7966).build_hasher();
    hasher.write(bytes);
    mix(hasher.finish())
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    match given.filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID) {
        Some(id) => id.to_owned(),
        None => uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid().to_string(),
    }
}

fn without_credentials(query: &str) -> String {
    let is_credential = |pair: &&str| pair.starts_with("key=") || pair.starts_with("access_token=");
    if !query.split('&').any(|pair| is_credential(&pair)) {
        return query.to_owned();
    }
    query.split('&').filter(|pair| !is_credential(pair)).collect::<Vec<_>>().join("&")
}

/// The address that limits count by: the connection's, or what a trusted proxy says of it.
fn client_address(trusted: &[IpNet], headers: &HeaderMap, peer: IpAddr) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(address));
    if !is_trusted(peer) {
        return peer;
    }
    let listed = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let listed: Vec<_> = listed.flat_map(|value| value.split(',')).map(hop).collect();
    // What is no address ends the search: whatever stands before it may be the client's invention.
    let nearest = listed.into_iter().rev().find(|hop| !hop.is_some_and(is_trusted));
    nearest.flatten().unwrap_or(peer)
}

/// An entry of `X-Forwarded-For`: an address, to which some proxies add the port.
fn hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

fn own_base(live: &Live, head: &Parts, peer: Option<IpAddr>) -> String {
    let trusts = |peer: IpAddr| live.config.server.trusted_proxies.iter().any(|net| net.contains(peer));
    let forwarded = |name: &str| {
        let value = head.headers.get(name).filter(|_| peer.is_some_and(trusts));
        value.and_then(|value| value.to_str().ok())
    };
    let scheme =
        forwarded("x-forwarded-proto").filter(|scheme| matches!(*scheme, "http" | "https")).unwrap_or("http");
    let host = forwarded("x-forwarded-host")
        .or_else(|| head.headers.get(HOST).and_then(|value| value.to_str().ok()))
        // What HTTP/2 has in its place.
        .or_else(|| head.uri.authority().map(Authority::as_str));
    [scheme, "://", host.unwrap_or("localhost")].concat()
}

/// The methods of both surfaces.
pub(crate) const ALLOWED: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_query_and_nothing_else_does() {
        assert_eq!(without_credentials("alt=sse&key=abc"), "alt=sse");
        assert_eq!(without_credentials("key=abc&alt=sse&access_token=x&pageSize=1"), "alt=sse&pageSize=1");
        assert_eq!(without_credentials("monkey=1&alt=sse"), "monkey=1&alt=sse");
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let trusted = [IpNet { addr: "10.0.0.0".parse().unwrap(), prefix: 8 }];
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6, 1.2.3.4".parse().unwrap());
        headers.append("x-forwarded-for", "10.1.1.1".parse().unwrap());
        let of = |peer: &str| client_address(&trusted, &headers, peer.parse().unwrap()).to_string();
        assert_eq!(of("10.9.9.9"), "1.2.3.4", "the nearest hop that is not our own proxy");
        assert_eq!(of("8.8.8.8"), "8.8.8.8");
        for (hops, seen) in [
            ("6.6.6.6, 1.2.3.4:5678", "1.2.3.4"),
            ("6.6.6.6, [2001:db8::1]:5678, 10.1.1.1:80", "2001:db8::1"),
            ("6.6.6.6, unknown, 10.1.1.1", "10.9.9.9"),
            ("10.1.1.1", "10.9.9.9"),
        ] {
            let headers = HeaderMap::from_iter([("x-forwarded-for".parse().unwrap(), hops.parse().unwrap())]);
            let seen_by = client_address(&trusted, &headers, "10.9.9.9".parse().unwrap());
            assert_eq!(seen_by.to_string(), seen, "{hops}");
        }
    }
}
