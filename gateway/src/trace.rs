//! One request as part of a trace. Whether it is kept is decided when it begins; one that is not costs two random
//! numbers, and one that is leaves its steps to the thread that makes spans of them.

mod names;
mod spans;
mod told;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::extract::Request;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use keyfleet_core::id::{Host, KeyId, Model};
use keyfleet_core::outcome::{Cause, Outcome};
use keyfleet_core::trace::{self, TraceParent};
use keyfleet_service::telemetry;

use crate::App;
use crate::call::Surface;
use crate::pool::Permit;
use crate::sse::Usage;
use crate::trace::told::Told;

/// The attempts that are kept of one request: a pool of dead keys is tried through. Of more, the last one.
const MOST: usize = 32;
/// As much of a `tracestate` has to be passed on.
const STATE: usize = 512;
/// Of paths, which are as long as heads may be, so many bytes wait for the collector.
const PATH: usize = 1_024;
/// The header that goes with `traceparent`.
pub(crate) const STATE_HEADER: &str = "tracestate";

/// The trace of one request.
#[derive(Default)]
pub(crate) struct Trace {
    /// The client's step.
    parent: Option<TraceParent>,
    /// Ours, if this process traces.
    own: Option<TraceParent>,
    /// What has happened, if it is kept.
    steps: Option<Box<Steps>>,
}

/// What has happened so far. Times are since the beginning.
struct Steps {
    began: SystemTime,
    clock: Instant,
    method: Method,
    path: String,
    state: String,
    admitted: Option<Duration>,
    /// When the last step ended.
    mark: Duration,
    choices: Vec<Choice>,
    attempts: Vec<Attempt>,
    /// Attempts that are not kept.
    more: u32,
}

/// The choice of a key, with the waits before it.
struct Choice {
    from: Duration,
    until: Duration,
    /// `None`: there was none to choose.
    key: Option<KeyId>,
}

/// One upstream call.
struct Attempt {
    context: TraceParent,
    from: Duration,
    until: Option<Duration>,
    /// The first bytes of its answer.
    first: Option<Duration>,
    key: KeyId,
    host: Host,
    is_encrypted: bool,
    model: Model,
    resent: u32,
    status: Option<StatusCode>,
    failed: Option<(Outcome, Option<Duration>)>,
    /// What its answer tells of itself.
    told: Told,
}

/// What only the end of a request knows.
pub(crate) struct Finished {
    pub(crate) app: Arc<App>,
    pub(crate) id: String,
    pub(crate) client: Arc<str>,
    pub(crate) surface: Surface,
    pub(crate) path: String,
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) attempts: u32,
    pub(crate) status: StatusCode,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<String>,
    pub(crate) client_gone: bool,
    pub(crate) bytes: u64,
}

impl Trace {
    /// Begins it, as a step of the client's trace if the client names one.
    pub(crate) fn begin(request: &Request) -> Self {
        let parent = parent(request.headers());
        let Some(telemetry) = telemetry::get() else { return Self { parent, ..Self::default() } };
        let parent = parent.filter(|_| telemetry.reads_context());
        let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
        let root = TraceParent::root(trace, span, false);
        let step = parent.map_or(root, |parent| parent.child(span, false));
        let sampled = step.is_some_and(|step| telemetry.samples(parent, step.trace_id()));
        let own = step.and_then(|step| step.child(span, sampled));
        let steps = sampled.then(|| Box::new(Steps::begin(request, parent.is_some())));
        Self { parent, own, steps }
    }

    /// The step that logs show: ours, else the client's.
    pub(crate) fn step(&self) -> Option<TraceParent> {
        self.own.or(self.parent)
    }

    /// Our own step.
    pub(crate) fn own(&self) -> Option<TraceParent> {
        self.own
    }

    /// Whoever asks may, and everything is understood; or it is refused here.
    pub(crate) fn admitted(&mut self) {
        if let Some(steps) = &mut self.steps {
            steps.mark = steps.clock.elapsed();
            steps.admitted = Some(steps.mark);
        }
    }

    /// There is no key for it.
    pub(crate) fn no_key(&mut self) {
        if let Some(steps) = &mut self.steps {
            steps.chose(None);
        }
    }

    /// An attempt begins, after so many others; the step that it is.
    pub(crate) fn attempt(&mut self, permit: &Permit, model: &Model, resent: u32) -> Option<TraceParent> {
        let (Some(steps), Some(own)) = (&mut self.steps, self.own) else { return self.step() };
        let context = own.child(fastrand::u64(1..), true)?;
        let key = permit.key();
        steps.chose(Some(key.id.clone()));
        if steps.attempts.len() == MOST {
            steps.attempts.pop();
            steps.more += 1;
        }
        let group = &permit.live.groups[key.group as usize];
        steps.attempts.push(Attempt {
            context,
            from: steps.mark,
            until: None,
            first: None,
            key: key.id.clone(),
            host: group.host.clone(),
            is_encrypted: group.compat.scheme == Scheme::HTTPS,
            model: permit.live.upstream_model(key.group as usize, model).clone(),
            resent,
            status: None,
            failed: None,
            told: Told::default(),
        });
        Some(context)
    }

