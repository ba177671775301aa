//! The figures for a scraper, in the text format that Prometheus reads.

use coordinator::status::{Lag, Pulse, Role, Standing};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// One moment's figures.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) pulse: Pulse,
    /// What the ledger knows, if this coordinator leads and its ledger answered.
    pub(crate) standing: Option<Standing>,
    pub(crate) bus_up: bool,
    /// How far this leader is behind, if it is one.
    pub(crate) lag: Option<Lag>,
    /// Messages that this side of the bus could not send.
    pub(crate) bus_unsent: u64,
    /// Messages that this side could not read.
    pub(crate) bus_unread: u64,
    /// How often reading reports had to begin again.
    pub(crate) bus_rebuilds: u64,
}

/// The text that a scraper gets.
pub(crate) fn render(figures: Figures) -> String {
    let mut registry = Registry::with_prefix("keyfleet_coordinator");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The release that runs", build);
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Self { pulse, standing, bus_up, lag, bus_unsent, bus_unread, bus_rebuilds } = self;
        let gauges = [
            ("leader", "Whether this coordinator leads", Some(u64::from(pulse.role == Role::Leading))),
            ("epoch", "The highest epoch that was heard of", Some(pulse.epoch)),
            ("revision", "The revision of this leader's decisions", Some(pulse.revision)),
            ("event_lag", "Reports in the stream that wait to be applied", lag.map(|lag| lag.reports)),
            ("blind", "Whether minute quotas are held back: the store may have lost writes", {
                Some(u64::from(pulse.blind && pulse.role == Role::Leading))
            }),
            ("store_up", "Whether the store answered last time", Some(u64::from(pulse.store_up))),
            ("bus_up", "Whether both connections to NATS are up", Some(u64::from(*bus_up))),
            ("buckets", "Limited buckets in the book", count(standing.as_ref(), |s| s.buckets)),
            ("open_lots", "Leases that are out", count(standing.as_ref(), |s| s.open_lots)),
            ("replicas", "Gateways that were heard lately", count(standing.as_ref(), |s| s.replicas.len())),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        if let Some(lag) = lag {
            let help = "How long the stream had held the report that was read last";
            let metric = encoder.encode_descriptor("event_age_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(lag.age.as_secs_f64()).encode(metric)?;
        }
        let counters = [
            ("takeovers", "How often this process began to lead", pulse.takeovers),
            ("commits", "Commits that the store acknowledged", pulse.commits),
            ("commit_failures", "Commits that ended a term", pulse.commit_failures),
            ("reports_skipped", "Reports that had been heard before", pulse.doubles),
            (
                "reports_lost",
                "Reports that gateways had handed over and nobody can read any more",
                pulse.lost,
            ),
            ("leases_granted", "Leases granted", pulse.granted),
            ("leases_refused", "Wishes for leases not granted in full", pulse.refused),
            ("bus_unsent", "Messages to gateways that could not be sent", *bus_unsent),
            (
                "bus_unread",
                "Messages of another release or a stranger, left out in part or as a whole",
                *bus_unread,
            ),
            ("bus_rebuilds", "How often reading reports had to begin again", *bus_rebuilds),
        ];
        let external = standing.as_ref().map(|standing| {
            let help = "Refusals of a quota of which something was left: somebody else uses the project";
            ("external_refusals", help, standing.external_refusals)
        });
        for (name, help, value) in counters.into_iter().chain(external) {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        Ok(())
    }
}

fn count(standing: Option<&Standing>, of: impl Fn(&Standing) -> usize) -> Option<u64> {
    standing.map(|standing| of(standing) as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_scraper_reads_what_is_known_and_nothing_that_is_not() {
        let pulse = Pulse { role: Role::Leading, epoch: 7, commits: 12, lost: 6, ..Pulse::default() };
        let lag = Some(Lag { reports: 2, age: Duration::from_millis(250) });
        let figures = Figures {
            pulse,
            standing: None,
            bus_up: true,
            lag,
            bus_unsent: 3,
            bus_unread: 4,
            bus_rebuilds: 5,
        };
        let text = render(figures);
        for line in [
            "keyfleet_coordinator_leader 1",
            "keyfleet_coordinator_epoch 7",
            "keyfleet_coordinator_commits_total 12",
            "keyfleet_coordinator_bus_up 1",
            "keyfleet_coordinator_store_up 0",
            "keyfleet_coordinator_bus_unsent_total 3",
            "keyfleet_coordinator_bus_unread_total 4",
            "keyfleet_coordinator_bus_rebuilds_total 5",
            "keyfleet_coordinator_reports_lost_total 6",
            "keyfleet_coordinator_event_lag 2",
            "keyfleet_coordinator_event_age_seconds 0.25",
            concat!("keyfleet_coordinator_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("replicas") && !text.contains("open_lots"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
