//! The HTTP client: builds one request, sends it once, times out. It knows no policy.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderName};
use http::uri::{Parts, PathAndQuery};
use http::{HeaderMap, HeaderValue, Uri};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use keyfleet_core::id::Model;
use keyfleet_core::outcome::Cause;
use keyfleet_core::time::Mono;
use keyfleet_core::trace;
use keyfleet_service::clock;
use keyfleet_service::config::AuthMode;

use crate::call::{Call, ModelAt, Payload, Surface};
use crate::live::LiveGroup;
use crate::pool::Permit;
use crate::pool::quota::Spend;

type BoxError = Box<dyn Error + Send + Sync>;

const GOOGLE_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Headers that concern one connection, name the caller, or are ours to set.
const NOT_FORWARDED: [&str; 31] = [
    "host",
    "content-length",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    "proxy-authorization",
    "proxy-authenticate",
    "proxy-connection",
    "authorization",
    "x-goog-api-key",
    "x-api-key",
    "x-goog-user-project",
    "cookie",
    "accept-encoding",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-real-ip",
    "via",
    "x-request-id",
    "traceparent",
    "tracestate",
    "baggage",
    "true-client-ip",
    "cf-connecting-ip",
];

/// The part of a client's headers that goes upstream.
pub(crate) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<&str> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let kept = |name: &HeaderName| {
        let name = name.as_str();
        !NOT_FORWARDED.contains(&name)
            && !name.starts_with("x-stainless-")
            && !name.starts_with("x-keyfleet-")
            && !named.iter().any(|other| other.eq_ignore_ascii_case(name))
    };
    let mut forwarded = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers.iter().filter(|(name, _)| kept(name)) {
        forwarded.append(name, value.clone());
    }
    // What comes back is read on its way through.
    forwarded.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    forwarded
}

/// Sends the call once with the permit's key and waits for the head of the answer, until `deadline`.
pub(crate) async fn send(
    worker: usize,
    permit: &Permit,
    call: &mut Call,
    model: &Model,
    deadline: Mono,
) -> Result<http::Response<Incoming>, Cause> {
    let client = permit.live.client(worker, permit.key().egress).map_err(|error| {
        tracing::error!(%error, "no HTTP client can be made for this way out");
        Cause::Connect
    })?;
    let upload = Arc::new(Upload::default());
    let request = request(permit, call, model, &upload)
        .ok_or_else(|| if permit.spend().lapsed() { Cause::PermitLapsed } else { Cause::BadRequest })?;
    if request.body().is_end_stream() && !permit.spend().board(clock::mono()) {
        return Err(Cause::PermitLapsed);
    }
    let patience = permit.live.config.server.request_timeout;
    let sent = async {
        let mut sent = client.request(request);
        loop {
            // While a body is being sent, the time for the first byte has not begun.
            let until = deadline.max(upload.last_sent().plus(patience));
            match tokio::time::timeout_at(clock::instant(until), &mut sent).await {
                Err(_) if upload.last_sent().plus(patience) > until => {}
                ended => return ended,
            }
        }
    };
    match sent.await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) if permit.spend().lapsed() => Err(Cause::PermitLapsed),
        Ok(Err(_)) if upload.broken.load(Relaxed) => Err(Cause::BadRequest),
        Ok(Err(error)) if error.is_connect() => {
            let (trace_id, span_id) = (permit.trace_id(), permit.span_id());
            tracing::warn!(error = %causes(&error), trace_id, span_id, "the upstream cannot be reached");
            Err(Cause::Connect)
        }
        Ok(Err(_)) => Err(Cause::Reset),
        Err(_) => Err(Cause::Timeout),
    }
}

/// An error with what led to it.
fn causes(error: &dyn Error) -> String {
    let (mut told, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        told = format!("{told}: {cause}");
        next = cause.source();
    }
    told
}

/// A body on its way up: when it last moved, and whether the client broke it off.
#[derive(Default)]
pub(crate) struct Upload {
    sent_at: AtomicU64,
    broken: AtomicBool,
}

impl Upload {
    fn last_sent(&self) -> Mono {
        Mono::from_ms(self.sent_at.load(Relaxed))
    }
}

/// What goes upstream.
pub(crate) enum Outgoing {
    /// Sent only if the quota drawn for it still counts, where there is one.
    Held(Option<Bytes>, Option<Spend>),
    /// Passed on as it comes, and watched.
    Stream(Body, Arc<Upload>),
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Held(body, spend) => {
                let Some(body) = body.take() else { return Poll::Ready(None) };
                let boards = spend.as_ref().is_none_or(|spend| spend.board(clock::mono()));
                Poll::Ready(Some(if boards {
                    Ok(Frame::data(body))
                } else {
                    Err("the quota for it has lapsed".into())
                }))
            }
            Self::Stream(body, upload) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                upload.sent_at.store(clock::mono().as_ms(), Relaxed);
                upload.broken.fetch_or(matches!(frame, Some(Err(_))), Relaxed);
                Poll::Ready(frame.map(|frame| Ok(frame?)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(body, _) => body.is_none(),
            Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(body, _) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Stream(body, _) => body.size_hint(),
        }
    }
}

