//! NATS, Redis, the coordinator's listener and what happens without a lease.

use std::time::Duration;

use super::mistakes::wrong;
use super::*;

const CA: &str = "-----BEGIN CERTIFICATE-----\n";
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

fn url(case: &Case) -> String {
    case.load().config.redis.unwrap().url.expose().to_owned()
}

fn servers(case: &Case) -> Vec<String> {
    let servers = case.load().config.nats.unwrap().servers;
    servers.iter().map(|server| server.expose().to_owned()).collect()
}

#[test]
fn without_a_word_about_it_there_is_one_process() {
    let config = Case::new().load().config;
    assert_eq!((config.nats, config.redis), (None, None));
    assert_eq!(config.coordinator, Coordinator { host: "127.0.0.1".to_owned(), port: 4807 });
    assert_eq!(
        config.quota,
        Quota {
            configured: WhenUnleased::Closed,
            learned: WhenUnleased::Open,
            lease_wait: Duration::from_millis(50),
            max_replicas: 10,
            learn_limits: true,
        }
    );
}

#[test]
fn nats_and_redis_have_defaults_but_for_their_urls() {
    let config = Case::file("{nats_url: 'nats://n:4222', redis_url: 'redis://r:6379/0'}").load().config;
    assert_eq!(
        config.nats.unwrap(),
        Nats {
            servers: vec![Secret::new("nats://n:4222")],
            login: NatsLogin::OfUrl,
            ca_file: None,
            certificate: None,
            subject_prefix: String::new(),
            stream_max_age: Duration::from_hours(2),
            stream_max_bytes: 1 << 30,
            stream_replicas: None,
        }
    );
    let redis =
        Redis { url: Secret::new("redis://r:6379/0"), ca_file: None, key_prefix: "keyfleet".to_owned() };
    assert_eq!(config.redis.unwrap(), redis);
}

