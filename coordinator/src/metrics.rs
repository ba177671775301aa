//! What the coordinator of a process tells a scraper, be the process its own or a gateway's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyfleet_core::block::Block;
use keyfleet_core::id::Model;
use keyfleet_core::ledger::{BucketView, KeyView};
use keyfleet_core::message::Subject;
use keyfleet_core::quota::{Bucket, Dimension};
use keyfleet_core::time::Utc;
use keyfleet_service::exposition::{Sheet, Written, counter, gauge};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::status::{Desk, Overview, Pulse, Role, Standing};

/// Every name of a figure begins with it.
pub const PREFIX: &str = "keyfleet_coordinator";

/// How long a scraper waits for the ledger.
const GLANCE: Duration = Duration::from_millis(500);
/// So many keys and buckets have figures of their own; of larger pools there are the numbers by state.
const MOST_KEYS: usize = 1_000;
const MOST_BUCKETS: usize = 3_000;
/// The most names of models, as gateways have them.
const MOST_MODELS: usize = 254;

/// One moment's figures.
#[derive(Debug, Default)]
pub struct Figures {
    pulse: Pulse,
    /// What the ledger knows, if this coordinator leads and its ledger answered.
    standing: Option<Standing>,
    /// Its keys and buckets.
    overview: Option<Overview>,
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder) -> Written {
        self.tell(&mut Sheet::new(encoder))
    }
}

impl Figures {
    /// Asks the leader, if it is the one of this process.
    pub async fn of(desk: &Desk) -> Self {
        let (standing, overview) = tokio::join!(desk.standing(GLANCE), desk.overview(GLANCE));
        Self { pulse: desk.pulse(), standing: standing.ok(), overview: overview.ok() }
    }

    /// Writes them down.
    pub fn tell(&self, sheet: &mut Sheet<'_>) -> Written {
        self.gauges(sheet)?;
        self.counters(sheet)?;
        tell_alerts(&self.pulse, sheet)?;
        let Some(Overview { keys, buckets, answered }) = &self.overview else { return Ok(()) };
        let names = Names::of(answered);
        tell_keys(keys, sheet)?;
        tell_blocks(keys, &names, sheet)?;
        tell_quotas(buckets, &names, sheet)
    }

    fn gauges(&self, sheet: &mut Sheet<'_>) -> Written {
        let Self { pulse, standing, .. } = self;
        let leads = pulse.role == Role::Leading;
        let gauges = [
            ("leader", "Whether this coordinator leads", Some(u64::from(leads))),
            ("epoch", "The highest epoch that was heard of", Some(pulse.epoch)),
            ("revision", "The revision of this leader's decisions", Some(pulse.revision)),
            ("blind", "Whether minute quotas are held back: the store may have lost writes", {
                Some(u64::from(pulse.blind && leads))
            }),
            ("store_up", "Whether the store answered last time", Some(u64::from(pulse.store_up))),
            ("buckets", "Limited buckets in the book", count(standing.as_ref(), |s| s.buckets)),
            ("open_lots", "Leases that are out", count(standing.as_ref(), |s| s.open_lots)),
            ("replicas", "Gateways that were heard lately", count(standing.as_ref(), |s| s.replicas.len())),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                sheet.gauge(name, help, value)?;
            }
        }
        Ok(())
    }

    fn counters(&self, sheet: &mut Sheet<'_>) -> Written {
        let Self { pulse, standing, .. } = self;
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
        ];
        // A series that begins with the first refusal after a change of the lead has no increase. Of a leader that did not
        // answer nothing is known: 0 would be a fall, and the next figure a rise.
        let idle = (pulse.role != Role::Leading).then_some(0);
        let external = standing.as_ref().map(|standing| standing.external_refusals).or(idle);
        let external = external.map(|refusals| {
            let help = "Refusals of a quota of which something was left: somebody else uses the project";
            ("external_refusals", help, refusals)
        });
        counters.into_iter().chain(external).try_for_each(|(name, help, n)| sheet.counter(name, help, n))
    }
}