fn request(
    permit: &Permit,
    call: &mut Call,
    model: &Model,
    upload: &Arc<Upload>,
) -> Option<http::Request<Outgoing>> {
    let key = permit.key();
    let group = &permit.live.groups[key.group as usize];
    let upstream = permit.live.upstream_model(key.group as usize, model);
    let renamed = (upstream != call.model).then_some(upstream.as_str());
    let uri = uri(group, call, renamed)?;
    let top_p = permit.live.config.server.top_p;
    let body = match &mut call.payload {
        Payload::Held(body, _) if body.is_empty() => Outgoing::Held(None, None),
        Payload::Held(body, _) => {
            let body = edited(body, &call.model_at, renamed, call.top_p_at.zip(top_p));
            // Whatever is counted is looked at once more when there is a connection to send it on.
            Outgoing::Held(Some(body), permit.spend().counts().then(|| permit.spend().clone()))
        }
        Payload::Stream(body) => {
            if !permit.spend().board(clock::mono()) {
                return None;
            }
            Outgoing::Stream(body.take()?, upload.clone())
        }
    };
    let mut request = http::Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = call.headers.clone();
    let bearer = match key.mode {
        AuthMode::Auto => call.surface == Surface::Compat,
        AuthMode::Bearer => true,
        AuthMode::ApiKey => false,
    };
    let (name, value) = if bearer { (AUTHORIZATION, &key.bearer) } else { (GOOGLE_KEY, &key.bare) };
    request.headers_mut().insert(name, value.clone());
    if permit.live.config.telemetry.propagate_upstream
        && let Some(step) = permit.trace
        && let Ok(step) = HeaderValue::try_from(step.to_string())
    {
        request.headers_mut().insert(trace::HEADER, step);
    }
    Some(request)
}

/// Where upstream; `None` if a name in the path cannot be part of one. Only path and query are new: reading the base
/// again would cost more than all else here.
fn uri(group: &LiveGroup, call: &Call, renamed: Option<&str>) -> Option<Uri> {
    let base = if call.surface == Surface::Compat { &group.compat } else { &group.native };
    let mut path = String::with_capacity(base.path.len() + call.path.len() + call.query.len() + 40);
    path.push_str(&base.path);
    match (&call.model_at, renamed) {
        (ModelAt::Path(at), Some(name)) => {
            path.push_str(&call.path[..at.start]);
            path.push_str(name);
            path.push_str(&call.path[at.end..]);
        }
        _ => path.push_str(&call.path),
    }
    if !call.query.is_empty() {
        path.push('?');
        path.push_str(&call.query);
    }
    let mut parts = Parts::default();
    parts.scheme = Some(base.scheme.clone());
    parts.authority = Some(base.authority.clone());
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(Bytes::from(path)).ok()?);
    Uri::from_parts(parts).ok()
}

/// The body with the rewrites that the configuration asks for, and not one byte else changed.
fn edited(body: &Bytes, model_at: &ModelAt, renamed: Option<&str>, top_p: Option<(usize, f64)>) -> Bytes {
    let rename = match (model_at, renamed) {
        (ModelAt::Body(at), Some(name)) => {
            Some((at.clone(), serde_json::to_string(name).unwrap_or_default()))
        }
        _ => None,
    };
    if rename.is_none() && top_p.is_none() {
        return body.clone();
    }
    let mut edited = BytesMut::with_capacity(body.len() + 128);
    let mut from = 0;
    if let Some((at, top_p)) = top_p {
        edited.put_slice(&body[..at]);
        edited.put_slice(format!("\"top_p\":{top_p},").as_bytes());
        from = at;
    }
    if let Some((at, name)) = rename {
        edited.put_slice(&body[from..at.start]);
        edited.put_slice(name.trim_matches('"').as_bytes());
        from = at.end;
    }
    edited.put_slice(&body[from..]);
    edited.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hop_by_hop_headers_stay_here() {
        let mut headers = HeaderMap::new();
        for name in NOT_FORWARDED.iter().chain(&[
            "x-stainless-os",
            "x-keyfleet-session",
            "x-odd",
            "accept",
            "x-server-timeout",
        ]) {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("v"));
        }
        headers.insert("connection", HeaderValue::from_static("close, X-Odd"));
        let forwarded = forwarded(&headers);
        let mut names: Vec<_> = forwarded.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "accept-encoding", "x-server-timeout"]);
        assert_eq!(forwarded["accept-encoding"], "identity");
    }

    #[test]
    fn only_what_is_asked_for_is_rewritten() {
        let body = Bytes::from_static(br#"{ "model":"gpt","n":12345678901234567890 }"#);
        let at = ModelAt::Body(11..14);
        assert_eq!(edited(&body, &at, None, None), body);
        assert_eq!(edited(&body, &at, Some("g\"x"), None), r#"{ "model":"g\"x","n":12345678901234567890 }"#);
        assert_eq!(
            edited(&body, &at, Some("g"), Some((1, 0.5))),
            r#"{"top_p":0.5, "model":"g","n":12345678901234567890 }"#
        );
    }
}
