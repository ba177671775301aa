//! What the tasks of a run have counted, each on its own until the end.

use std::collections::BTreeMap;
use std::time::Duration;

use keyfleet_bench::{Percentiles, Report, now_ns, stamps};
use memchr::memchr_iter;
use tokio::task::JoinSet;

/// Counts and times.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    requests: u32,
    ok: u32,
    failures: BTreeMap<String, u32>,
    latency_ms: Vec<f64>,
    chunks: u32,
    chunk_delay_ms: Vec<f64>,
}

impl Tally {
    /// For a run of so many requests.
    pub(crate) fn of(requests: u32) -> Self {
        Self { requests, ..Self::default() }
    }

    pub(crate) fn answered(&mut self, latency: Duration) {
        self.ok += 1;
        self.latency_ms.push(ms(latency));
    }

    pub(crate) fn failed(&mut self, why: String) {
        *self.failures.entry(why).or_default() += 1;
    }

    /// Notes the events in some bytes of a stream that have just arrived.
    pub(crate) fn arrived(&mut self, bytes: &[u8], events: &mut EventCount) {
        self.chunks += events.ended_in(bytes);
        let now = now_ns();
        self.chunk_delay_ms
            .extend(stamps(bytes).map(|sent| ms(Duration::from_nanos(now.saturating_sub(sent)))));
    }

    /// Adds what the tasks found that have ended by now.
    pub(crate) fn take_ended(&mut self, tasks: &mut JoinSet<Self>) {
        while let Some(Ok(ended)) = tasks.try_join_next() {
            self.add(ended);
        }
    }

    /// Adds what all tasks found, which end by themselves. Requests that none of them knows were never sent.
    pub(crate) async fn gather(mut self, mut tasks: JoinSet<Self>) -> Self {
        while let Some(ended) = tasks.join_next().await {
            // A task that panicked leaves its requests among those that are missing.
            if let Ok(ended) = ended {
                self.add(ended);
            }
        }
        let counted = self.ok + self.failures.values().sum::<u32>();
        if let Some(missing) = self.requests.checked_sub(counted).filter(|missing| *missing > 0) {
            self.failures.insert("not sent in time".to_owned(), missing);
        }
        self
    }

    fn add(&mut self, other: Self) {
        self.ok += other.ok;
        self.chunks += other.chunks;
        self.latency_ms.extend(other.latency_ms);
        self.chunk_delay_ms.extend(other.chunk_delay_ms);
        for (why, count) in other.failures {
            *self.failures.entry(why).or_default() += count;
        }
    }

    pub(crate) fn report(mut self, elapsed: Duration) -> Report {
        Report {
            requests: self.requests,
            ok: self.ok,
            failures: self.failures,
            seconds: elapsed.as_secs_f64(),
            latency_ms: Percentiles::of(&mut self.latency_ms),
            chunks: self.chunks,
            chunk_delay_ms: Percentiles::of(&mut self.chunk_delay_ms),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Counts blank lines, also across the seams of what arrives.
#[derive(Debug, Default)]
pub(crate) struct EventCount {
    /// The last byte ended a line.
    at_line_start: bool,
}

impl EventCount {
    fn ended_in(&mut self, bytes: &[u8]) -> u32 {
        let mut count = 0;
        let mut line_start = self.at_line_start.then_some(0);
        for at in memchr_iter(b'\n', bytes) {
            if line_start == Some(at) {
                count += 1;
                line_start = None;
            } else {
                line_start = Some(at + 1);
            }
        }
        self.at_line_start = line_start == Some(bytes.len());
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_where_they_end_however_they_arrive() {
        let text = b"data: a\n\ndata: b\n\ndata: c\n\n";
        for size in 1..=text.len() {
            let mut events = EventCount::default();
            assert_eq!(text.chunks(size).map(|part| events.ended_in(part)).sum::<u32>(), 3, "{size}");
        }
    }

    #[tokio::test]
    async fn what_was_not_sent_has_failed() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {
            let mut tally = Tally::default();
            tally.answered(Duration::from_millis(2));
            tally.failed("429".to_owned());
            tally
        });
        let report = Tally::of(5).gather(tasks).await.report(Duration::from_secs(1));
        assert_eq!((report.ok, report.failed()), (1, 4));
        assert_eq!(report.failures, [("429".to_owned(), 1), ("not sent in time".to_owned(), 3)].into());
    }
}
