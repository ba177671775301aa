//! Where spans and metrics arrive: a receiver of OTLP over HTTP that shows them one by one, a real collector to put before
//! it, and a door with a certificate.

mod door;
mod metrics;
mod rotel;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::eventually::eventually;
use crate::figures::Figures;

pub use door::Door;
pub use rotel::Rotel;

const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

/// A span as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// `service.name` of who sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// `internal`, `server`, `client`, `producer` or `consumer`.
    pub kind: &'static str,
    /// The trace, in hexadecimal.
    pub trace: String,
    /// The span itself.
    pub id: String,
    /// The span that it is below of; empty: none.
    pub parent: String,
    /// The W3C `tracestate`.
    pub state: String,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds since the Unix epoch.
    pub end: u64,
    /// What is said about it.
    pub attributes: BTreeMap<String, Value>,
    /// Its events by name, each with its time and what is said about it.
    pub events: Vec<(String, u64, BTreeMap<String, Value>)>,
    /// The spans of other traces that it is about: trace and span.
    pub links: Vec<(String, String)>,
    /// Whether it ended with an error.
    pub failed: bool,
}

impl Span {
    /// One attribute; null if it is not there.
    pub fn get(&self, name: &str) -> Value {
        self.attributes.get(name).cloned().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Arrived {
    spans: Mutex<Vec<Span>>,
    /// The last figures of each service.
    figures: Mutex<BTreeMap<String, Figures>>,
    headers: Mutex<Vec<HeaderMap>>,
    requests: AtomicUsize,
    manner: Manner,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Manner {
    #[default]
    Takes,
    Hangs,
    Refuses,
}

/// A running receiver. Dropping it stops it.
#[derive(Debug)]
pub struct Collector {
    arrived: Arc<Arrived>,
    port: u16,
    serving: JoinHandle<()>,
}

impl Collector {
    /// Starts on any port.
    pub async fn start() -> Self {
        Self::listen(0, Manner::Takes).await
    }

    /// Starts on this port.
    pub async fn start_on(port: u16) -> Self {
        Self::listen(port, Manner::Takes).await
    }

    /// Starts one that refuses whatever it is sent.
    pub async fn start_refusing() -> Self {
        Self::listen(0, Manner::Refuses).await
    }

    /// Starts one that takes connections and requests and never answers.
    pub async fn start_hanging() -> Self {
        Self::listen(0, Manner::Hangs).await
    }

    /// Starts one of those on this port.
    pub async fn start_hanging_on(port: u16) -> Self {
        Self::listen(port, Manner::Hangs).await
    }

    async fn listen(port: u16, manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let arrived = Arc::new(Arrived { manner, ..Arrived::default() });
        let routes = Router::new()
            .route("/v1/traces", post(take))
            .route("/v1/metrics", post(metrics::take))
            .with_state(arrived.clone());
        let serving = tokio::spawn(async move { drop(axum::serve(listener, routes).await) });
        Self { arrived, port, serving }
    }

    /// Its base, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it, so that another can have its port.
    pub async fn stop(mut self) {
        self.serving.abort();
        // An error: it was told to end.
        let _ = (&mut self.serving).await;
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.arrived.spans).clone()
    }

    /// The figures that a service has sent last.
    pub fn figures(&self, service: &str) -> Option<Figures> {
        lock(&self.arrived.figures).get(service).cloned()
    }

    /// The headers of the requests so far.
    pub fn headers(&self) -> Vec<HeaderMap> {
        lock(&self.arrived.headers).clone()
    }

    /// Waits for so many spans that fulfil the condition; all that arrived by then.
    pub async fn saw(&self, count: usize, condition: impl Fn(&Span) -> bool) -> Vec<Span> {
        eventually(&format!("{count} spans arrive"), ARRIVES_WITHIN, || {
            let spans = self.spans();
            let enough = spans.iter().filter(|span| condition(span)).count() >= count;
            async move { enough.then_some(spans) }
        })
        .await
    }

    /// Waits until somebody has asked so often.
    pub async fn asked(&self, times: usize) {
        eventually(&format!("{times} requests arrive"), ARRIVES_WITHIN, || {
            let enough = self.arrived.requests.load(Relaxed) >= times;
            async move { enough.then_some(()) }
        })
        .await;
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(State(arrived): State<Arc<Arrived>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request: ExportTraceServiceRequest = match arrived.accept(headers, &body).await {
        Ok(request) => request,
        Err(status) => return status,
    };
    for of_resource in request.resource_spans {
        let resource =
            attributes(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let service = resource.get("service.name").and_then(Value::as_str).unwrap_or_default();
        let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
        lock(&arrived.spans).extend(spans.map(|one| span(service, one)));
    }
    StatusCode::OK
}

impl Arrived {
    /// What a request says, if this collector takes it.
    async fn accept<M: Message + Default>(&self, headers: HeaderMap, body: &[u8]) -> Result<M, StatusCode> {
        self.requests.fetch_add(1, Relaxed);
        match self.manner {
            Manner::Takes => {}
            Manner::Hangs => std::future::pending().await,
            Manner::Refuses => return Err(StatusCode::FORBIDDEN),
        }
        let is_packed = headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip");
        lock(&self.headers).push(headers);
        let mut plain = Vec::new();
        let plain = if is_packed {
            GzDecoder::new(body).read_to_end(&mut plain).expect("gzip");
            &plain
        } else {
            body
        };
        Ok(M::decode(plain).expect("OTLP as protobuf"))
    }
}

fn span(service: &str, span: otlp::Span) -> Span {
    let kind = match span.kind() {
        otlp::span::SpanKind::Unspecified => "unspecified",
        otlp::span::SpanKind::Internal => "internal",
        otlp::span::SpanKind::Server => "server",
        otlp::span::SpanKind::Client => "client",
        otlp::span::SpanKind::Producer => "producer",
        otlp::span::SpanKind::Consumer => "consumer",
    };
    let failed = span.status.is_some_and(|status| status.code() == otlp::status::StatusCode::Error);
    let event = |event: otlp::span::Event| (event.name, event.time_unix_nano, attributes(event.attributes));
    Span {
        service: service.to_owned(),
        name: span.name,
        kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        state: span.trace_state,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
        events: span.events.into_iter().map(event).collect(),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        failed,
    }
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let pair = |pair: KeyValue| Some((pair.key, value(pair.value?.value?)));
    list.into_iter().filter_map(pair).collect()
}

fn value(given: any_value::Value) -> Value {
    match given {
        any_value::Value::StringValue(text) => Value::from(text),
        any_value::Value::BoolValue(flag) => Value::from(flag),
        any_value::Value::IntValue(number) => Value::from(number),
        any_value::Value::DoubleValue(number) => Value::from(number),
        any_value::Value::ArrayValue(list) => {
            list.values.into_iter().filter_map(|element| element.value).map(value).collect()
        }
        other => Value::from(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes everything");
        text
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
