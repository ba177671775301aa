//! What a request has done, as spans: the request (server), its admission and each choice of a key (internal), and each
//! attempt (client).

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use keyfleet_core::trace::TraceParent;
use keyfleet_service::telemetry::{self, Record};
use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Attempt, Choice, Finished, Steps, names};
use crate::api::route;
use crate::redact::redact;

/// Names that come from clients are cut here, in bytes.
const NAME: usize = 256;

/// A request that is over and whose trace is kept.
pub(super) struct Whole {
    pub(super) steps: Box<Steps>,
    pub(super) own: TraceParent,
    pub(super) parent: Option<TraceParent>,
    pub(super) took: Duration,
    pub(super) end: Finished,
}

impl Record for Whole {
    fn spans(&self) -> usize {
        2 + self.steps.choices.len() + self.steps.attempts.len()
    }

    fn write(self: Box<Self>, out: &mut Vec<SpanData>) {
        let Some(telemetry) = telemetry::get() else { return };
        let state = &self.steps.state;
        // A client that puts secrets into it goes on without it.
        let is_clean = state.is_empty() || redact(state, &self.end.app.pool.live()) == *state;
        let state = if is_clean { state.parse().unwrap_or_default() } else { TraceState::default() };
        let maker = Maker { whole: &self, state, scope: telemetry.scope() };
        out.push(maker.request());
        out.push(maker.admission());
        out.extend(self.steps.choices.iter().map(|choice| maker.choice(choice)));
        let last = self.steps.attempts.len().saturating_sub(1);
        out.extend(
            self.steps.attempts.iter().enumerate().map(|(n, attempt)| maker.attempt(attempt, n == last)),
        );
    }
}

struct Maker<'w> {
    whole: &'w Whole,
    state: TraceState,
    scope: &'w InstrumentationScope,
}

