//! What one request leaves behind: a line in the log and its share of the metrics, when it is over.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use keyfleet_core::id::{KeyId, Model};
use keyfleet_core::outcome::{Cause, Outcome};
use keyfleet_core::time::Utc;
use keyfleet_core::trace::{SpanId, TraceId, TraceParent};
use keyfleet_service::clock;
use keyfleet_service::logging::Line;

use crate::App;
use crate::answer::Failed;
use crate::call::Surface;
use crate::error::{Fault, Party};
use crate::metrics::{self, Metrics, ModelFigures};
use crate::pool::Permit;
use crate::redact::redact;
use crate::sse::{Usage, UsageWatch};
use crate::trace::{Finished, Trace};

/// The record of one request. Whatever way the request ends, dropping it writes the line.
pub(crate) struct Trail {
    app: Arc<App>,
    pub(crate) id: String,
    pub(crate) trace: Trace,
    pub(crate) client: Arc<str>,
    pub(crate) surface: Surface,
    pub(crate) path: String,
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) group: String,
    pub(crate) key: Option<KeyId>,
    pub(crate) attempts: u32,
    pub(crate) last_cause: Option<Cause>,
    pub(crate) status: StatusCode,
    pub(crate) party: Party,
    /// When the attempt that is under way was sent, from the request's arrival.
    pub(crate) sent_at: Option<Duration>,
    /// What is counted of the model that has answered.
    figures: Option<Arc<ModelFigures>>,
    /// `None`: it asks for nothing new, and what an earlier request made tells again of the tokens that were spent then.
    pub(crate) usage: Option<UsageWatch>,
    pub(crate) ttfb: Option<Duration>,
    pub(crate) client_gone: bool,
    error: Option<String>,
    bytes: u64,
    began: Instant,
    finished: bool,
}

impl Trail {
    pub(crate) fn new(app: Arc<App>, id: String) -> Self {
        app.metrics.request_began();
        Self {
            app,
            id,
            trace: Trace::default(),
            client: Arc::from(""),
            surface: Surface::Compat,
            path: String::new(),
            model: String::new(),
            stream: false,
            group: String::new(),
            key: None,
            attempts: 0,
            last_cause: None,
            status: gone(),
            party: Party::Client,
            sent_at: None,
            figures: None,
            usage: None,
            ttfb: None,
            client_gone: false,
            error: None,
            bytes: 0,
            began: Instant::now(),
            finished: false,
        }
    }

    /// An attempt begins; the step of its trace that it is.
    pub(crate) fn attempt(&mut self, permit: &Permit, model: &Model) -> Option<TraceParent> {
        let step = self.trace.attempt(permit, model, self.attempts);
        self.attempts += 1;
        self.sent_at = Some(self.elapsed());
        let key = permit.key();
        self.key = Some(key.id.clone());
        permit.live.config.groups[key.group as usize].name.as_str().clone_into(&mut self.group);
        step
    }

    /// It failed, and what follows from that is decided.
    pub(crate) fn attempt_failed(&mut self, permit: &Permit, failed: &Failed) {
        self.trace.failed(failed.outcome, failed.status, permit.cooldown());
        self.last_cause = Some(failed.outcome.cause);
        if failed.was_never_sent() {
            self.attempts -= 1;
        }
        self.end_attempt(Some(failed.outcome.cause.as_str()));
    }

    /// It failed after its answer had begun.
    pub(crate) fn attempt_broke(&mut self, permit: &Permit, outcome: Outcome) {
        self.trace.broke(outcome, permit.cooldown());
        self.end_attempt(Some(outcome.cause.as_str()));
    }

    /// How long the request has been running.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Looks at what passes.
    pub(crate) fn look_for_usage(&mut self, bytes: &[u8]) {
        if let Some(usage) = &mut self.usage {
            usage.look(bytes);
        }
    }

    /// The tokens that this request has spent, if the answer told.
    pub(crate) fn tokens(&self) -> Option<Usage> {
        self.usage.as_ref()?.read()
    }

    /// An upstream has begun to answer.
    pub(crate) fn answered(&mut self, ttfb: Duration, status: StatusCode) {
        self.ttfb = Some(ttfb);
        self.status = status;
        self.party = Party::Nobody;
        self.trace.answered(status);
        if !metrics::COUNTS {
            return;
        }
        let models = &self.app.metrics.models;
        // What makes no answer of a model's may carry any name and succeed.
        self.figures = Some(if status.is_success() && self.usage.is_some() {
            let is_clean = || redact(&self.model, &self.app.pool.live()) == self.model;
            models.answered(&self.model, is_clean)
        } else {
            models.of(&self.model)
        });
    }

