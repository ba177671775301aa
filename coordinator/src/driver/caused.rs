//! Says which requests led to a decision, once it holds. Models are not named: those names are clients' texts, and the
//! lines of the requests have them.

use keyfleet_core::ledger::Step;
use keyfleet_core::message::{Change, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::trace::TraceParent;
use tracing::Span;

use super::handled;

/// The decisions of one report that are said one by one; of more than these only the number.
const MOST: usize = 16;

/// What was decided because of a report whose requests are known.
pub(super) struct Caused {
    /// The handling of the report.
    span: Span,
    traces: String,
    blocked: Vec<(Subject, Cause, Option<u64>)>,
    more: usize,
}

impl Caused {
    /// `None`: there is nothing to say.
    pub(super) fn by(traces: &[TraceParent], step: &Step, span: &Span) -> Option<Self> {
        let changes = step.delta.iter().filter(|_| !traces.is_empty()).flat_map(|delta| &delta.changes);
        let mut blocks = changes.filter_map(|change| match change {
            Change::Blocked { subject, cause, ttl_ms, .. } => Some((subject.clone(), *cause, *ttl_ms)),
            _ => None,
        });
        let blocked: Vec<_> = blocks.by_ref().take(MOST).collect();
        let ids: Vec<_> = traces.iter().map(|trace| trace.trace_id().to_string()).collect();
        (!blocked.is_empty()).then(|| Self {
            span: span.clone(),
            traces: ids.join(" "),
            blocked,
            more: blocks.count(),
        })
    }

    pub(super) fn say(&self) {
        let trace_ids = self.traces.as_str();
        let own = handled::ids(&self.span);
        let (trace_id, span_id) = own.as_ref().map(|(trace, span)| (trace.as_str(), span.as_str())).unzip();
        for (subject, cause, ttl_ms) in &self.blocked {
            let (scope, name) = named(subject);
            handled::decided(&self.span, scope, subject, *cause, *ttl_ms);
            tracing::info!(
                scope,
                name,
                cause = cause.as_str(),
                ttl_ms,
                trace_ids,
                trace_id,
                span_id,
                "traffic stays away, after these requests"
            );
        }
        if self.more > 0 {
            tracing::info!(
                more = self.more,
                trace_ids,
                trace_id,
                span_id,
                "and from more, after these requests"
            );
        }
    }
}

/// What the operator calls it.
fn named(subject: &Subject) -> (&'static str, &str) {
    match subject {
        Subject::Key(key) => ("key", key.as_str()),
        Subject::KeyModel(key, _) => ("key_model", key.as_str()),
        Subject::Bucket(project, _) => ("quota", project.as_str()),
        Subject::Project(project) => ("project", project.as_str()),
        Subject::Model(host, _) => ("model", host.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use keyfleet_core::id::KeyId;
    use keyfleet_core::message::Delta;

    use super::*;

    fn step(changes: Vec<Change>) -> Step {
        Step { delta: Some(Delta { epoch: 1, rev: 1, prev: 0, changes }), ..Step::default() }
    }

    fn blocked(key: usize) -> Change {
        let subject = Subject::Key(KeyId::new(key.to_string()));
        Change::Blocked { subject, cause: Cause::Leaked, ttl_ms: None, probe_ms: None }
    }

    #[test]
    fn only_what_known_requests_took_out_is_said_and_not_too_much_of_it() {
        let trace = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let cleared = Change::Cleared { subject: Subject::Key(KeyId::new("k")), slow_start: true };
        assert!(Caused::by(&[], &step(vec![blocked(1)]), &Span::none()).is_none());
        assert!(Caused::by(&[trace], &step(vec![cleared.clone()]), &Span::none()).is_none());
        assert!(Caused::by(&[trace], &Step::default(), &Span::none()).is_none());
        let mut changes: Vec<_> = (0..MOST + 3).map(blocked).collect();
        changes.push(cleared);
        let caused = Caused::by(&[trace, trace], &step(changes), &Span::none()).unwrap();
        assert_eq!((caused.blocked.len(), caused.more), (MOST, 3));
        assert_eq!(caused.traces, "4bf92f3577b34da6a3ce929d0e0e4736 4bf92f3577b34da6a3ce929d0e0e4736");
    }
}