fn tell_alerts(pulse: &Pulse, sheet: &mut Sheet<'_>) -> Written {
    let help = "Attempts to deliver messages about alerts, by what became of them";
    let deliveries = pulse.alert_deliveries.iter().map(|((receiver, result), count)| {
        ([("receiver", receiver.clone()), ("result", (*result).to_owned())], counter(*count))
    });
    sheet.family("alert_deliveries", help, deliveries)?;
    let states = [
        ("pending", pulse.alerts_pending),
        ("firing", pulse.alerts_firing),
        ("undelivered", pulse.alerts_waiting),
    ];
    let help = "Alerts that wait to fire and that fire, and messages about them that are not delivered";
    let states = states.into_iter().filter(|_| pulse.role == Role::Leading);
    sheet.family("alerts", help, states.map(|(state, count)| ([("state", state)], gauge(count))))
}

fn count(standing: Option<&Standing>, of: impl Fn(&Standing) -> usize) -> Option<u64> {
    standing.map(|standing| of(standing) as u64)
}

/// Keys by their ids.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 have 41 bits")]
fn tell_keys(keys: &[KeyView], sheet: &mut Sheet<'_>) -> Written {
    let mut states: BTreeMap<_, u64> =
        ["perfect", "good", "degraded", "poor"].map(|state| ((state, "none"), 0)).into();
    for key in keys {
        let reason = away(key).map_or("none", |block| block.cause.as_str());
        *states.entry((key.state(), reason)).or_default() += 1;
    }
    let states =
        states.into_iter().map(|((state, reason), n)| ([("state", state), ("reason", reason)], gauge(n)));
    sheet.family("keys", "Keys by state, and by what keeps them from all work", states)?;
    let shown = || keys.iter().take(MOST_KEYS).map(|key| ([("key", key.key.as_str())], key));
    let scores = shown().map(|(labels, key)| (labels, ConstGauge::new(f64::from(key.score.tenths()) / 10.0)));
    sheet.family("key_health_score", "How well a key did lately, from 0 to 1", scores)?;
    let ends = shown().filter_map(|(labels, key)| {
        let block = away(key).filter(|block| !block.cause.is_terminal() && !block.is_disabled())?;
        Some((labels, ConstGauge::new(block.until.as_ms() as f64 / 1_000.0)))
    });
    let help = "When a key can be used again, as Unix time; none: it can be used, or nobody knows";
    sheet.family("key_blocked_until_timestamp_seconds", help, ends)?;
    let states = shown().map(|([of_key], key)| {
        let reason = away(key).map_or("none", |block| block.cause.as_str());
        let labels = [of_key, ("project", key.project.as_str()), ("state", key.state()), ("reason", reason)];
        (labels, gauge(1))
    });
    sheet.family("key_state", "1 for every key, with its state and what keeps it from all work", states)?;
    let attempts = shown().flat_map(|([(_, id)], key)| {
        let results = [("answered", key.totals.answered), ("failed", key.totals.failed)];
        results.map(|(result, n)| ([("key", id), ("result", result)], counter(n)))
    });
    sheet.family(
        "key_attempts",
        "Attempts with a key that gateways have reported, as long as it is known",
        attempts,
    )
}

/// What keeps a key from all work for the longest time.
fn away(key: &KeyView) -> Option<&Block> {
    let whole = |subject: &Subject| matches!(subject, Subject::Key(_) | Subject::Project(_));
    let blocks = key.blocks.iter().filter(|(subject, _)| whole(subject)).map(|(_, block)| block);
    blocks.max_by_key(|block| (block.cause.is_terminal() || block.is_disabled(), block.until))
}

/// The names of models that a scraper is told; the rest is one, since clients can invent them.
struct Names<'n>(BTreeSet<&'n str>);

impl<'n> Names<'n> {
    fn of(answered: &'n BTreeSet<Model>) -> Self {
        let names = answered.iter().map(Model::as_str);
        let plain = names.filter(|name| Model::is_plain(name));
        Self(plain.take(MOST_MODELS).collect())
    }

    fn name<'m>(&self, model: &'m Model) -> &'m str {
        if self.0.contains(model.as_str()) { model.as_str() } else { "other" }
    }
}