    /// It failed, and the request is not over. `status` is what was answered, if anything was.
    pub(crate) fn failed(&mut self, outcome: Outcome, status: StatusCode, cooldown: Option<Duration>) {
        let Some(steps) = &mut self.steps else { return };
        steps.mark = steps.clock.elapsed();
        let Some(attempt) = steps.attempts.last_mut() else { return };
        attempt.status = was_answered(outcome.cause).then_some(status);
        attempt.failed = Some((outcome, cooldown));
        attempt.until = Some(steps.mark);
    }

    /// It is answered: the first bytes are here. It ends when the request does.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        let Some(steps) = &mut self.steps else { return };
        let now = steps.clock.elapsed();
        if let Some(attempt) = steps.attempts.last_mut() {
            attempt.status = Some(status);
            attempt.first = Some(now);
        }
    }

    /// A piece of its answer goes out.
    pub(crate) fn passes(&mut self, piece: &[u8]) {
        if let Some(attempt) = self.steps.as_mut().and_then(|steps| steps.attempts.last_mut()) {
            attempt.told.look(piece);
        }
    }

    /// Its answer went wrong after it had begun.
    pub(crate) fn broke(&mut self, outcome: Outcome, cooldown: Option<Duration>) {
        if let Some(attempt) = self.steps.as_mut().and_then(|steps| steps.attempts.last_mut()) {
            attempt.failed = Some((outcome, cooldown));
        }
    }

    /// The request is over: leaves what is kept to the collector's thread.
    pub(crate) fn end(&mut self, finished: impl FnOnce() -> Finished) {
        if let Some(steps) = self.steps.take()
            && let Some(own) = self.own
            && let Some(telemetry) = telemetry::get()
        {
            let took = steps.clock.elapsed();
            let (parent, mut end) = (self.parent, finished());
            if end.path.len() > PATH {
                end.path = cut(&end.path).into();
            }
            telemetry.submit(Box::new(spans::Whole { steps, own, parent, took, end }));
        }
    }
}

impl Steps {
    fn begin(request: &Request, is_continued: bool) -> Self {
        Self {
            began: SystemTime::now(),
            clock: Instant::now(),
            method: request.method().clone(),
            path: cut(request.uri().path()).to_owned(),
            state: if is_continued { state(request.headers()).unwrap_or_default() } else { String::new() },
            admitted: None,
            mark: Duration::ZERO,
            choices: Vec::new(),
            attempts: Vec::new(),
            more: 0,
        }
    }

    fn chose(&mut self, key: Option<KeyId>) {
        let (from, until) = (self.mark, self.clock.elapsed());
        self.mark = until;
        if self.choices.len() == MOST {
            self.choices.pop();
        }
        self.choices.push(Choice { from, until, key });
    }
}

/// The beginning of a path.
fn cut(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH)]
}

/// Whether a failure of this cause has a status of the upstream.
fn was_answered(cause: Cause) -> bool {
    !matches!(
        cause,
        Cause::Connect
            | Cause::Reset
            | Cause::Timeout
            | Cause::Truncated
            | Cause::PermitLapsed
            | Cause::Cancelled
    )
}

/// The one `traceparent` of a request. Two contradict each other.
fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(trace::HEADER).iter();
    let only = given.next().filter(|_| given.next().is_none())?;
    TraceParent::parse(only.to_str().ok()?)
}

/// All that a client says in `tracestate`, if it is not too much.
pub(crate) fn state(headers: &HeaderMap) -> Option<String> {
    let given = headers.get_all(STATE_HEADER).iter().map(HeaderValue::to_str);
    let state = given.collect::<Result<Vec<_>, _>>().ok()?.join(",");
    (!state.is_empty() && state.len() <= STATE).then_some(state)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    #[test]
    fn a_request_is_part_of_one_trace_or_none() {
        let trace = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("traceparent", value.parse().unwrap());
            }
            super::parent(&headers).map(|parent| parent.to_string())
        };
        let (one, other) = (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-01",
        );
        assert_eq!(trace(&[one]).as_deref(), Some(one));
        for given in [&[] as &[&str], &[one, other], &[one, one], &["ours"], &["00-\u{e9}"]] {
            assert_eq!(trace(given), None, "{given:?}");
        }
    }

    #[test]
    fn the_state_of_a_trace_is_joined_and_bounded() {
        let state = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("tracestate", value.parse().unwrap());
            }
            super::state(&headers)
        };
        assert_eq!(state(&["a=1".into(), "b=2".into()]).as_deref(), Some("a=1,b=2"));
        assert_eq!((state(&[]), state(&["x".repeat(super::STATE + 1)])), (None, None));
    }
}
