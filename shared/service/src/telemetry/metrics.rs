//! The figures of a scraper for an OTLP collector, if somebody asks for that.
//!
//! They are sums since the process began, so that an export that fails needs no repetition: the next one tells all.
//! There is one at a time, and nothing waits for it.

mod sender;
mod target;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use self::sender::Sender;
pub(super) use self::target::Target;
use crate::exposition::otlp::{self, Span};

/// How long the end of the process waits for the collector to take the last figures.
const LAST: Duration = Duration::from_secs(2);

/// What exports the metrics of a process.
pub struct Push {
    target: Target,
    resource: Resource,
    began: SystemTime,
    failed: AtomicU64,
}

impl Push {
    pub(super) fn new(resource: &opentelemetry_sdk::Resource, target: Target) -> Self {
        let resource = ResourceAttributesWithSchema::from(resource);
        let resource = Resource { attributes: resource.attributes.0, ..Resource::default() };
        Self { target, resource, began: SystemTime::now(), failed: AtomicU64::new(0) }
    }

    /// Exports that the collector did not take.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Exports what `gather` tells as `OpenMetrics`, at every interval until `stop`, and once more then.
    pub async fn run<F>(&self, gather: impl Fn() -> F, stop: CancellationToken)
    where
        F: Future<Output = String>,
    {
        let sender = match Sender::new(&self.target) {
            Ok(sender) => sender,
            Err(problem) => {
                tracing::warn!("no metrics are exported: {problem}");
                return stop.cancelled().await;
            }
        };
        let mut ticks = interval_at(Instant::now() + self.target.interval, self.target.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_away = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let sent = tokio::select! {
                // What is under way is told again at once.
                () = stop.cancelled() => break,
                sent = timeout(self.target.timeout, self.export(&sender, &gather)) => sent,
            };
            let problem = match sent {
                Ok(sent) => sent.err(),
                Err(_) => Some("it did not answer in time".to_owned()),
            };
            self.tell(problem.as_deref(), is_away);
            is_away = problem.is_some();
        }
        if timeout(LAST, self.export(&sender, &gather)).await.is_ok_and(|sent| sent.is_ok()) {
            return;
        }
        tracing::warn!("the collector did not take the last metrics in time");
    }

    async fn export<F>(&self, sender: &Sender, gather: impl Fn() -> F) -> Result<(), String>
    where
        F: Future<Output = String>,
    {
        let text = gather().await;
        let span = Span { began: nanos(self.began), now: nanos(SystemTime::now()) };
        let scope = InstrumentationScope {
            name: "keyfleet".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let of_scope = ScopeMetrics {
            scope: Some(scope),
            metrics: otlp::metrics(&text, span),
            ..ScopeMetrics::default()
        };
        let of_resource = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![of_scope],
            ..ResourceMetrics::default()
        };
        sender.send(ExportMetricsServiceRequest { resource_metrics: vec![of_resource] }).await
    }

    /// Counts what fails, and says when that begins and when it is over.
    fn tell(&self, problem: Option<&str>, is_away: bool) {
        if problem.is_some() {
            self.failed.fetch_add(1, Relaxed);
        }
        match problem {
            Some(problem) if !is_away => tracing::warn!(
                problem,
                "the collector does not take metrics: what fails is counted, and the next export tells all; nothing else \
                 waits"
            ),
            None if is_away => tracing::info!(failed = self.failed(), "the collector takes metrics again"),
            _ => {}
        }
    }
}

impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Push").field("failed", &self.failed()).finish_non_exhaustive()
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
