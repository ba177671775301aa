//! What nobody is told.

use jiff::tz::TimeZone;

use super::*;

fn silence(matchers: &[(&str, &str)], until: Utc) -> Silence {
    let matchers = matchers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Silence { matchers, author: "somebody".to_owned(), reason: "a test".to_owned(), until }
}

#[test]
fn an_exhausted_pool_explains_its_keys() {
    let mut bench = Bench::new();
    bench.set(Rule::PoolExhausted, "x", true);
    for key in ["k1", "k2", "k3"] {
        bench.set(Rule::KeyDisabled, key, true);
    }
    assert_eq!(bench.pass(60), [firing(Rule::PoolExhausted, &["x"])]);
    bench.clear(Rule::PoolExhausted, "x");
    bench.clear(Rule::KeyDisabled, "k1");
    // What is still wrong then is told; what was over meanwhile is not.
    let told = bench.pass(400);
    assert!(told.contains(&firing(Rule::KeyDisabled, &["k2", "k3"])), "{told:?}");
    assert!(told.contains(&resolved(Rule::PoolExhausted, &["x"])), "{told:?}");
    assert_eq!(told.len(), 2);
}

#[test]
fn what_is_about_to_fire_explains_as_well() {
    for lasts in [true, false] {
        let mut bench = Bench::new();
        bench.policy.group_wait = Duration::ZERO;
        let at_once = Timing { wait: Duration::ZERO, ..Rule::KeyDisabled.timing() };
        bench.policy.timings.insert(Rule::KeyDisabled, at_once);
        bench.set(Rule::PoolExhausted, "x", true);
        bench.set(Rule::KeyDisabled, "k1", true);
        assert_eq!(bench.pass(5), []);
        if !lasts {
            bench.clear(Rule::PoolExhausted, "x");
        }
        let told =
            if lasts { firing(Rule::PoolExhausted, &["x"]) } else { firing(Rule::KeyDisabled, &["k1"]) };
        assert_eq!(bench.pass(60), [told]);
    }
}

#[test]
fn only_the_same_model_is_explained() {
    let mut bench = Bench::new();
    let model = |rule, model: &str| Reading {
        rule,
        labels: [("model".to_owned(), model.to_owned())].into(),
        fires: true,
        summary: String::new(),
        value: None,
    };
    let readings =
        vec![model(Rule::PoolExhausted, "a"), model(Rule::PoolLow, "a"), model(Rule::PoolLow, "b")];
    for _ in 0..2 {
        bench.alerts.tick(readings.clone(), |_| true, &bench.policy, bench.now);
        bench.now = bench.now.plus(10 * SECOND);
    }
    let strong = bench.alerts.strong();
    let low = bench.alerts.instances().filter(|(_, instance)| instance.rule == Rule::PoolLow);
    let muted: BTreeMap<_, _> = low
        .map(|(_, low)| {
            (low.labels["model"].clone(), bench.alerts.muted(low, &strong, &bench.policy, bench.now))
        })
        .collect();
    assert_eq!(muted, [("a".to_owned(), Some("inhibited")), ("b".to_owned(), None)].into());
}

#[test]
fn a_silence_holds_for_as_long_as_it_says_and_over_a_failover() {
    let mut bench = Bench::new();
    let until = bench.now.plus(Duration::from_mins(10));
    bench.alerts.silence(silence(&[("rule", "error_rate"), ("model", "x")], until), bench.now).unwrap();
    bench.set(RULE, "x", true);
    bench.set(RULE, "y", true);
    assert_eq!(bench.pass(60), [firing(RULE, &["y"])]);
    bench.take_over();
    assert_eq!(bench.pass(500), []);
    assert_eq!(bench.pass(100), [firing(RULE, &["x", "y"])]);
    assert_eq!(bench.alerts.silences().count(), 0);
    // The end of what was told is told, silence or not.
    bench.alerts.silence(silence(&[("severity", "warning")], bench.now.plus(GIVE_UP)), bench.now).unwrap();
    bench.wrong.clear();
    assert_eq!(bench.pass(400), [resolved(RULE, &["x", "y"])]);
}

#[test]
fn silences_are_checked_and_bounded() {
    let mut bench = Bench::new();
    let (now, later) = (bench.now, bench.now.plus(SECOND));
    for wrong in [
        silence(&[], later),
        silence(&[("rule", "erorr_rate")], later),
        silence(&[("rule", "error_rate")], now),
        silence(&[("rule", "error_rate")], Utc::FOREVER),
        silence(&[("model", &"x".repeat(501))], later),
    ] {
        assert!(bench.alerts.silence(wrong.clone(), now).is_err(), "{wrong:?}");
    }
    for _ in 0..MAX_SILENCES {
        bench.alerts.silence(silence(&[("model", "x")], later), now).unwrap();
    }
    assert!(bench.alerts.silence(silence(&[("model", "x")], later), now).is_err());
    let (number, _) = bench.alerts.silences().next().unwrap();
    assert!(bench.alerts.end_silence(number) && !bench.alerts.end_silence(number));
    assert!(bench.alerts.silence(silence(&[("model", "x")], later), now).is_ok());
}

