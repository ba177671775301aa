//! Input and the exact mistakes that it makes.

use std::fmt::Write as _;

use super::*;

#[track_caller]
pub(super) fn wrong(text: &str, problems: &[&str]) {
    assert_eq!(Case::file(text).problems(), problems.join("\n"), "in:\n{text}");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_place() {
    wrong(
        "sevrer: {}
server:
  port: 70000
  top_p: high
  max_wait_ms: -1
  allow_anonymous: maybe
  session_affinity: sometimes
  connect_timeout_secs: 0
  state_file: [a]
  admin_tokn: x
rate_limit_behavior: [x]
circuit_breaker: {failure_threshold: 0}
port: 1
",
        &[
            "config.yaml:1: sevrer: unknown field; did you mean `server`?",
            "config.yaml:3: server.port: wrong value; give a number from 0 to 65535",
            "config.yaml:4: server.top_p: wrong value; give a number from 0 to 1",
            "config.yaml:5: server.max_wait_ms: wrong value; give a number from 0 to 86400000",
            "config.yaml:6: server.allow_anonymous: wrong value; give true or false",
            "config.yaml:7: server.session_affinity: wrong value; give one of off, header, conversation",
            "config.yaml:8: server.connect_timeout_secs: wrong value; give a number from 1 to 86400",
            "config.yaml:9: server.state_file: wrong value; give a single value, not a list",
            "config.yaml:10: server.admin_tokn: unknown field; did you mean `admin_token`?",
            "config.yaml:11: rate_limit_behavior: wrong value; give a single value, not a list",
            "config.yaml:12: circuit_breaker.failure_threshold: wrong value; give a number from 1 to 4294967295",
            "config.yaml:13: port: unknown field; did you mean `server.port`?",
        ],
    );
}

#[test]
fn keys_are_there_once() {
    wrong(
        "groups:
  - name: a
    api_keys:
      - first
      - second
      - first
  - name: b
    api_keys:
      - {key: second, id: x}
      - {key: third, id: y, project: p}
      - {key: third, id: z, project: q}
      - {key: fourth, id: y}
      - {key: fifth, id: p}
      - ''
      - {id: w}
      -
",
        &[
            "config.yaml:6: groups[0].api_keys[2]: key-a7937b64b8 is listed twice (first at line 4); remove one",
            "config.yaml:9: groups[1].api_keys[0].key: key-16367aacb6 is listed twice (first at line 5); remove one",
            "config.yaml:11: groups[1].api_keys[2].key: key-b1e9932450 is in two projects (in the other at line 10); keep one",
            "config.yaml:12: groups[1].api_keys[3].id: another key has this id (at line 10); choose another",
            "config.yaml:13: groups[1].api_keys[4].key: without `project` its project has the name of its id, which is taken (at line 10); add `project`",
            "config.yaml:14: groups[1].api_keys[5]: empty; give a value or remove it",
            "config.yaml:15: groups[1].api_keys[6]: `key` is missing; add it, or `key_file`",
            "config.yaml:16: groups[1].api_keys[7]: empty; give a value or remove the line",
        ],
    );
    let case = Case::file("groups: [{name: a, api_keys: [x]}]").env("GEMINI_API_KEYS", "x");
    assert_eq!(
        case.problems(),
        "env GEMINI_API_KEYS: groups[1].api_keys[0]: key-2d711642b7 is listed twice (first at config.yaml:1); remove one"
    );
}

#[test]
fn groups_clients_and_projects_are_whole_and_there_once() {
    wrong(
        "server:
  clients:
    - {name: a, token: s1}
    - {name: a, token: s1}
    - {name: b}
    - {token: s2}
    - {name: c, token: ''}
    - {name: s3, token: s3}
groups:
  - {name: g, api_keys: [x]}
  - {name: g, api_keys: [y], weight: 0, auth_mode: query}
  - {api_keys: [z]}
  - {name: empty, api_keys: []}
  - {name: h, api_keys: oops}
projects: [{id: p}, {id: p}, {}]
",
        &[
            "config.yaml:4: server.clients[1].name: another client has this name (at line 3); choose another",
            "config.yaml:4: server.clients[1].token: another client has this token (at line 3); make one of its own",
            "config.yaml:5: server.clients[2]: `token` is missing; add it, or `token_file`",
            "config.yaml:6: server.clients[3]: `name` is missing; add it",
            "config.yaml:7: server.clients[4].token: empty; give a value or remove it",
            "config.yaml:8: server.clients[5].name: this is the token itself, but it is shown in logs; choose a name",
            "config.yaml:11: groups[1].auth_mode: wrong value; give one of auto, bearer, api_key",
            "config.yaml:11: groups[1].name: another group has this name (at line 10); choose another",
            "config.yaml:11: groups[1].weight: wrong value; give a number from 1 to 1000000",
            "config.yaml:12: groups[2]: `name` is missing; add it",
            "config.yaml:13: groups[3]: the group has no key; add `api_keys` or `api_keys_file`, or remove the group",
            "config.yaml:14: groups[4].api_keys: wrong value; give a list",
            "config.yaml:15: projects[1].id: another project has this id (at line 15); remove one",
            "config.yaml:15: projects[2]: `id` is missing; add it",
        ],
    );
}

#[test]
fn addresses_are_checked_without_a_connection() {
    wrong(
        "server:
  host: http://x
  trusted_proxies: [10.0.0.0/33, proxy]
  cors_allowed_origins: ['https://a.example/path', a]
redis_url: http://x
groups:
  - {name: a, api_keys: [1], target_url: ftp://x/, proxy_url: 'socks4://u:secret@p'}
  - {name: b, api_keys: [2], target_url: 'https:///'}
  - {name: c, api_keys: [3], target_url: 'https://h/?key=secret'}
  - {name: d, api_keys: [4], target_url: generativelanguage.googleapis.com}
",
        &[
            "config.yaml:2: server.host: not an address or a host name; give one without scheme and port (that is `server.port`)",
            "config.yaml:2: server.host: reachable from other machines, but anybody may call; add `server.clients`, or set `server.allow_anonymous: true`, or bind to 127.0.0.1",
            "config.yaml:3: server.trusted_proxies[0]: not a network; give one like 10.0.0.0/8 or a single address",
            "config.yaml:3: server.trusted_proxies[1]: not a network; give one like 10.0.0.0/8 or a single address",
            "config.yaml:4: server.cors_allowed_origins[0]: an origin has no path, query, user or default port; give scheme://host, or *",
            "config.yaml:4: server.cors_allowed_origins[1]: not a URL: relative URL without a base; give one like http://host",
            "config.yaml:5: redis_url: wrong value; give a URL that begins with redis:// or rediss:// or redis-sentinel:// or rediss-sentinel:// or redis-cluster:// or rediss-cluster://",
            "config.yaml:7: groups[0].proxy_url: wrong value; give a URL that begins with http:// or https:// or socks5:// or socks5h://",
            "config.yaml:7: groups[0].target_url: wrong value; give a URL that begins with http:// or https://",
            "config.yaml:8: groups[1].target_url: not a URL: empty host; give one like http://host",
            "config.yaml:9: groups[2].target_url: holds a user, a query or a fragment; give scheme://host/path only, keys belong in `api_keys`",
            "config.yaml:10: groups[3].target_url: not a URL: relative URL without a base; give one like http://host",
        ],
    );
}

#[test]
fn variables_are_named() {
    let case = Case::new()
        .env("KEYFLEET__SERVER__PROT", "1")
        .env("KEYFLEET__SERVER__TOP_P", "2")
        .env("KEYFLEET__GROUPS", "a,b")
        .env("KEYFLEET__MONITORING", "x")
        .env("KEYFLEET__MONITORING__HEALTH_CHECK_INTERVAL_SECS", "5")
        .env("KEYFLEET__LIMITS", "[{")
        .env("KEYFLEET__PROJECTS__0__ID", "a")
        .env("GEMINI_API_KEYS", "x")
        .env("GEMINI_API_KEYS_FILE", "y")
        .env("PORT", "http");
    assert_eq!(
        case.problems(),
        "env GEMINI_API_KEYS_FILE: GEMINI_API_KEYS is set as well; remove one of the two
env KEYFLEET__GROUPS: groups[0]: wrong value; give a mapping
env KEYFLEET__GROUPS: groups[1]: wrong value; give a mapping
env KEYFLEET__LIMITS: limits: wrong value; give valid JSON
env KEYFLEET__MONITORING: monitoring: wrong value; give a mapping
env KEYFLEET__MONITORING__HEALTH_CHECK_INTERVAL_SECS: monitoring.health_check_interval_secs: another variable sets what this one is a part of; keep one
env KEYFLEET__PROJECTS__0__ID: projects: wrong value; give a list
env KEYFLEET__SERVER__PROT: server.prot: unknown option; did you mean `KEYFLEET__SERVER__PORT`?
env KEYFLEET__SERVER__TOP_P: server.top_p: wrong value; give a number from 0 to 1
env PORT: server.port: wrong value; give a number from 0 to 65535"
    );
}

#[test]
fn files_that_are_named_must_be_there() {
    wrong(
        "server: {admin_token_file: none, clients: [{name: a, token_file: none}]}
redis_url: redis://a
redis_url_file: b
groups:
  - {name: a, api_keys_file: keys}
",
        &[
            "config.yaml:1: server.admin_token_file: cannot read `none`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:1: server.clients[0].token_file: cannot read `none`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:3: redis_url_file: `redis_url` is set as well; remove one of the two",
            "config.yaml:5: groups[0].api_keys_file: cannot read `keys`: No such file or directory (os error 2); correct the path or its rights",
        ],
    );
    let mut case = Case::new();
    case.sources.file = Some(case.folder.path().join("gone.yaml"));
    assert_eq!(
        case.problems(),
        "gone.yaml: cannot read: No such file or directory (os error 2); correct the path (`-c`, CONFIG_PATH) or its rights"
    );
    let keys = Case::file("groups: [{name: a, api_keys_file: keys}]").and_file("keys", "x\n\nx\n");
    assert_eq!(
        keys.problems(),
        "keys:3: groups[0].api_keys[1]: key-2d711642b7 is listed twice (first at line 1); remove one"
    );
}

#[test]
fn what_is_no_yaml_is_said_with_line_and_column() {
    wrong("a: [1\nb: 2\n", &["config.yaml:2:2: not valid YAML: illegal placement of ':' indicator"]);
    wrong("- a\n", &["config.yaml: not a mapping; begin with `groups:`"]);
    wrong("server: {}\n---\nserver: {}\n", &["config.yaml:2:1: a second document; keep one"]);
    wrong(
        "server:\n  port: !env PORT\n",
        &["config.yaml:2:9: tags (`!…`) are not supported; quote the text"],
    );
    wrong("a: &x [*x]\n", &["config.yaml:1:8: an alias inside the value that it stands for; write it out"]);
    wrong(
        "server:\n  port: 1\n  port: 2\n",
        &["config.yaml:3: server.port: a field given twice (first at line 2); remove one"],
    );
}

#[test]
fn what_multiplies_or_nests_without_end_is_refused() {
    let mut bomb = String::from("a: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let alias = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(bomb, "b{level}: &a{level} [{alias}]").unwrap();
    }
    assert!(Case::file(&bomb).problems().ends_with("more than 500000 values"));
    let deep = format!("a: {}{}", "[".repeat(100), "]".repeat(100));
    assert!(Case::file(&deep).problems().ends_with("nested deeper than 32 levels"));
}

#[test]
fn the_rest_of_the_options_are_checked_too() {
    wrong(
        "rate_limit: {burst_size: 5}
fallbacks: {a: [a, b, b], '': [x], c: d}
monitoring: {alert_thresholds: {x: [1]}}
limits: [{rpm: 0, models: ['']}]
quota: {lease_wait: 5}
coordinator: 5
server:
  security: {max_login_attempts: none}
  tokenizer_config: text
",
        &[
            "config.yaml:1: rate_limit: `requests_per_minute` is missing; add it, or remove `rate_limit`",
            "config.yaml:2: fallbacks.: wrong value; give the name of a model, without spaces",
            "config.yaml:2: fallbacks.a[0]: a model cannot stand in for itself; remove it",
            "config.yaml:2: fallbacks.a[2]: listed twice; remove one",
            "config.yaml:2: fallbacks.c: wrong value; give a list",
            "config.yaml:3: monitoring.alert_thresholds.x: unknown field; remove it (known here: unhealthy_keys, error_rate, response_time_ms, response_time_secs)",
            "config.yaml:4: limits[0].models[0]: wrong value; give text; it is empty",
            "config.yaml:4: limits[0].rpm: 0 would allow nothing; leave the model out of `groups[].models` instead",
            "config.yaml:5: quota.lease_wait: unknown field; did you mean `lease_wait_ms`?",
            "config.yaml:6: coordinator: wrong value; give a mapping",
            "config.yaml:8: server.security.max_login_attempts: wrong value; give a number from 1 to 4294967295",
            "config.yaml:9: server.tokenizer_config: wrong value; give a mapping",
        ],
    );
}

#[test]
fn a_mistake_in_an_alias_is_where_the_alias_is() {
    wrong(
        "groups:
  - name: a
    api_keys:
      - &key abc
      - *key
",
        &[
            "config.yaml:5: groups[0].api_keys[1]: key-ba7816bf8f is listed twice (first at line 4); remove one",
        ],
    );
}

#[test]
fn a_flood_of_mistakes_is_counted() {
    let keys = vec!["''"; 300].join(", ");
    let problems = Case::file(&format!("groups: [{{name: a, api_keys: [{keys}]}}]")).problems();
    assert_eq!(problems.lines().count(), 201);
    assert!(problems.ends_with("\nand 100 more"));
}

/// A secret in every place where one belongs and in many where none does.
#[test]
fn no_mistake_shows_a_secret() {
    let texts = [
        "groups: [{name: a, api_keys: SECRET}]",
        "groups: [{name: a, api_keys: [SECRET, SECRET]}]",
        "groups: [{name: a, api_keys: [{SECRET: x}]}]",
        "groups: [{name: a, api_keys: [{key: {SECRET: x}}]}]",
        "groups: [{name: a, api_keys: [{key: x, SECRET: y, SECRET: z}]}]",
        "groups: [{name: a, SECRET: x}]",
        "groups: [{name: a, api_keys: [{key: SECRET, id: SECRET}]}]",
        "groups: [{name: a, api_keys: [{key: SECRET, project: SECRET}]}]",
        "groups: [{name: a, api_keys: [x], proxy_url: 'foo://u:SECRET@h'}]",
        "groups: [{name: a, api_keys: [x], proxy_url: 'http://u:SECRET@'}]",
        "groups: [{name: a, api_keys: [x], target_url: 'https://u:SECRET@h'}]",
        "groups: [{name: a, api_keys: [x], auth_mode: SECRET, weight: SECRET}]",
        "server: {clients: [{SECRET: x}], admin_token: [SECRET], port: SECRET, host: 'SECRET@h'}",
        "server: {clients: [{name: SECRET, token: SECRET}], top_p: SECRET}",
        "server: {clients: [SECRET]}",
        "redis_url: 'http://:SECRET@h'",
        "redis_url: 'redis://:SECRET@a,b?x=SECRET'",
        "redis_url: 'redis-sentinel://a/SECRET?node=SECRET'",
        "{redis_url: 'redis://:SECRET@h', redis: {username: SECRET, password: SECRET}}",
        "{redis_url: SECRET, redis_key_prefix: 'SECRET {', redis: {SECRET: x}}",
        "nats_url: [SECRET, 'nats://SECRET@h', 'nats://u:SECRET@h', 'nats://:SECRET@h']",
        "nats_url: {SECRET: x}",
        "{nats_url: 'nats://SECRET@h', nats: {user: u, token: SECRET, nkey_seed: SECRET, subject_prefix: 'SECRET x'}}",
        "nats: {password: SECRET, creds_file: [SECRET], stream_max_bytes: SECRET}",
        "{limits: [{models: SECRET, rpm: SECRET}, SECRET], quota: {when_unleased: SECRET}, coordinator: {port: SECRET}}",
        "alerts: {heartbeat_url: 'ftp://SECRET', receivers: [{name: a, type: slack, url: SECRET}, {SECRET: x}]}",
        "alerts: {receivers: [{type: SECRET, url: 'ftp://h/SECRET'}, {type: pagerduty, routing_key: SECRET-SECRET}]}",
        "alerts: {receivers: [{type: webhook, secret: SECRET}, {type: webhook, secret: [SECRET], rules: [SECRET]}]}",
        "SECRET: x",
        "SECRET",
        "a: 'SECRET",
        "a: *SECRET",
    ];
    for text in texts {
        let problems = Case::file(&text.replace("SECRET", "AIzaSyD-sEcReT_0123456789")).problems();
        assert!(!problems.contains("sEcReT"), "{text}\n{problems}");
    }
    // Among secrets a name is one even if it looks like an option, or a little like one.
    for secret in ["opensesame", "tokenofmine", "keyofmine"] {
        for list in ["server: {clients: [{SECRET: x}]}", "groups: [{name: a, api_keys: [{SECRET: x}]}]"] {
            let problems = Case::file(&list.replace("SECRET", secret)).problems();
            assert!(!problems.contains(secret), "{list}\n{problems}");
        }
    }
}
