//! What a scraper reads: what was counted, and what can be looked up when it asks.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use keyfleet_core::id::KeyId;
use keyfleet_core::quota::Dimension;
use keyfleet_service::exposition::{Sheet, Written, counter, gauge};
use keyfleet_service::follow::Reloads;
use keyfleet_service::program::{REVISION, VERSION};
use keyfleet_service::reach::Reach;
use keyfleet_service::telemetry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use super::histogram::Timing;
use super::{Labels, Metrics, ModelFigures, unpack};

/// So many keys have figures of their own; of larger pools there are the numbers by state.
const MOST_KEYS: usize = 1_000;

/// Figures that are read when somebody asks.
#[derive(Debug)]
pub(crate) struct Readings {
    pub(crate) keys: Vec<KeyFigures>,
    pub(crate) buffered: u64,
    pub(crate) waiting_reports: u64,
    pub(crate) dropped_reports: u64,
    pub(crate) coalesced_reports: u64,
    pub(crate) dropped_lines: u64,
    pub(crate) lease_waits: u64,
    pub(crate) lease_refusals: u64,
    pub(crate) lease_unanswered: u64,
    pub(crate) permits: [(Dimension, u64); Dimension::ALL.len()],
    pub(crate) unleasable: u64,
    pub(crate) state_age: f64,
    pub(crate) state_revision: u64,
    pub(crate) reach: Reach,
    pub(crate) reloads: Reloads,
}

/// A key as a scraper sees it.
#[derive(Debug)]
pub(crate) struct KeyFigures {
    pub(crate) id: KeyId,
    pub(crate) state: &'static str,
    /// What keeps it from all work.
    pub(crate) reason: &'static str,
    pub(crate) score: f64,
    /// When that ends, as Unix time.
    pub(crate) blocked_until: Option<f64>,
}

/// The figures of one moment.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readings: Readings,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut sheet = Sheet::new(encoder);
        let release = [("version", VERSION), ("revision", REVISION)];
        sheet.one("build", "The release that runs, and its commit", &Info::new(release))?;
        self.requests(&mut sheet)?;
        self.models(&mut sheet)?;
        self.readings.keys(&mut sheet)?;
        self.leases(&mut sheet)?;
        self.readings.state(&mut sheet)?;
        self.readings.reloads.tell(&mut sheet)
    }
}

impl Scrape {
    fn requests(&self, sheet: &mut Sheet<'_>) -> Written {
        let metrics = &self.metrics;
        sheet.gauge("inflight_requests", "Client requests being answered", metrics.in_flight())?;
        let (pairs, rest) = metrics.requests.read();
        let models = metrics.models.all();
        let mut sums: BTreeMap<[(&str, String); 5], u64> = BTreeMap::new();
        for (key, n) in pairs {
            let Labels { surface, party, status, route, model } = unpack(key);
            let model = models.get(model).map_or("other", |figures| &figures.name);
            let labels = [
                ("surface", surface.as_str().to_owned()),
                ("route", route.to_owned()),
                ("model", model.to_owned()),
                ("status", status.to_string()),
                ("fault", party.as_str().to_owned()),
            ];
            *sums.entry(labels).or_default() += n;
        }
        if rest > 0 {
            let labels =
                ["surface", "route", "model", "status", "fault"].map(|name| (name, "other".to_owned()));
            sums.insert(labels, rest);
        }
        let series = sums.into_iter().map(|(labels, n)| (labels, counter(n)));
        sheet.family("requests", "Client requests answered", series)?;
        let limited = ["client", "address"].into_iter().zip(&metrics.limited);
        let limited = limited.flat_map(|(by, counts)| {
            let results = ["admitted", "refused"].into_iter().zip(counts);
            results.map(move |(result, n)| ([("by", by), ("result", result)], counter(n.load(Relaxed))))
        });
        sheet.family("rate_limited_requests", "Client requests under rate_limit", limited)?;
        sheet.counter("owner_lookups", "Owners asked of the store", metrics.lookups.load(Relaxed))
    }