/// Whoever mistypes a condition is not told that nobody is told.
#[test]
fn a_silence_that_can_cover_nothing_is_refused_with_what_there_is() {
    let mut alerts = Alerts::default();
    let now = Utc::from_ms(0);
    let mut told = |matchers: &[(&str, &str)]| alerts.silence(silence(matchers, now.plus(SECOND)), now);
    for (matchers, expected) in [
        (&[("rule", "poollow")][..], "there is no such rule; there are pool_exhausted, pool_low, "),
        (&[("severity", "huge")], "there is no such severity; there are info, warning, critical"),
        (
            &[("modle", "x")],
            "an alert has no label modle; there are rule, severity, host, key, model, project, reason, receiver, replica",
        ),
        (&[("rule", "pool_low"), ("key", "k")], "pool_low has no label key; there are rule, severity, model"),
        (&[("rule", "pool_low"), ("severity", "Warning")], "there is no such severity; "),
    ] {
        let refused = told(matchers).unwrap_err();
        assert!(refused.starts_with(expected), "{matchers:?}: {refused}");
    }
    for right in [
        &[("severity", "info")][..],
        &[("model", "x")],
        &[("rule", "store_unreachable")],
        &[("rule", "key_disabled"), ("key", "k"), ("reason", "leaked")],
    ] {
        assert!(told(right).is_ok(), "{right:?}");
    }
}

#[test]
fn the_night_belongs_to_what_is_critical() {
    let mut bench = Bench::new();
    // 1,800,000,000 s is 08:00 UTC.
    let zone = TimeZone::UTC;
    bench.policy.quiet_hours = Some(QuietHours { from: 7 * 60, to: 8 * 60 + 10, zone });
    bench.set(RULE, "x", true);
    bench.set(Rule::StoreSuspect, "y", true);
    assert_eq!(bench.pass(599), [firing(Rule::StoreSuspect, &["y"])]);
    assert_eq!(bench.pass(31), [firing(RULE, &["x"])]);
}

#[test]
fn the_night_goes_over_midnight_where_the_clock_hangs() {
    let at = |text: &str| Utc::from_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond());
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let night = QuietHours { from: 22 * 60, to: 7 * 60, zone };
    for (time, quiet) in [
        ("2026-07-01T19:59:00Z", false),
        ("2026-07-01T20:00:00Z", true),
        ("2026-07-02T04:59:00Z", true),
        ("2026-07-02T05:00:00Z", false),
        ("2026-12-01T20:30:00Z", false),
        ("2026-12-01T21:00:00Z", true),
    ] {
        assert_eq!(night.holds(at(time)), quiet, "{time}");
    }
}

#[test]
fn each_is_told_what_it_wants_to_hear_and_when() {
    let mut bench = Bench::new();
    let zone = TimeZone::get("UTC").unwrap();
    bench.policy.quiet_hours = Some(QuietHours { from: 7 * 60, to: 9 * 60, zone });
    let named = Recipient::named;
    bench.policy.receivers = vec![
        Recipient { ignore_quiet_hours: true, ..named("any time") },
        named("daytime"),
        Recipient { ignore_quiet_hours: true, send_resolved: false, ..named("beginnings") },
        Recipient { ignore_quiet_hours: true, rules: vec![Rule::StoreSuspect], ..named("another rule") },
        Recipient { ignore_quiet_hours: true, severities: vec![Severity::Critical], ..named("critical") },
    ];
    let names = |told: Vec<Told>| told.into_iter().map(|told| told.receiver).collect::<Vec<_>>();
    bench.set(RULE, "x", true);
    assert_eq!(names(bench.pass(60)), ["any time", "beginnings"]);
    bench.clear(RULE, "x");
    assert_eq!(names(bench.pass(400)), ["any time"]);
}

#[test]
fn an_end_says_whether_others_that_were_told_go_on() {
    let mut bench = Bench::new();
    for of in ["x", "y", "z"] {
        bench.set(RULE, of, true);
    }
    assert_eq!(bench.pass(60), [firing(RULE, &["x", "y", "z"])]);
    let until = bench.now.plus(GIVE_UP);
    bench.alerts.silence(silence(&[("model", "y")], until), bench.now).unwrap();
    // One that was never told does not count.
    bench.alerts.silence(silence(&[("model", "w")], until), bench.now).unwrap();
    bench.set(RULE, "w", true);
    for (over, still_fires) in [(["x", "z"].as_slice(), true), (&["y"], false)] {
        for of in over {
            bench.clear(RULE, of);
        }
        while bench.alerts.due(bench.now).next().is_none() {
            bench.now = bench.now.plus(SECOND);
            bench.tick();
        }
        let queued: Vec<_> = bench.alerts.outbox().map(|queued| (told(queued), queued.still_fires)).collect();
        assert_eq!(queued, [(resolved(RULE, over), still_fires)]);
        bench.take_over();
        assert_eq!(bench.pass(1), [resolved(RULE, over)]);
    }
}
