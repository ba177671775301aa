//! Who is told of what, and when.

use std::time::Duration;

use keyfleet_core::alert::{Recipient, Rule, Severity, Timing};

use super::*;

#[test]
fn alerts_are_as_the_file_says() {
    let config = Case::file(
        "alerts:
  group_wait_secs: 1
  group_interval_secs: 0
  quiet_hours: {from: \"22:00\", to: \"07:30\", zone: Europe/Berlin}
  rules:
    pool_low: {for_secs: 5, severity: critical}
    replica_lost: {enabled: no}
  receivers:
    - {name: ops, type: slack, url: \"https://hooks.example/s3cr3t\"}
monitoring:
  alert_thresholds: {unhealthy_keys: 1, error_rate: 0.25, response_time_secs: 2.5}
",
    )
    .load()
    .config;
    let (policy, thresholds) = (&config.alerts.policy, config.alerts.thresholds);
    assert_eq!((policy.group_wait, policy.group_interval), (Duration::from_secs(1), Duration::ZERO));
    assert_eq!(policy.repeat_interval, Duration::from_hours(4));
    let hours = policy.quiet_hours.as_ref().unwrap();
    assert_eq!((hours.from, hours.to), (22 * 60, 7 * 60 + 30));
    let low = Timing {
        enabled: true,
        wait: Duration::from_secs(5),
        keep: Duration::from_mins(1),
        severity: Severity::Critical,
    };
    assert_eq!(policy.timing(Rule::PoolLow), low);
    assert!(!policy.timing(Rule::ReplicaLost).enabled && policy.timing(Rule::KeyDisabled).enabled);
    assert_eq!(policy.receivers, [Recipient::named("ops")]);
    assert_eq!(thresholds.unhealthy_keys, 1);
    assert_eq!((thresholds.error_rate, thresholds.response_time), (0.25, Duration::from_millis(2_500)));
    assert!(!format!("{config:?}").contains("s3cr3t"));
}

#[test]
fn mistakes_about_alerts_are_all_told() {
    let problems = Case::file(
        "alerts:
  quiet_hours: {from: \"25:00\", to: \"07:30\"}
  rules:
    pool_lo: {}
    pool_low: {for: 5}
  receivers:
    - {name: ops, type: slack, url: \"ftp://hooks.example\"}
    - {url: \"https://hooks.example\"}
monitoring: {alert_thresholds: {response_time_secs: 1, response_time_ms: 1000}}
",
    )
    .problems();
    for problem in [
        "alerts.quiet_hours.from: wrong value; give a time of the day such as \"22:00\"",
        "alerts.rules.pool_lo: unknown field; did you mean `pool_low`?",
        "alerts.rules.pool_low.for: unknown field",
        "alerts.receivers[0].url: wrong value; give a URL that begins with http:// or https://",
        "alerts.receivers[1]: `name` is missing; add it",
        "response_time_ms: `response_time_secs` is set as well; remove one of the two",
    ] {
        assert!(problems.contains(problem), "no `{problem}` in:\n{problems}");
    }
    let zone =
        Case::file("alerts: {quiet_hours: {from: \"22:00\", to: \"7:30\", zone: Utopia}}\n").problems();
    assert!(zone.contains("no time zone of that name"), "{zone}");
    let never_ends = Case::file("alerts: {quiet_hours: {from: \"07:00\", to: \"7:00\"}}\n").problems();
    assert_eq!(
        never_ends,
        "config.yaml:1: alerts.quiet_hours.to: the same time as `from`; give a later or an earlier one, or remove `quiet_hours`"
    );
}
