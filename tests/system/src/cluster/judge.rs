//! What the simulator saw and what was reported, counted without the product's code.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use keyfleet_simulator::Received;
use serde_json::Value;

/// The window of a quota by the minute.
pub const MINUTE: Duration = Duration::from_mins(1);
/// The stream that keeps reports, under the usual prefix.
pub(super) const STREAM: &str = "RL_EV_0";

/// Attempts with one key on one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Answers.
    pub answered: u64,
    /// Failures.
    pub failed: u64,
}

/// By key and model.
pub type Counts = BTreeMap<(String, String), Count>;

/// What one (project, model) was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The project.
    pub project: String,
    /// The model.
    pub model: String,
    /// All attempts.
    pub total: u64,
    /// The most in any window of a minute, wherever it begins.
    pub most: u64,
}

/// Requests that count against quota: the prober lists models only.
pub fn generations(log: &[Received]) -> impl Iterator<Item = &Received> {
    let counts = |path: &str| path.contains("/chat/completions") || path.contains("enerateContent");
    log.iter().filter(move |request| counts(&request.path_and_query))
}

/// The attempts of every bucket, refused ones too.
pub fn buckets(log: &[Received]) -> Vec<Bucket> {
    let mut times: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for request in generations(log) {
        let project = request.project.as_deref().unwrap_or_default();
        let model = request.model.as_deref().unwrap_or_default();
        times.entry((project, model)).or_default().push(request.mono_us);
    }
    let bucket = |((project, model), mut times): ((&str, &str), Vec<u64>)| {
        let most = most_in_a_minute(&mut times);
        Bucket { project: project.to_owned(), model: model.to_owned(), total: times.len() as u64, most }
    };
    times.into_iter().map(bucket).collect()
}

/// The most of these moments, in microseconds, that lie in one minute, of whose two ends one belongs to it.
fn most_in_a_minute(times: &mut [u64]) -> u64 {
    times.sort_unstable();
    let counts = times.iter().enumerate().map(|(last, now)| {
        let past = |at: &u64| u128::from(now - at) >= MINUTE.as_micros();
        last + 1 - times[..=last].partition_point(past)
    });
    counts.max().unwrap_or_default() as u64
}

/// How much of a minute's quota the upstream had left, at any moment.
#[derive(Debug)]
pub struct Left {
    started: Instant,
    /// Of every bucket that was used, when; in microseconds.
    times: Vec<Vec<u64>>,
    buckets: u64,
    rpm: u64,
}

impl Left {
    /// Of so many buckets with this limit each. `started` is the zero of the log's times.
    pub fn of(log: &[Received], started: Instant, buckets: usize, rpm: u64) -> Self {
        let mut times: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
        for request in generations(log) {
            let bucket = (
                request.project.as_deref().unwrap_or_default(),
                request.model.as_deref().unwrap_or_default(),
            );
            times.entry(bucket).or_default().push(request.mono_us);
        }
        for times in times.values_mut() {
            times.sort_unstable();
        }
        Self { started, times: times.into_values().collect(), buckets: buckets as u64, rpm }
    }

    /// What could have been asked then beyond what was asked in the minute before.
    pub fn at(&self, moment: Instant) -> u64 {
        let now = moment.saturating_duration_since(self.started).as_micros();
        let used = |times: &Vec<u64>| {
            let from = times.partition_point(|at| u128::from(*at) + MINUTE.as_micros() <= now);
            (times.partition_point(|at| u128::from(*at) <= now) - from) as u64
        };
        let spent: u64 = self.times.iter().map(|times| used(times).min(self.rpm)).sum();
        (self.buckets * self.rpm).saturating_sub(spent)
    }
}

/// What the simulator saw, by key and model.
pub fn seen(log: &[Received]) -> Counts {
    let mut counts = Counts::new();
    for request in generations(log) {
        let key = request.key_id.clone().unwrap_or_default();
        let count = counts.entry((key, request.model.clone().unwrap_or_default())).or_default();
        *(if request.status < 400 { &mut count.answered } else { &mut count.failed }) += 1;
    }
    counts
}

/// What gateways have reported, read from the stream itself: every report once, however often it was sent.
pub(super) async fn published(nats: &str) -> io::Result<Counts> {
    let client = async_nats::connect(nats).await.map_err(io::Error::other)?;
    let ask = async |subject: String, payload: String| {
        let answer = client.request(subject, payload.into()).await.map_err(io::Error::other)?;
        io::Result::Ok(answer)
    };
    let info = ask(format!("$JS.API.STREAM.INFO.{STREAM}"), String::new()).await?;
    let info: Value = serde_json::from_slice(&info.payload)?;
    let end = |name: &str| info["state"][name].as_u64().unwrap_or_default();
    let (mut counts, mut known) = (Counts::new(), BTreeSet::new());
    for seq in end("first_seq").max(1)..=end("last_seq") {
        let got =
            ask(format!("$JS.API.DIRECT.GET.{STREAM}"), serde_json::json!({"seq": seq}).to_string()).await?;
        let Value::Object(mut envelope) = serde_json::from_slice(&got.payload)? else { continue };
        let report = envelope.remove("body").unwrap_or_default();
        let name = (report["replica"].as_str().unwrap_or_default().to_owned(), report["seq"].as_u64());
        if known.insert(name) {
            report["records"].as_array().into_iter().flatten().for_each(|record| add(&mut counts, record));
        }
    }
    Ok(counts)
}

fn add(counts: &mut Counts, record: &Value) {
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let count = || (text("key"), text("model"));
    match record["kind"].as_str() {
        Some("succeeded") => {
            counts.entry(count()).or_default().answered += record["n"].as_u64().unwrap_or_default();
        }
        Some("failed") => {
            counts.entry(count()).or_default().failed += record["n"].as_u64().unwrap_or(1);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_begins_anywhere_and_has_one_of_its_ends() {
        let most = |seconds: &[u64]| {
            let mut times: Vec<_> = seconds.iter().map(|at| at * 1_000_000).collect();
            most_in_a_minute(&mut times)
        };
        assert_eq!(most(&[]), 0);
        assert_eq!(most(&[5, 5, 5]), 3);
        assert_eq!(most(&[0, 60]), 1, "a minute apart");
        assert_eq!(most(&[59, 0]), 2);
        assert_eq!(most(&[0, 1, 50, 58, 59, 100, 105, 109, 118, 119, 300]), 6, "neither from 0 nor from 60");
    }
}
