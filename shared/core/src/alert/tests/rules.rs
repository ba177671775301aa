//! Where each rule fires, and where it is clear.

use std::collections::BTreeSet;

use super::super::seen::{ModelSeen, Seen, Thresholds, Traffic};
use super::*;
use crate::id::{Host, KeyId, Model, ProjectId, ReplicaId};

fn model(usable: usize, all: usize, attempts: u64, failed: u64, p95_ms: u64) -> Seen {
    let p95 = Some(Duration::from_millis(p95_ms));
    let traffic = Traffic { attempts, failed, p95 };
    let model = ModelSeen { model: Model::new("m"), usable, ready: usable, all, traffic };
    // All models are this one.
    Seen { models: vec![model], overall: traffic, ..Seen::default() }
}

fn unhealthy(unhealthy_keys: usize) -> Seen {
    Seen { unhealthy_keys, keys: 10, ..Seen::default() }
}

/// Whether it fires, is on the edge, or is clear.
fn level(seen: &Seen, rule: Rule) -> &'static str {
    let readings = seen.readings(&Thresholds::default());
    match readings.iter().find(|reading| reading.rule == rule) {
        Some(reading) if reading.fires => "fires",
        Some(_) => "edge",
        None => "clear",
    }
}

#[test]
fn figures_fire_beyond_their_threshold_and_are_clear_well_below() {
    for (seen, rule, expected) in [
        (model(0, 10, 0, 0, 0), Rule::PoolExhausted, "fires"),
        (model(1, 10, 0, 0, 0), Rule::PoolExhausted, "clear"),
        (model(0, 0, 0, 0, 0), Rule::PoolExhausted, "clear"),
        (model(1, 10, 0, 0, 0), Rule::PoolLow, "fires"),
        (model(2, 10, 0, 0, 0), Rule::PoolLow, "edge"),
        (model(3, 10, 0, 0, 0), Rule::PoolLow, "clear"),
        (model(0, 0, 0, 0, 0), Rule::PoolLow, "clear"),
        (model(9, 10, 100, 11, 0), Rule::ErrorRate, "fires"),
        (model(9, 10, 100, 10, 0), Rule::ErrorRate, "edge"),
        (model(9, 10, 100, 5, 0), Rule::ErrorRate, "clear"),
        (model(9, 10, 19, 19, 0), Rule::ErrorRate, "clear"),
        (model(9, 10, 100, 0, 5_001), Rule::ResponseTime, "fires"),
        (model(9, 10, 100, 0, 5_000), Rule::ResponseTime, "edge"),
        (model(9, 10, 100, 0, 4_000), Rule::ResponseTime, "clear"),
        (model(9, 10, 19, 0, 9_000), Rule::ResponseTime, "clear"),
        (unhealthy(4), Rule::UnhealthyKeys, "fires"),
        (unhealthy(3), Rule::UnhealthyKeys, "edge"),
        (unhealthy(2), Rule::UnhealthyKeys, "clear"),
    ] {
        assert_eq!(level(&seen, rule), expected, "{rule:?} of {seen:?}");
    }
}

#[test]
fn facts_fire_for_each_thing_and_are_clear_without() {
    let all = Seen {
        breakers: vec![(Host::new("h"), Model::new("m"))],
        disabled: vec![(KeyId::new("k"), "leaked")],
        lost: vec![ReplicaId::new("r")],
        leader_changed: true,
        bus_down: true,
        store_suspect: true,
        external: vec![(ProjectId::new("p"), Model::new("m"), 3), (ProjectId::new("q"), Model::new("m"), 2)],
        config_rejected: true,
        failing: vec![("slack".to_owned(), 3, "410".to_owned()), ("other".to_owned(), 2, "503".to_owned())],
        ..Seen::default()
    };
    let readings = all.readings(&Thresholds::default());
    let mut rules: Vec<_> = readings.iter().map(|reading| reading.rule.as_str()).collect();
    rules.sort_unstable();
    assert_eq!(
        rules,
        [
            "breaker_open",
            "bus_unreachable",
            "config_rejected",
            "delivery_failing",
            "external_use",
            "key_disabled",
            "leader_changed",
            "replica_lost",
            "store_suspect",
        ]
    );
    let of_models = model(0, 10, 100, 11, 5_001).readings(&Thresholds::default());
    for Reading { rule, labels, .. } in readings.iter().chain(&of_models) {
        let named: BTreeSet<_> = labels.keys().map(String::as_str).collect();
        assert_eq!(named, rule.labels().iter().copied().collect(), "{rule:?}: silences go by them");
    }
    assert!(Seen::default().readings(&Thresholds::default()).is_empty());
}

#[test]
fn what_fails_a_little_everywhere_fails_over_all() {
    let traffic = Traffic { attempts: 10, failed: 2, p95: Some(Duration::from_secs(9)) };
    let models =
        ["a", "b"].map(|name| ModelSeen { model: Model::new(name), usable: 1, ready: 1, all: 1, traffic });
    let overall = Traffic { attempts: 20, failed: 4, ..traffic };
    let mut seen = Seen { models: models.into(), overall, ..Seen::default() };
    let readings = seen.readings(&Thresholds::default());
    let rules: Vec<_> = readings.iter().map(|reading| (reading.rule, reading.fires)).collect();
    assert_eq!(rules, [(Rule::ErrorRate, true), (Rule::ResponseTime, true)]);
    assert!(
        readings.iter().all(|reading| reading.labels.is_empty() && reading.summary.contains("all models"))
    );
    seen.models[1].traffic = Traffic::default();
    assert_eq!(seen.readings(&Thresholds::default()), [], "of one model it is said once");
}

#[test]
fn names_of_models_are_bounded() {
    let models = (0..500).map(|n| ModelSeen {
        model: Model::new(format!("m{n}")),
        usable: 0,
        ready: 0,
        all: 1,
        traffic: Traffic { attempts: n, ..Traffic::default() },
    });
    let readings = Seen { models: models.collect(), ..Seen::default() }.readings(&Thresholds::default());
    assert_eq!(readings.len(), 2 * 64);
    assert!(readings.iter().any(|reading| reading.labels["model"] == "m499"));
}

#[test]
fn every_rule_is_named_and_says_what_to_do() {
    for rule in Rule::ALL {
        assert_eq!(Rule::named(rule.as_str()), Some(rule));
        assert_eq!(serde_json::to_value(rule).unwrap(), rule.as_str());
        assert!(rule.advice().ends_with('.') && !rule.title().ends_with('.'), "{rule:?}");
    }
}