    /// The client gets an error.
    pub(crate) fn refused(&mut self, fault: &Fault) {
        self.status = fault.status;
        self.party = fault.party;
    }

    /// The attempt that is under way is over: with an answer, or because of this.
    fn end_attempt(&mut self, failure: Option<&'static str>) {
        let Some(sent_at) = self.sent_at.take().filter(|_| metrics::COUNTS) else { return };
        let took = self.elapsed().saturating_sub(sent_at);
        let figures = self.figures.clone().unwrap_or_else(|| self.app.metrics.models.of(&self.model));
        Metrics::attempt_ended(&figures, failure, took, self.trace.step());
    }

    /// Counts bytes that went to the client, and how long after others they did, if they are part of a stream.
    pub(crate) fn sent(&mut self, bytes: usize, silence: Option<Duration>) {
        if self.bytes > 0
            && let (Some(silence), Some(figures)) = (silence, &self.figures)
        {
            figures.gaps.observe_time(silence);
        }
        self.bytes += bytes as u64;
    }

    /// Events of this request are not those of a model's answer, whose end is known.
    pub(crate) fn is_opaque_stream(&self) -> bool {
        self.path.starts_with("responses")
    }

    /// The answer had begun when this went wrong.
    pub(crate) fn failed_in_stream(&mut self, fault: &Fault) {
        self.party = fault.party;
        self.error = Some(format!("in stream: {} {}", fault.status.as_u16(), fault.code));
    }

    /// Counts the request, and leaves its line to the thread that writes it: the client waits for neither.
    pub(crate) fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let tokens = self.tokens();
        self.end_trace(tokens);
        let usage = tokens.unwrap_or_default();
        self.end_attempt(if self.ttfb.is_some() { None } else { Some("abandoned") });
        if self.client_gone && self.party == Party::Nobody {
            self.party = Party::Client;
        }
        let took = self.elapsed();
        if metrics::COUNTS {
            self.count(took, usage);
        }
        if !self.app.logs_requests {
            return;
        }
        self.app.log.write(Box::new(Ended {
            app: self.app.clone(),
            id: std::mem::take(&mut self.id),
            trace: self.trace.step().map(TraceParent::trace_id),
            span: self.trace.own().map(TraceParent::span_id),
            client: self.client.clone(),
            surface: self.surface,
            path: std::mem::take(&mut self.path),
            model: std::mem::take(&mut self.model),
            stream: self.stream,
            group: std::mem::take(&mut self.group),
            key: self.key.take(),
            attempts: self.attempts,
            last_cause: self.last_cause,
            status: self.status,
            usage,
            ttfb: self.ttfb,
            client_gone: self.client_gone,
            error: self.error.take(),
            bytes: self.bytes,
            took,
            at: clock::utc(),
        }));
    }

    fn count(&mut self, took: Duration, usage: Usage) {
        let metrics = &self.app.metrics;
        metrics.request_ended(&metrics::Ended {
            surface: self.surface,
            path: &self.path,
            model: &self.figures.take().unwrap_or_else(|| metrics.models.of(&self.model)),
            status: self.status,
            party: self.party,
            usage,
            ttfb: self.ttfb,
            took,
            trace: self.trace.step(),
        });
    }

    fn end_trace(&mut self, usage: Option<Usage>) {
        let mut trace = std::mem::take(&mut self.trace);
        trace.end(|| Finished {
            app: self.app.clone(),
            id: self.id.clone(),
            client: self.client.clone(),
            surface: self.surface,
            path: self.path.clone(),
            model: self.model.clone(),
            stream: self.stream,
            attempts: self.attempts,
            status: self.status,
            usage,
            error: self.error.clone(),
            client_gone: self.client_gone,
            bytes: self.bytes,
        });
        self.trace = trace;
    }
}

/// A request that is over.
struct Ended {
    app: Arc<App>,
    id: String,
    trace: Option<TraceId>,
    /// The request itself, if its trace is ours to tell.
    span: Option<SpanId>,
    client: Arc<str>,
    surface: Surface,
    path: String,
    model: String,
    stream: bool,
    group: String,
    key: Option<KeyId>,
    attempts: u32,
    last_cause: Option<Cause>,
    status: StatusCode,
    usage: Usage,
    ttfb: Option<Duration>,
    client_gone: bool,
    error: Option<String>,
    bytes: u64,
    took: Duration,
    at: Utc,
}