impl Maker<'_> {
    fn request(&self) -> SpanData {
        let (steps, end) = (&self.whole.steps, &self.whole.end);
        let method = names::method(&steps.method);
        let route = (!end.path.is_empty()).then(|| route::template(end.surface, &end.path));
        let name = match &route {
            Some(route) => format!("{} {route}", names::title(method)),
            None => names::title(method).to_owned(),
        };
        let mut attributes = vec![
            KeyValue::new(names::HTTP_METHOD, method),
            KeyValue::new(names::HTTP_STATUS, i64::from(end.status.as_u16())),
            KeyValue::new(names::URL_PATH, self.clean(&steps.path)),
            KeyValue::new(names::URL_SCHEME, "http"),
            KeyValue::new(names::REQUEST_ID, self.clean(&end.id)),
            KeyValue::new(names::ATTEMPTS, i64::from(end.attempts)),
        ];
        let mut more = |name: &'static str, value: Option<Value>| {
            attributes.extend(value.map(|value| KeyValue::new(name, value)));
        };
        // Of what was not relayed, the server's library knows the size.
        more(names::HTTP_BODY, (end.bytes > 0).then(|| number(end.bytes).into()));
        more(names::HTTP_ROUTE, route.map(Value::from));
        let text = |text: &str| (!text.is_empty()).then(|| Value::from(self.clean(text)));
        more(names::CLIENT, text(&end.client));
        more(names::MODEL, text(&end.model));
        more(names::CLIENT_GONE, end.client_gone.then_some(Value::from(true)));
        more(names::UNRECORDED, (steps.more > 0).then(|| Value::from(i64::from(steps.more))));
        // What a client did wrong is no error of the server.
        let status = if end.status.is_server_error() || end.error.is_some() {
            let error = if end.error.is_some() {
                Cow::Borrowed("stream")
            } else {
                end.status.as_str().to_owned().into()
            };
            more(names::ERROR_TYPE, Some(Value::from(error.into_owned())));
            Status::error(end.error.clone().unwrap_or_default())
        } else {
            Status::Unset
        };
        let first = steps.attempts.last().and_then(|attempt| attempt.first);
        let (parent, is_remote) = match self.whole.parent {
            Some(parent) => (parent.span_id().as_u64().into(), true),
            None => (SpanId::INVALID, false),
        };
        SpanData {
            span_context: self.context(self.whole.own),
            parent_span_id: parent,
            parent_span_is_remote: is_remote,
            span_kind: SpanKind::Server,
            attributes,
            events: self.first_chunk(first),
            status,
            ..self.span(name.into(), (Duration::ZERO, self.whole.took))
        }
    }

    /// From the first look at the request to the call, or to its refusal.
    fn admission(&self) -> SpanData {
        let until = self.whole.steps.admitted.unwrap_or(self.whole.took);
        let end = &self.whole.end;
        let refused = self.whole.steps.choices.is_empty() && end.status.as_u16() >= 400;
        let status = if refused { Status::error(end.status.as_str().to_owned()) } else { Status::Unset };
        SpanData { status, ..self.span("admission".into(), (Duration::ZERO, until)) }
    }

    fn choice(&self, choice: &Choice) -> SpanData {
        let (attributes, status) = match &choice.key {
            Some(key) => (vec![KeyValue::new(names::KEY, key.as_str().to_owned())], Status::Unset),
            None => (Vec::new(), Status::error("no key")),
        };
        SpanData { attributes, status, ..self.span("key choice".into(), (choice.from, choice.until)) }
    }

    fn attempt(&self, attempt: &Attempt, is_last: bool) -> SpanData {
        let (steps, end) = (&self.whole.steps, &self.whole.end);
        let model = self.clean(attempt.model.as_str());
        let operation = names::operation(&steps.method, end.surface, &end.path);
        let method = names::method(&steps.method);
        let name = match operation {
            Some(operation) if !model.is_empty() => format!("{operation} {model}"),
            Some(operation) => operation.to_owned(),
            None => format!("{} {}", names::title(method), route::template(end.surface, &end.path)),
        };
        let mut attributes = vec![
            KeyValue::new(names::HTTP_METHOD, method),
            KeyValue::new(names::KEY, attempt.key.as_str().to_owned()),
        ];
        let mut more = |name: &'static str, value: Option<Value>| {
            attributes.extend(value.map(|value| KeyValue::new(name, value)));
        };
        let (host, port) = split(attempt.host.as_str(), attempt.is_encrypted);
        more(names::SERVER_ADDRESS, Some(host.to_owned().into()));
        more(names::SERVER_PORT, Some(port.into()));
        more(names::GEN_AI_OPERATION, operation.map(Value::from));
        more(names::GEN_AI_PROVIDER, operation.map(|_| names::GEMINI.into()));
        more(names::GEN_AI_MODEL, (!model.is_empty()).then(|| model.into()));
        more(names::GEN_AI_STREAM, operation.map(|_| end.stream.into()));
        more(names::HTTP_RESEND, (attempt.resent > 0).then(|| i64::from(attempt.resent).into()));
        more(names::HTTP_STATUS, attempt.status.map(|status| i64::from(status.as_u16()).into()));
        let first = attempt.first.map(|first| first.saturating_sub(attempt.from).as_secs_f64().into());
        more(names::GEN_AI_FIRST_CHUNK, first.filter(|_| operation.is_some()));
        if operation.is_some() {
            let told = &attempt.told;
            more(names::GEN_AI_RESPONSE_MODEL, told.model.as_deref().map(|model| self.clean(model).into()));
            more(names::GEN_AI_RESPONSE_ID, told.id.as_deref().map(|id| self.clean(id).into()));
            let reasons = told.reasons.iter().map(|reason| StringValue::from(self.clean(reason)));
            let reasons: Vec<_> = reasons.collect();
            more(names::GEN_AI_REASONS, (!reasons.is_empty()).then(|| Value::Array(reasons.into())));
        }
        if let Some(usage) = end.usage.filter(|_| is_last) {
            more(names::GEN_AI_INPUT, Some(number(usage.input).into()));
            more(names::GEN_AI_OUTPUT, Some(number(usage.output).into()));
        }
        let mut status = Status::Unset;
        if let Some((outcome, cooldown)) = &attempt.failed {
            let cause = outcome.cause.as_str();
            // The conventions want the status, where there is one that says it.
            let answered = attempt.status.filter(|status| status.as_u16() >= 400);
            more(
                names::ERROR_TYPE,
                Some(answered.map_or(cause.into(), |status| status.as_str().to_owned().into())),
            );
            more(names::CAUSE, Some(cause.into()));
            more(names::SCOPE, Some(format!("{:?}", outcome.scope).to_ascii_lowercase().into()));
            let open = *cooldown == Some(Duration::MAX);
            more(names::COOLDOWN, cooldown.filter(|_| !open).map(|cooldown| cooldown.as_secs_f64().into()));
            more(names::COOLDOWN_OPEN, open.then_some(Value::from(true)));
            status = Status::error(cause);
        }
        SpanData {
            span_context: self.context(attempt.context),
            span_kind: SpanKind::Client,
            attributes,
            events: self.first_chunk(attempt.first),
            status,
            ..self.span(name.into(), (attempt.from, attempt.until.unwrap_or(self.whole.took)))
        }
    }

    /// An internal one, below the request's.
    fn span(&self, name: Cow<'static, str>, (from, until): (Duration, Duration)) -> SpanData {
        let own = self.whole.own;
        SpanData {
            span_context: own
                .child(fastrand::u64(1..), true)
                .map_or(SpanContext::NONE, |step| self.context(step)),
            parent_span_id: own.span_id().as_u64().into(),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: self.at(from),
            end_time: self.at(until),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn first_chunk(&self, first: Option<Duration>) -> SpanEvents {
        let mut events = SpanEvents::default();
        events
            .events
            .extend(first.map(|first| Event::new(names::FIRST_CHUNK, self.at(first), Vec::new(), 0)));
        events
    }

    fn context(&self, step: TraceParent) -> SpanContext {
        telemetry::context(step, self.state.clone(), false)
    }

    fn at(&self, since: Duration) -> SystemTime {
        self.whole.steps.began + since
    }

    /// What a client has sent as a name, without secrets.
    fn clean(&self, name: &str) -> String {
        let mut clean = redact(name, &self.whole.end.app.pool.live());
        clean.truncate(clean.floor_char_boundary(NAME));
        clean
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A host and its port, which is that of the scheme unless it is named.
fn split(host: &str, is_encrypted: bool) -> (&str, i64) {
    let split = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
    split.unwrap_or((host, if is_encrypted { 443 } else { 80 }))
}