#[test]
fn nats_servers_are_a_list_or_stand_between_commas() {
    let both = ["nats://a:4222", "tls://b"];
    let file = |nats: &str| Case::file(&format!("redis_url: redis://r\n{nats}"));
    assert_eq!(servers(&file("nats_url: ' nats://a:4222, tls://b'")), both);
    assert_eq!(servers(&file("nats_url: [nats://a:4222, tls://b]")), both);
    assert_eq!(servers(&file("nats_url_file: n").and_file("n", "nats://a:4222,tls://b\n")), both);
    let env = |text: &str| file("nats_url: nats://other").env("KEYFLEET__NATS_URL", text);
    assert_eq!(servers(&env("nats://a:4222,tls://b")), both);
    assert_eq!(servers(&env(r#"["nats://a:4222", "tls://b"]"#)), both);
    let over_file = file("nats_url_file: n").and_file("n", "nats://other");
    assert_eq!(servers(&over_file.env("KEYFLEET__NATS_URL", r#"["nats://a:4222", "tls://b"]"#)), both);
    let higher = file("nats_url: [nats://other]").and_file("n", "nats://a:4222,tls://b");
    assert_eq!(servers(&higher.env("KEYFLEET__NATS_URL_FILE", "@n")), both);
}

#[test]
fn there_are_five_ways_to_log_in_at_nats() {
    let login = |options: &str| {
        let text = format!("redis_url: redis://r\nnats_url: nats://n\nnats: {options}");
        let case = Case::file(&text).and_file("secret", &format!("{SEED}\n"));
        let case = case.and_file("creds", "-----BEGIN NATS USER JWT-----\n");
        (case.load().config.nats.unwrap().login, case.folder.path().to_owned())
    };
    let password = NatsLogin::Password { user: "u".to_owned(), password: Secret::new("p") };
    assert_eq!(login("{user: u, password: p}").0, password);
    assert_eq!(login("{token: t}").0, NatsLogin::Token(Secret::new("t")));
    assert_eq!(login("{nkey_seed_file: secret}").0, NatsLogin::Nkey(Secret::new(SEED)));
    let (creds, folder) = login("{creds_file: creds}");
    assert_eq!(creds, NatsLogin::Credentials(folder.join("creds")));
    let of_url = Case::file("{redis_url: redis://r, nats_url: ['nats://u:p@n', 'nats://u:p@m', nats://o]}");
    assert_eq!(of_url.load().config.nats.unwrap().login, NatsLogin::OfUrl);
    assert_eq!(servers(&of_url), ["nats://u:p@n", "nats://u:p@m", "nats://o"]);
}

#[test]
fn files_for_tls_are_beside_the_configuration_and_watched() {
    let case = Case::file(
        "redis_url: rediss://r
redis: {ca_file: ca}
nats_url: nats://n
nats: {ca_file: ca, cert_file: cert, key_file: key, subject_prefix: eu.prod-1, stream_max_age_hours: 3, stream_max_bytes: 1048576, stream_replicas: 3}
",
    );
    let case = case.and_file("ca", CA).and_file("cert", CA).and_file("key", CA);
    let loaded = case.load();
    let (nats, redis) = (loaded.config.nats.unwrap(), loaded.config.redis.unwrap());
    let path = |name: &str| case.folder.path().join(name);
    assert_eq!((nats.ca_file, redis.ca_file), (Some(path("ca")), Some(path("ca"))));
    assert_eq!(nats.certificate, Some((path("cert"), path("key"))));
    assert_eq!((nats.subject_prefix.as_str(), nats.stream_max_bytes), ("eu.prod-1", 1 << 20));
    assert_eq!((nats.stream_max_age, nats.stream_replicas), (Duration::from_hours(3), Some(3)));
    assert!(["ca", "cert", "key"].iter().all(|name| loaded.inputs.paths().any(|p| p == path(name))));
}

#[test]
fn a_password_can_be_kept_out_of_the_redis_url() {
    let sentinel = "rediss-sentinel://a:26379/1?sentinelServiceName=m&node=b:26379";
    let case = Case::file(&format!(
        "{{redis_url: '{sentinel}', redis_key_prefix: 'gemini:', redis: {{username: acl, password_file: p}}}}"
    ));
    let case = case.and_file("p", "p@ss/w:rd%\n");
    assert_eq!(url(&case), sentinel.replace("//a", "//acl:p%40ss%2Fw%3Ard%25@a"));
    assert_eq!(case.load().config.redis.unwrap().key_prefix, "gemini:");
    let nobody =
        Case::file("redis_url: redis-cluster://h:7000?node=i:7000").env("KEYFLEET__REDIS__PASSWORD", "p");
    assert_eq!(url(&nobody), "redis-cluster://:p@h:7000?node=i:7000");
    assert_eq!(url(&Case::new().env("REDIS_URL", "redis://h")), "redis://h");
}

#[test]
fn what_happens_without_a_lease_is_one_word() {
    let quota = |text: &str| Case::file(&format!("quota: {{when_unleased: {text}}}")).load().config.quota;
    for (text, expected) in [
        ("open", WhenUnleased::Open),
        ("closed", WhenUnleased::Closed),
        ("reserve(0.1)", WhenUnleased::Reserve(0.1)),
        ("'reserve( 0.9 )'", WhenUnleased::Reserve(0.9)),
    ] {
        let quota = quota(text);
        assert_eq!((quota.configured, quota.learned), (expected, expected), "{text}");
    }
    let case = Case::new()
        .env("KEYFLEET__QUOTA__WHEN_UNLEASED", "reserve(0.25)")
        .env("KEYFLEET__QUOTA__LEASE_WAIT_MS", "0")
        .env("KEYFLEET__QUOTA__LEARN_LIMITS", "no");
    let quota = case.load().config.quota;
    assert_eq!((quota.configured, quota.lease_wait), (WhenUnleased::Reserve(0.25), Duration::ZERO));
    assert!(!quota.learn_limits);
}

#[test]
fn the_coordinator_listens_where_it_is_told_else_beside_the_gateway() {
    let file = "server: {host: 0.0.0.0, port: 80, allow_anonymous: true}";
    let listener = |case: &Case| {
        let config = case.load().config;
        (config.server.host, config.server.port, config.coordinator.host, config.coordinator.port)
    };
    let expect = |host: &str, port, own: &str, own_port| (host.to_owned(), port, own.to_owned(), own_port);
    assert_eq!(listener(&Case::file(file)), expect("0.0.0.0", 80, "0.0.0.0", 4807));
    let mut case = Case::file(&format!("{file}\ncoordinator: {{host: '[::1]', port: 81}}"));
    assert_eq!(listener(&case), expect("0.0.0.0", 80, "::1", 81));
    case = case.cli(Some("127.0.0.2"), Some(82));
    assert_eq!(listener(&case), expect("127.0.0.2", 82, "::1", 81), "the gateway's arguments");
    case.sources.program = Program::Coordinator;
    assert_eq!(listener(&case), expect("0.0.0.0", 80, "127.0.0.2", 82), "the coordinator's arguments");
    let sources = Sources::of_coordinator(None, CliOverrides::default());
    assert_eq!(sources.program, Program::Coordinator);
}

#[test]
fn nats_needs_redis_and_one_of_everything() {
    let needs = "needs `redis_url`, which keeps what all processes share; add `redis_url: redis://host:6379`, or remove `nats_url` to run as one process";
    wrong("nats_url: nats://n", &[&format!("config.yaml:1: nats_url: {needs}")]);
    let env = Case::new().env("KEYFLEET__NATS_URL", "nats://n");
    assert_eq!(env.problems(), format!("env KEYFLEET__NATS_URL: nats_url: {needs}"));
    wrong(
        "redis_url: http://r
nats_url:
  - nats://u:p@a
  - nats://u:q@b
  - nats://:p@c
  - d:4222
nats:
  user: u
  token: t
  nkey_seed: UAxyz
  cert_file: cert
  key_file: none
  ca_file: text
  creds_file: text
  subject_prefix: a..b
  stream_max_age_hours: 0
  stream_replicas: 6
  tokn: x
",
        &[
            "config.yaml:1: redis_url: wrong value; give a URL that begins with redis:// or rediss:// or redis-sentinel:// or rediss-sentinel:// or redis-cluster:// or rediss-cluster://",
            "config.yaml:4: nats_url[1]: two servers log in differently; give all the same user and password",
            "config.yaml:5: nats_url[2]: a password without a user; give nats://user:password@host",
            "config.yaml:6: nats_url[3]: wrong value; give a URL that begins with nats:// or tls://",
            "config.yaml:8: nats.user: `password` is missing; add it, or `password_file`",
            "config.yaml:9: nats.token: `nats_url[0]` says who we are as well; keep one of the two",
            "config.yaml:10: nats.nkey_seed: wrong value; give the seed of a user, which begins with SU",
            "config.yaml:11: nats.cert_file: cannot read `cert`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:12: nats.key_file: cannot read `none`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:13: nats.ca_file: cannot read `text`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:14: nats.creds_file: cannot read `text`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:15: nats.subject_prefix: wrong value; give words of letters, digits and - that are joined by dots",
            "config.yaml:16: nats.stream_max_age_hours: wrong value; give a number from 1 to 720",
            "config.yaml:17: nats.stream_replicas: wrong value; give a number from 1 to 5",
            "config.yaml:18: nats.tokn: unknown field; did you mean `token`?",
        ],
    );
    wrong(
        "redis_url: redis://r
nats_url: nats://n
nats_url_file: n
nats: {password: p, key_file: k}
",
        &[
            "config.yaml:3: nats_url_file: `nats_url` is set as well; remove one of the two",
            "config.yaml:4: nats.key_file: `cert_file` is missing; add it",
            "config.yaml:4: nats.key_file: cannot read `k`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:4: nats.password: `user` is missing; add it",
        ],
    );
    for seed in [&SEED[..57], &SEED.replacen("SU", "SA", 1), &SEED.to_lowercase()] {
        let nkey = format!("{{redis_url: redis://r, nats_url: nats://n, nats: {{nkey_seed: {seed}}}}}");
        let problem =
            "config.yaml:1: nats.nkey_seed: wrong value; give the seed of a user, which begins with SU";
        wrong(&nkey, &[problem]);
    }
    let text = Case::file("redis_url: redis://r\nnats_url: nats://n\nnats: {ca_file: f, creds_file: f}");
    assert_eq!(
        text.and_file("f", "x").problems(),
        "config.yaml:3: nats.ca_file: the file is not PEM; give one that begins with -----BEGIN
config.yaml:3: nats.creds_file: the file holds no credentials; give one that `nsc generate creds` has made"
    );
}

#[test]
fn a_redis_url_has_one_of_three_forms_and_says_nothing_twice() {
    let several = "several servers; give redis-sentinel://host:26379?sentinelServiceName=name&node=host2:26379, or redis-cluster://host:6379?node=host2:6379";
    for (url, problem) in [
        ("redis://a,b", several),
        ("redis://a?node=b:1", several),
        ("redis-sentinel://a", "the name of the service is missing; add ?sentinelServiceName=name"),
        ("redis-cluster://a?node=b", "a `node` is no address; give node=host:port for each"),
        ("redis://a/keys", "the path is not the number of a database; give /0, or none"),
    ] {
        wrong(&format!("redis_url: {url}"), &[&format!("config.yaml:1: redis_url: {problem}")]);
    }
    wrong(
        "redis_url: redis://u:p@h
redis: {username: u, password: p, ca_file: ca}
redis_key_prefix: a{b}
",
        &[
            "config.yaml:2: redis.ca_file: `redis_url` does not ask for TLS; begin it with rediss, or remove this",
            "config.yaml:2: redis.ca_file: cannot read `ca`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:2: redis.password: `redis_url` says it as well; keep one of the two",
            "config.yaml:2: redis.username: `redis_url` says it as well; keep one of the two",
            "config.yaml:3: redis_key_prefix: wrong value; give a text without spaces and braces, which would scatter the keys over a cluster",
        ],
    );
    wrong(
        "{redis_url: redis://h, nats_url: nats://n, redis: {username: u, password_file: no}, nats: {user: u, password_file: no}}",
        &[
            "config.yaml:1: nats.password_file: cannot read `no`: No such file or directory (os error 2); correct the path or its rights",
            "config.yaml:1: redis.password_file: cannot read `no`: No such file or directory (os error 2); correct the path or its rights",
        ],
    );
    wrong(
        "{redis_url: redis://h, redis: {username: u}}",
        &["config.yaml:1: redis.username: `password` is missing; add it, or `password_file`"],
    );
}

#[test]
fn a_reserve_is_a_share_and_a_word_is_known() {
    for text in ["reserve", "reserve(0)", "reserve(1)", "reserve(nan)", "reserve(0.1", "never"] {
        wrong(
            &format!("quota: {{when_unleased: '{text}'}}"),
            &[
                "config.yaml:1: quota.when_unleased: wrong value; give closed, open, or reserve(0.1) with a share from 0.01 to 0.9",
            ],
        );
    }
    wrong(
        "coordinator: {host: 'http://h', prot: 1}",
        &[
            "config.yaml:1: coordinator.host: not an address or a host name; give one without scheme and port (that is `coordinator.port`)",
            "config.yaml:1: coordinator.prot: unknown field; did you mean `port`?",
        ],
    );
}

#[test]
fn options_of_servers_that_are_not_there_are_worth_a_warning() {
    let warnings =
        Case::file("{nats: {subject_prefix: a}, redis: {username: u}, redis_key_prefix: p}").load().warnings;
    for expected in [
        "nats: has no effect without `nats_url`",
        "redis: has no effect without `redis_url`",
        "redis_key_prefix: has no effect without `redis_url`",
    ] {
        assert!(warnings.iter().any(|warning| warning.ends_with(expected)), "{expected}: {warnings:?}");
    }
}

#[test]
fn no_credential_is_printed() {
    let case = Case::file(
        "nats_url: [nats://user:SECRET1@a, nats://b]
redis_url: redis-sentinel://r?sentinelServiceName=m&sentinelPassword=SECRET2
redis: {username: acl, password: SECRET3}
limits: [{models: [a, b], rpm: 5}, {tpm: 6}]
quota: {when_unleased: reserve(0.1)}
",
    );
    let loaded = case.load();
    let text = print(&loaded).replace(&format!("{}/", case.folder.path().display()), "");
    for line in [
        "nats_url: ",
        "  - \"nats://***@a\"  # config.yaml:1",
        "  - \"nats://b\"  # config.yaml:1",
        "redis_url: \"redis-sentinel://r?***\"  # config.yaml:2",
        "  username: acl  # config.yaml:3",
        "  password: \"***\"  # config.yaml:3",
        "redis_key_prefix: keyfleet  # default",
        "  port: 4807  # default",
        "  when_unleased: \"reserve(0.1)\"  # config.yaml:5",
        "  lease_wait_ms: 50  # default",
        "  - models: \"*\"  # default",
        "    tpm: 6  # config.yaml:4",
        "  stream_max_bytes: 1073741824  # default",
    ] {
        assert!(text.lines().any(|l| l.trim_end() == line.trim_end()), "no line `{line}` in:\n{text}");
    }
    let two = Case::file("redis_url: redis://r\nnats_url: 'nats://SECRET@a,nats://b'").load();
    assert!(print(&two).contains("nats_url: \"nats://***@a,nats://b\""), "{}", print(&two));
    let login =
        Case::file(&format!("redis_url: redis://r\nnats_url: nats://n\nnats: {{nkey_seed: {SEED}}}")).load();
    for shown in [text, format!("{loaded:?}"), print(&two), format!("{two:?}")] {
        assert!(!shown.contains("SECRET"), "{shown}");
    }
    assert!(!format!("{login:?}{}", print(&login)).contains(SEED));
    assert!(yaml::parse(&print(&loaded)).is_ok());
}