impl Line for Ended {
    fn write(&self, out: &mut Vec<u8>) {
        let line = if self.app.logs_json { self.json() } else { self.human() };
        out.extend_from_slice(line.as_bytes());
    }
}

impl Ended {
    /// What a client has sent as a name, without secrets.
    fn clean(&self, name: &str) -> String {
        redact(name, &self.app.pool.live())
    }

    /// For eyes.
    fn human(&self) -> String {
        let mut line = format!(
            "{} {} {} {}",
            self.status.as_u16(),
            self.surface.as_str(),
            self.clean(if self.model.is_empty() { &self.path } else { &self.model }),
            self.key.as_ref().map_or("-", KeyId::as_str),
        );
        let tokens = (self.usage.input, self.usage.output);
        let _ =
            write!(line, " attempts={} bytes={} tokens={}+{}", self.attempts, self.bytes, tokens.0, tokens.1);
        if let Some(cause) = self.last_cause {
            let _ = write!(line, " last_failure={}", cause.as_str());
        }
        if let Some(error) = &self.error {
            let _ = write!(line, " error={error:?}");
        }
        if self.client_gone {
            line.push_str(" client_gone");
        }
        let _ = write!(line, " {:.1}ms id={}", self.took.as_secs_f64() * 1000.0, self.clean(&self.id));
        if let Some(trace) = self.trace {
            let _ = write!(line, " trace_id={trace}");
        }
        line.replace(char::is_control, "?")
    }

    /// For machines.
    fn json(&self) -> String {
        let mut line = String::with_capacity(512);
        let _ = write!(line, r#"{{"timestamp":"{:.3}","level":"INFO","message":"request","id":"#, self.at);
        quote(&mut line, &self.clean(&self.id));
        if let Some(trace) = self.trace {
            let _ = write!(line, r#","trace_id":"{trace}""#);
        }
        if let Some(span) = self.span {
            let _ = write!(line, r#","span_id":"{span}""#);
        }
        for (name, value) in [
            ("client", &*self.client),
            ("surface", self.surface.as_str()),
            ("path", &self.clean(&self.path)),
            ("model", &self.clean(&self.model)),
            ("group", self.group.as_str()),
            ("key", self.key.as_ref().map_or("", KeyId::as_str)),
            ("last_failure", self.last_cause.map_or("", Cause::as_str)),
            ("error", self.error.as_deref().unwrap_or_default()),
        ] {
            if !value.is_empty() {
                let _ = write!(line, r#","{name}":"#);
                quote(&mut line, value);
            }
        }
        let _ = write!(
            line,
            r#","stream":{},"attempts":{},"status":{},"bytes":{},"input_tokens":{},"output_tokens":{},"client_gone":{},"#,
            self.stream,
            self.attempts,
            self.status.as_u16(),
            self.bytes,
            self.usage.input,
            self.usage.output,
            self.client_gone,
        );
        if let Some(ttfb) = self.ttfb {
            let _ = write!(line, r#""ttfb_ms":{}.{:03},"#, ttfb.as_millis(), ttfb.subsec_micros() % 1_000);
        }
        let took = self.took;
        let _ = write!(line, r#""duration_ms":{}.{:03}}}"#, took.as_millis(), took.subsec_micros() % 1_000);
        line
    }
}

/// What nginx calls 499: the client went away before there was an answer.
fn gone() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.client_gone |= self.status == gone();
        self.finish();
    }
}

/// A JSON string, cut at 256 characters: names come from clients.
fn quote(line: &mut String, text: &str) {
    line.push('"');
    let is_plain = |b: u8| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\';
    if text.len() <= 256 && text.bytes().all(is_plain) {
        line.push_str(text);
        line.push('"');
        return;
    }
    for c in text.chars().take(256) {
        match c {
            '"' | '\\' => {
                line.push('\\');
                line.push(c);
            }
            c if c.is_control() => {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_cannot_break_out_of_their_line() {
        let mut line = String::new();
        super::quote(&mut line, "a\"b\\c\nd\u{7f}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), "a\"b\\c\nd\u{7f}");
        let mut long = String::new();
        super::quote(&mut long, &"x".repeat(1_000));
        assert_eq!(long.len(), 258);
    }
}