/// What keeps projects and keys from single models.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 have 41 bits")]
fn tell_blocks(keys: &[KeyView], names: &Names<'_>, sheet: &mut Sheet<'_>) -> Written {
    let mut ends: BTreeMap<_, Utc> = BTreeMap::new();
    for key in keys {
        let of_models = key.blocks.iter().filter_map(|(subject, block)| match subject {
            Subject::Bucket(_, model) => Some(("", model, block)),
            Subject::KeyModel(_, model) => Some((key.key.as_str(), model, block)),
            _ => None,
        });
        for (id, model, block) in
            of_models.filter(|(.., block)| !block.cause.is_terminal() && !block.is_disabled())
        {
            let labels = (key.project.as_str(), id, names.name(model), block.cause.as_str());
            ends.entry(labels).and_modify(|until| *until = block.until.max(*until)).or_insert(block.until);
        }
    }
    let ends = ends.into_iter().take(MOST_BUCKETS).map(|((project, key, model, reason), until)| {
        let labels = [("project", project), ("key", key), ("model", model), ("reason", reason)];
        (labels, ConstGauge::new(until.as_ms() as f64 / 1_000.0))
    });
    let help = "When a project, or one key of it, can be used again for a model, as Unix time";
    sheet.family("model_blocked_until_timestamp_seconds", help, ends)
}

/// What is used, in hand and allowed.
type Sums = (u64, u64, Option<u64>);

/// Quotas of projects, and rate limits of clients.
fn tell_quotas(buckets: &[BucketView], names: &Names<'_>, sheet: &mut Sheet<'_>) -> Written {
    let mut sums: BTreeMap<[(&str, &str); 3], Sums> = BTreeMap::new();
    for view in buckets {
        let Bucket::Quota(project, model, dimension) = &view.bucket else { continue };
        let model = names.name(model);
        let labels = [("project", project.as_str()), ("model", model), ("dimension", word(*dimension))];
        let (used, open, limit) = sums.entry(labels).or_default();
        (*used, *open) = (*used + view.used, *open + view.open);
        // Those of many together are no limit of anything.
        *limit = view.limit.filter(|_| model != "other");
    }
    let quotas = || sums.iter().take(MOST_BUCKETS).map(|(labels, sums)| (*labels, sums));
    let used = quotas().map(|(labels, (used, ..))| (labels, gauge(*used)));
    sheet.family("quota_used", "What counts as used now of a quota, in requests or tokens", used)?;
    let leased = quotas().map(|(labels, (_, open, _))| (labels, gauge(*open)));
    sheet.family("quota_leased", "What gateways have in hand of a quota, in requests or tokens", leased)?;
    let limits = quotas().filter_map(|(labels, (.., limit))| Some((labels, gauge((*limit)?))));
    sheet.family("quota_limit", "What a quota allows, in requests or tokens", limits)?;
    let clients = || {
        let clients = buckets.iter().filter_map(|view| match &view.bucket {
            Bucket::Client(name) => Some(([("client", name.as_str())], view)),
            Bucket::Quota(..) | Bucket::Probe(_) => None,
        });
        clients.take(MOST_BUCKETS)
    };
    let used = clients().map(|(labels, view)| (labels, gauge(view.used)));
    sheet.family("client_requests_used", "What counts as used now of a client's rate limit", used)?;
    let limits = clients().filter_map(|(labels, view)| Some((labels, gauge(view.limit?))));
    sheet.family("client_requests_limit", "What a client's rate limit allows", limits)
}

const fn word(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Rpm => "rpm",
        Dimension::Tpm => "tpm",
        Dimension::Rpd => "rpd",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use keyfleet_service::exposition::{Part, expose};

    use super::*;

    #[test]
    fn a_scraper_reads_what_is_known_and_nothing_that_is_not() {
        let pulse = Pulse {
            role: Role::Leading,
            epoch: 7,
            commits: 12,
            lost: 6,
            alerts_firing: 2,
            alert_deliveries: [(("ops".to_owned(), "failed"), 3)].into(),
            ..Pulse::default()
        };
        let figures = Figures { pulse, ..Figures::default() };
        let text = expose(vec![Part::new(PREFIX, figures)], &HeaderMap::new()).text;
        for line in [
            "keyfleet_coordinator_leader 1",
            "keyfleet_coordinator_epoch 7",
            "keyfleet_coordinator_commits_total 12",
            "keyfleet_coordinator_store_up 0",
            "keyfleet_coordinator_reports_lost_total 6",
            "keyfleet_coordinator_alerts{state=\"firing\"} 2",
            "keyfleet_coordinator_alert_deliveries_total{receiver=\"ops\",result=\"failed\"} 3",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("replicas") && !text.contains("open_lots"), "{text}");
        assert!(
            !text.contains("external_refusals"),
            "a leader that does not answer may have counted some: {text}"
        );
    }
}