    fn models(&self, sheet: &mut Sheet<'_>) -> Written {
        let models = self.metrics.models.all();
        let attempts = models.iter().flat_map(|model| {
            let failed = model.failed.lock().clone();
            let answered = Some(("answered", model.answered.load(Relaxed))).filter(|(_, n)| *n > 0);
            let all = answered.into_iter().chain(failed);
            all.map(|(outcome, n)| {
                ([("model", model.name.to_string()), ("outcome", outcome.to_owned())], counter(n))
            })
        });
        sheet.family(
            "upstream_attempts",
            "Attempts to have a request answered, by how they ended",
            attempts,
        )?;
        let timed = |of: fn(&ModelFigures) -> &Timing| {
            models.iter().map(move |model| (model, of(model))).filter(|(_, timing)| !timing.is_unused())
        };
        let name = |model: &Arc<ModelFigures>| [("model", model.name.to_string())];
        let help = "From a request's arrival to the end of its answer";
        sheet.family(
            "request_duration_seconds",
            help,
            timed(|m| &m.whole).map(|(m, of)| (name(m), Told(of))),
        )?;
        let help = "From sending an attempt to the end of its answer, or to its failure";
        sheet.family(
            "upstream_duration_seconds",
            help,
            timed(|m| &m.upstream).map(|(m, of)| (name(m), Told(of))),
        )?;
        let help = "From a request's arrival to the first byte of its answer";
        sheet.family(
            "time_to_first_byte_seconds",
            help,
            timed(|m| &m.first_byte).map(|(m, of)| (name(m), Told(of))),
        )?;
        let streamed = models.iter().filter(|model| !model.gaps.is_unused());
        let help = "Between the pieces of a streamed answer";
        sheet.family("time_between_chunks_seconds", help, streamed.map(|m| (name(m), Told(&m.gaps))))?;
        let tokens = || {
            let spent = models.iter().filter(|model| !model.input.of_requests.is_unused());
            spent.flat_map(|model| {
                let directions = [("input", &model.input), ("output", &model.output)];
                let name = model.name.to_string();
                directions.map(|(direction, of)| {
                    ([("direction", direction.to_owned()), ("model", name.clone())], of)
                })
            })
        };
        let sums = tokens().map(|(labels, of)| (labels, counter(of.sum.load(Relaxed))));
        sheet.family("tokens", "Tokens that the upstream counted", sums)?;
        let counts = tokens().map(|(labels, of)| (labels, Told(&of.of_requests)));
        sheet.family("request_token_count", "Tokens of one request, as the upstream counted them", counts)
    }

    fn leases(&self, sheet: &mut Sheet<'_>) -> Written {
        let readings = &self.readings;
        sheet.counter("lease_waits", "Waits of requests for leases", readings.lease_waits)?;
        sheet.counter("lease_refusals", "Draws that found their quota spent", readings.lease_refusals)?;
        let help = "From a question about leases to its answer";
        sheet.one("lease_refill_seconds", help, &self.metrics.refills)?;
        let permits = readings.permits.map(|(dimension, n)| ([("dimension", word(dimension))], gauge(n)));
        sheet.family("lease_permits", "Quota in hand, in requests or tokens", permits)?;
        let help = "Questions about leases in a row without an answer; 0: the coordinator answers";
        sheet.gauge("lease_requests_unanswered", help, readings.lease_unanswered)?;
        sheet.gauge("unleasable_buckets", "Buckets beyond what one gateway can lease", readings.unleasable)
    }
}

impl Readings {
    fn keys(&self, sheet: &mut Sheet<'_>) -> Written {
        let mut states: BTreeMap<_, u64> =
            ["perfect", "good", "degraded", "poor"].map(|state| ((state, "none"), 0)).into();
        for key in &self.keys {
            *states.entry((key.state, key.reason)).or_default() += 1;
        }
        let series =
            states.into_iter().map(|((state, reason), n)| ([("state", state), ("reason", reason)], gauge(n)));
        sheet.family("keys", "Keys by state, and by what keeps them from all work", series)?;
        let shown = || self.keys.iter().take(MOST_KEYS).map(|key| ([("key", key.id.as_str())], key));
        let scores = shown().map(|(labels, key)| (labels, ConstGauge::new(key.score)));
        sheet.family("key_health_score", "How well a key did lately, from 0 to 1", scores)?;
        let ends = shown().filter_map(|(labels, key)| Some((labels, ConstGauge::new(key.blocked_until?))));
        let help = "When a key can be used again, as Unix time; none: it can be used, or nobody knows";
        sheet.family("key_blocked_until_timestamp_seconds", help, ends)
    }

    fn state(&self, sheet: &mut Sheet<'_>) -> Written {
        let reach = self.reach;
        sheet.gauge("buffered_body_bytes", "Request bodies held in memory", self.buffered)?;
        let help = "Attempts and owners that wait to be reported";
        sheet.gauge("waiting_reports", help, self.waiting_reports)?;
        let help = "Attempts and owners that found no room to wait";
        sheet.counter("dropped_reports", help, self.dropped_reports)?;
        let help = "Attempts and owners that became part of a report that waited already";
        sheet.counter("coalesced_reports", help, self.coalesced_reports)?;
        let help = "Log lines lost: their reader is slow or gone";
        sheet.counter("dropped_log_lines", help, self.dropped_lines)?;
        telemetry::tell(sheet)?;
        sheet.fraction("state_age_seconds", "Since a leader was last heard; -1: never", self.state_age)?;
        let help = "The last decision about keys that this gateway follows; 0: none";
        sheet.gauge("state_revision", help, self.state_revision)?;
        let help = "Whether both connections to NATS are up; 1 without NATS";
        sheet.gauge("bus_up", help, u64::from(reach.bus != Some(false)))?;
        let help = "Whether Redis is connected, or the state file can be written; 1 without either";
        sheet.gauge("store_up", help, u64::from(reach.store != Some(false)))
    }
}

/// Told as it is, without a copy.
struct Told<'a, M>(&'a M);

impl<M: EncodeMetric> EncodeMetric for Told<'_, M> {
    fn encode(&self, encoder: MetricEncoder) -> Result<(), Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

const fn word(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Rpm => "rpm",
        Dimension::Tpm => "tpm",
        Dimension::Rpd => "rpd",
    }
}
