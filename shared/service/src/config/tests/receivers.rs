//! `alerts.receivers` and `alerts.heartbeat_url`.

use keyfleet_core::alert::{Rule, Severity};

use super::mistakes::wrong;
use super::*;

/// The base64 of 24 and of 32 bytes.
const WHSEC_24: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const WHSEC_32: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazfQnk9G6wQ=";
const ROUTING: &str = "0123456789abcdef0123456789abcdef";

fn all() -> Case {
    Case::file(&format!(
        "alerts:
  heartbeat_url_file: beat
  receivers:
    - {{name: team, type: slack, url: https://hooks.slack.com/services/T0/B0/sEcReT, severities: [critical, warning]}}
    - {{name: ours, type: webhook, url: 'https://u:sEcReT@in.example:8443/x?t=sEcReT', secret: [{WHSEC_24}, {WHSEC_32}]}}
    - {{name: phone, type: pagerduty, routing_key: {ROUTING}, rules: [pool_exhausted], send_resolved: false}}
    - {{name: prom, type: alertmanager, url: 'http://alertmanager:9093', ignore_quiet_hours: true}}
    - {{name: chat, type: discord, url_file: discord}}
    - {{name: office, type: teams, url: https://x.logic.azure.com/sEcReT}}
    - {{name: files, type: webhook, url: 'http://[::1]:1/sEcReT', secret_file: secrets}}
"
    ))
    .and_file("discord", "https://discord.com/api/webhooks/1/sEcReT\n")
    .and_file("beat", "https://hc-ping.com/sEcReT\n")
    .and_file("secrets", &format!("# the new one\n{WHSEC_32}\n{WHSEC_24} # until May\n"))
}

#[test]
fn every_type_has_what_it_needs() {
    let loaded = all().load();
    let alerts = &loaded.config.alerts;
    assert_eq!(alerts.heartbeat_url, Some(Secret::new("https://hc-ping.com/sEcReT")));
    let names: Vec<_> = alerts.receivers.iter().map(|r| (r.name.as_str(), r.wire.name())).collect();
    let expected = [
        ("team", "slack"),
        ("ours", "webhook"),
        ("phone", "pagerduty"),
        ("prom", "alertmanager"),
        ("chat", "discord"),
        ("office", "teams"),
        ("files", "webhook"),
    ];
    assert_eq!(names, expected);
    let [_, ours, phone, _, chat, _, files] = &alerts.receivers[..] else { panic!("{alerts:?}") };
    let to = &alerts.policy.receivers;
    assert!(to.iter().map(|to| &to.name).eq(alerts.receivers.iter().map(|receiver| &receiver.name)));
    let (any, low, exhausted) = (Rule::ErrorRate, Rule::PoolLow, Rule::PoolExhausted);
    assert!(to[0].wants(any, Severity::Warning) && !to[0].wants(any, Severity::Info));
    assert!(to[2].wants(exhausted, Severity::Info) && !to[2].wants(low, Severity::Info));
    assert!(to[0].send_resolved && !to[2].send_resolved);
    assert!(to[3].refresh.is_some() && to[0].refresh.is_none(), "only an Alertmanager forgets");
    assert!(to[3].ignore_quiet_hours && !to[0].ignore_quiet_hours);
    assert_eq!(chat.wire.url().expose(), "https://discord.com/api/webhooks/1/sEcReT");
    assert_eq!(phone.wire.url().expose(), "https://events.pagerduty.com/v2/enqueue");
    let lengths = |receiver: &Receiver| match &receiver.wire {
        Wire::Webhook { keys, .. } => keys.iter().map(|key| key.expose().len()).collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    assert_eq!((lengths(ours), lengths(files)), (vec![24, 32], vec![32, 24]));
}

#[test]
fn a_receiver_has_its_own_way_out_or_that_of_all() {
    let case = Case::file(
        "alerts:
  proxy_url: http://u:sEcReT@out:3128
  receivers:
    - {name: a, type: slack, url: https://hooks.slack.com/x, proxy_url: socks5h://own}
    - {name: b, type: slack, url: https://hooks.slack.com/x}
",
    );
    let loaded = case.load();
    let alerts = &loaded.config.alerts;
    let all = Secret::new("http://u:sEcReT@out:3128");
    let ways: Vec<_> = alerts.receivers.iter().map(|receiver| receiver.proxy_url.clone()).collect();
    assert_eq!(ways, [Some(Secret::new("socks5h://own")), Some(all.clone())]);
    assert_eq!(alerts.proxy_url, Some(all));
    let text = print(&loaded);
    assert!(text.contains("http://***@out:3128/") && !text.contains("sEcReT"), "{text}");
}

#[test]
fn only_the_server_of_a_receiver_is_shown() {
    let loaded = all().load();
    let text = print(&loaded)
        .replace(&format!("{}/", loaded.file.as_deref().unwrap().parent().unwrap().display()), "");
    for line in [
        "      url: \"https://hooks.slack.com/***\"  # config.yaml:4",
        "      url: \"https://in.example:8443/***\"  # config.yaml:5",
        "      url_file: \"https://discord.com/***\"  # config.yaml:8",
        "      routing_key: \"***\"  # config.yaml:6",
        "        - \"***\"  # config.yaml:5",
        "      secret_file: \"***\"  # config.yaml:10",
        "        - critical  # config.yaml:4",
        "  heartbeat_url_file: \"https://hc-ping.com/***\"  # config.yaml:2",
    ] {
        assert!(text.lines().any(|l| l == line), "no line `{line}` in:\n{text}");
    }
    let debug = format!("{loaded:?}{:?}", loaded.config.alerts);
    for secret in ["sEcReT", ROUTING, &WHSEC_24[8..20], &WHSEC_32[8..20], "49, 242"] {
        assert!(!text.contains(secret) && !debug.contains(secret), "{secret} in:\n{text}\n{debug}");
    }
}

#[test]
fn variables_give_receivers_as_json() {
    let case = Case::new()
        .env("KEYFLEET__ALERTS__RECEIVERS", r#"[{"name": "a", "type": "slack", "url_file": "@hook"}]"#)
        .env("KEYFLEET__ALERTS__HEARTBEAT_URL_FILE", "@hook")
        .and_file("hook", "https://hooks.slack.com/services/x");
    let alerts = case.load().config.alerts;
    assert_eq!(
        alerts.receivers[0].wire,
        Wire::Slack { url: Secret::new("https://hooks.slack.com/services/x") }
    );
    assert_eq!(alerts.heartbeat_url.as_ref(), Some(alerts.receivers[0].wire.url()));
    assert!(Case::new().load().config.alerts.receivers.is_empty());
}

#[test]
fn mistakes_are_told_with_their_place() {
    wrong(
        &format!(
            "alerts:
  heartbeat_url: ftp://x
  reciever: []
  receivers:
    - {{name: a, type: slack}}
    - {{name: a, type: slak, url: http://x}}
    - {{type: webhook, url: http://x, secret: whsec_AAAA}}
    - {{name: b, url: http://x}}
    - {{name: c, type: pagerduty}}
    - {{name: d, type: pagerduty, routing_key: short}}
    - {{name: e, type: teams, url: teams.example/x}}
    - {{name: f, type: discord, url: http://x, secret: {WHSEC_24}, routing_key: {ROUTING}}}
    - {{name: g, type: webhook, url: http://x, secret: [x], secret_file: none}}
    - {{name: h, type: webhook, url: http://x, secret: [{WHSEC_24}, nothing]}}
    - {{name: i, type: slack, url: http://x, severities: [page], rules: [No Rule], send_resolved: perhaps}}
    - {{name: j, type: slack, url: http://x, url_file: y, sendresolved: true}}
    - {{name: k, type: webhook, url: http://x, secret_file: none}}
    - {{name: l, type: slack, url: ''}}
    - {{name: m, type: pagerduty, routing_key: ''}}
    - text
"
        ),
        &[
            "config.yaml:2: alerts.heartbeat_url: wrong value; give a URL that begins with http:// or https://",
            "config.yaml:3: alerts.reciever: unknown field; did you mean `receivers`?",
            "config.yaml:5: alerts.receivers[0]: `url` is missing; add it, or `url_file`",
            "config.yaml:6: alerts.receivers[1].name: another receiver has this name (at line 5); choose another",
            "config.yaml:6: alerts.receivers[1].type: wrong value; give one of slack, webhook, pagerduty, alertmanager, discord, teams",
            "config.yaml:7: alerts.receivers[2]: `name` is missing; add it",
            "config.yaml:7: alerts.receivers[2].secret: wrong value; give whsec_ and 24 to 64 bytes as base64, as `echo whsec_$(openssl rand -base64 32)` prints it",
            "config.yaml:8: alerts.receivers[3]: `type` is missing; add one of slack, webhook, pagerduty, alertmanager, discord, teams",
            "config.yaml:9: alerts.receivers[4]: `routing_key` is missing; add it, or `routing_key_file`",
            "config.yaml:10: alerts.receivers[5].routing_key: wrong value; give the integration key of a service: 32 letters and digits",
            "config.yaml:11: alerts.receivers[6].url: not a URL: relative URL without a base; give one like http://host",
            "config.yaml:12: alerts.receivers[7].routing_key: only a receiver with `type: pagerduty` has this; remove it",
            "config.yaml:12: alerts.receivers[7].secret: only a receiver with `type: webhook` has this; remove it",
            "config.yaml:13: alerts.receivers[8].secret_file: `secret` is set as well; remove one of the two",
            "config.yaml:14: alerts.receivers[9].secret[1]: wrong value; give whsec_ and 24 to 64 bytes as base64, as `echo whsec_$(openssl rand -base64 32)` prints it",
            "config.yaml:15: alerts.receivers[10].rules[0]: wrong value; give one of pool_exhausted, pool_low, unhealthy_keys, error_rate, response_time, breaker_open, key_disabled, replica_lost, leader_changed, store_unreachable, bus_unreachable, store_suspect, external_use, config_rejected, delivery_failing",
            "config.yaml:15: alerts.receivers[10].send_resolved: wrong value; give true or false",
            "config.yaml:15: alerts.receivers[10].severities[0]: wrong value; give one of info, warning, critical",
            "config.yaml:16: alerts.receivers[11].sendresolved: unknown field; did you mean `send_resolved`?",
            "config.yaml:16: alerts.receivers[11].url_file: `url` is set as well; remove one of the two",
            "config.yaml:17: alerts.receivers[12].secret_file: cannot read `none`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:18: alerts.receivers[13]: `url` is missing; add it, or `url_file`",
            "config.yaml:19: alerts.receivers[14]: `routing_key` is missing; add it, or `routing_key_file`",
            "config.yaml:20: alerts.receivers[15]: wrong value; give a mapping",
        ],
    );
}

/// Nothing that a file was to give is taken for not wanted.
#[test]
fn an_empty_file_is_no_secret() {
    let problems = Case::file(
        "server: {admin_token_file: blank, clients: [{name: a, token_file: blank}]}
redis_url_file: blank
alerts:
  heartbeat_url_file: blank
  receivers:
    - {name: a, type: slack, url_file: blank}
    - {name: b, type: pagerduty, routing_key_file: blank}
groups:
  - {name: g, api_keys: [{key_file: blank}]}
",
    )
    .and_file("blank", " \n")
    .problems();
    let expected = [
        "config.yaml:1: server.admin_token_file",
        "config.yaml:1: server.clients[0].token_file",
        "config.yaml:2: redis_url_file",
        "config.yaml:4: alerts.heartbeat_url_file",
        "config.yaml:6: alerts.receivers[0].url_file",
        "config.yaml:7: alerts.receivers[1].routing_key_file",
        "config.yaml:9: groups[0].api_keys[0].key_file",
    ];
    let expected = expected.map(|place| {
        format!("{place}: the file `blank` is empty; write the secret into it, or remove the option")
    });
    assert_eq!(problems, expected.join("\n"));
}
