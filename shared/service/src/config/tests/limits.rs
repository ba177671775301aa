//! Which limit counts.

use keyfleet_core::id::{Model, ProjectId};
use keyfleet_core::quota::Bucket;
use keyfleet_core::quota::Dimension::{self, Rpd, Rpm, Tpm};

use super::mistakes::wrong;
use super::*;

#[track_caller]
fn limit(config: &Config, project: &str, model: &str, dimension: Dimension) -> Option<u64> {
    config.rules().limit(&Bucket::Quota(ProjectId::new(project), Model::new(model), dimension))
}

#[test]
fn the_first_rule_counts_of_the_project_then_its_group_then_all_for_each_dimension() {
    let config = Case::file(
        "limits: [{rpm: 1000, tpm: 9}]
groups:
  - name: g
    api_keys: [{key: a, project: p}, {key: b, project: q}]
    limits:
      - {models: gemini-2.5-pro, rpm: 5}
      - {models: [models/gemini-2.5-*, gemma-*], rpm: 10, rpd: 250}
projects:
  - {id: p, limits: [{models: '*-pro', rpd: 100}, {rpm: 7}]}
  - {id: idle, limits: [{rpm: 3}]}
",
    )
    .load()
    .config;
    for (project, model, dimension, expected) in [
        ("p", "gemini-2.5-pro", Rpm, Some(7)),
        ("p", "gemini-2.5-pro", Rpd, Some(100)),
        ("p", "gemini-2.5-flash", Rpd, Some(250)),
        ("p", "gemini-2.5-pro", Tpm, Some(9)),
        ("q", "gemini-2.5-pro", Rpm, Some(5)),
        ("q", "gemini-2.5-pro", Rpd, Some(250)),
        ("q", "gemma-3", Rpm, Some(10)),
        ("q", "gemini-3", Rpm, Some(1000)),
        ("q", "gemini-3", Rpd, None),
        ("idle", "gemini-3", Rpm, Some(3)),
        ("unheard-of", "gemini-3", Rpm, None),
    ] {
        assert_eq!(limit(&config, project, model, dimension), expected, "{project} {model} {dimension:?}");
    }
}

#[test]
fn a_project_in_groups_that_differ_has_the_lowest_quota() {
    let config = Case::file(
        "limits: [{rpd: 50}]
groups:
  - name: a
    api_keys: [{key: a, project: p}]
    limits: &both [{models: '*-lite', rpm: 30}, {rpm: 10, tpm: 100}]
  - name: b
    api_keys: [{key: b, project: p}, {key: c, project: q}, {key: d, project: p}, {key: e, project: r}]
    limits: [{models: gemini-*, rpm: 5, tpm: 200, rpd: 70}]
  - {name: c, api_keys: [{key: f, project: s}, {key: g, project: r}]}
  - {name: d, api_keys: [{key: h, project: s}], limits: *both}
  - {name: e, api_keys: [{key: i, project: s}], limits: *both}
",
    )
    .load()
    .config;
    assert_eq!(config.projects["p"].groups, [0, 1]);
    for (project, model, dimension, expected) in [
        ("p", "gemini-3", Rpm, Some(5)),
        ("p", "gemini-3", Tpm, Some(100)),
        ("p", "gemma-3", Rpm, Some(10)),
        ("p", "gemini-3", Rpd, Some(50)),
        ("p", "gemma-3", Rpd, Some(50)),
        ("q", "gemini-3", Tpm, Some(200)),
        ("r", "gemini-3", Rpm, Some(5)),
        ("s", "gemma-lite", Rpm, Some(30)),
        ("s", "gemma", Rpm, Some(10)),
    ] {
        assert_eq!(limit(&config, project, model, dimension), expected, "{project} {model} {dimension:?}");
    }
}

#[test]
fn limits_come_from_variables_too() {
    let config = Case::new()
        .env("KEYFLEET__LIMITS", r#"[{"models": "gemini-*", "rpm": 5}, {"models": ["a", "b"], "tpm": 7}]"#)
        .load()
        .config;
    let rule = |models: &[&str]| LimitRule {
        models: models.iter().map(|&model| model.to_owned()).collect(),
        rpm: None,
        tpm: None,
        rpd: None,
    };
    let first = LimitRule { rpm: Some(5), ..rule(&["gemini-*"]) };
    assert_eq!(config.limits, [first, LimitRule { tpm: Some(7), ..rule(&["a", "b"]) }]);
}

#[test]
fn a_limit_says_what_it_limits() {
    wrong(
        "limits: [{rpm: 0, models: ['']}, {models: a}, 5]
groups:
  - name: g
    api_keys: [a]
    limits: [{rpms: 5}, {tpm: many, rpd: 1000000000001}]
projects: [{id: p, limits: {rpm: 5}}]
",
        &[
            "config.yaml:1: limits[0].models[0]: wrong value; give text; it is empty",
            "config.yaml:1: limits[0].rpm: 0 would allow nothing; leave the model out of `groups[].models` instead",
            "config.yaml:1: limits[1]: limits nothing; add `rpm`, `tpm` or `rpd`, or remove it",
            "config.yaml:1: limits[2]: wrong value; give a mapping",
            "config.yaml:5: groups[0].limits[0]: limits nothing; add `rpm`, `tpm` or `rpd`, or remove it",
            "config.yaml:5: groups[0].limits[0].rpms: unknown field; did you mean `rpm`?",
            "config.yaml:5: groups[0].limits[1].rpd: wrong value; give a number from 1 to 1000000000000",
            "config.yaml:5: groups[0].limits[1].tpm: wrong value; give a number from 1 to 1000000000000",
            "config.yaml:6: projects[0].limits: wrong value; give a list",
        ],
    );
}
