mod alerts;
mod cluster;
mod limits;
mod mistakes;
mod printing;
mod receivers;

use std::fs;

use tempfile::TempDir;

use keyfleet_core::alert::seen::Thresholds;

use super::*;

struct Case {
    folder: TempDir,
    sources: Sources,
}

impl Case {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), sources: Sources::default() }
    }

    /// A configuration file of these lines.
    fn file(text: &str) -> Self {
        Self::new().and_file("config.yaml", text).with_file()
    }

    fn with_file(mut self) -> Self {
        self.sources.file = Some(self.folder.path().join("config.yaml"));
        self
    }

    fn and_file(self, name: &str, text: &str) -> Self {
        fs::write(self.folder.path().join(name), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        let value = value.replace('@', &format!("{}/", self.folder.path().display()));
        self.sources.env.insert(name.to_owned(), value);
        self
    }

    fn cli(mut self, host: Option<&str>, port: Option<u16>) -> Self {
        self.sources.cli = CliOverrides { host: host.map(str::to_owned), port };
        self
    }

    #[track_caller]
    fn load(&self) -> Loaded {
        match load(&self.sources) {
            Ok(loaded) => loaded,
            Err(problems) => panic!("{problems}"),
        }
    }

    /// The mistakes, one per line, without the folder's name.
    #[track_caller]
    fn problems(&self) -> String {
        let problems = load(&self.sources).expect_err("loads").to_string();
        problems.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

/// The options of an existing deployment, all of them.
const EXISTING: &str = r#"
server:
  host: "0.0.0.0"
  port: 8080
  top_p: 0.95
  admin_token: "0123-admin"
  max_tokens_per_request: 250000
  connect_timeout_secs: 5
  request_timeout_secs: 60
  allow_anonymous: true
  tokenizer_type: proxy_cached
  tokenizer_config:
    cache_size: 1000
    model: gemma
  security:
    require_https: true
    max_login_attempts: 5
    lockout_duration_secs: 300
    session_timeout_secs: 3600
redis_url: "redis://:pw1234@127.0.0.1:6379/0"
redis_key_prefix: "gemini:"
max_failures_threshold: 4
temporary_block_minutes: 7
internal_retries: 1
rate_limit_behavior: BlockUntilMidnight
circuit_breaker:
  failure_threshold: 6
  recovery_timeout_secs: 60
  success_threshold: 3
rate_limit:
  requests_per_minute: 100
  burst_size: 20
monitoring:
  health_check_interval_secs: 45
  alert_thresholds:
    error_rate: 0.1
    response_time_ms: 5000
groups:
  - name: "Default group"
    api_keys:
      - AIzaSyFirst
      - "AIzaSySecond"
    target_url: "https://generativelanguage.googleapis.com/v1beta/openai"
    proxy_url: "socks5://user:pass9@proxy.example:1080"
    model_aliases:
      gpt-4o: gemini-2.5-pro
"#;

#[test]
fn an_existing_deployment_loads_and_means_what_it_says() {
    let loaded = Case::file(EXISTING).load();
    let (config, server) = (&loaded.config, &loaded.config.server);
    assert_eq!((server.host.as_str(), server.port, server.top_p), ("0.0.0.0", 8080, Some(0.95)));
    assert_eq!(server.admin_token, Some(Secret::new("0123-admin")));
    assert_eq!((server.connect_timeout.as_secs(), server.request_timeout.as_secs()), (5, 60));
    let failure = &config.failure;
    assert_eq!(
        (failure.max_failures, failure.temporary_block.as_secs(), failure.internal_retries),
        (4, 420, 1)
    );
    assert_eq!(failure.bare_429, Bare429::BlockUntilMidnight);
    assert_eq!((failure.breaker_failures, failure.breaker_successes), (6, 3));
    assert_eq!(failure.breaker_recovery.as_secs(), 60);
    let limit = config.rate_limit.unwrap();
    assert_eq!((limit.requests_per_minute, limit.burst_size), (100, 20));
    assert_eq!(config.monitoring.health_check_interval.as_secs(), 45);
    assert_eq!(config.alerts.thresholds, Thresholds::default(), "they say what is usual");
    let group = &config.groups[0];
    assert_eq!(group.name.as_str(), "Default group");
    assert_eq!(group.target_url, "https://generativelanguage.googleapis.com/v1beta/openai/");
    assert_eq!(group.proxy_url, Some(Secret::new("socks5://user:pass9@proxy.example:1080")));
    assert_eq!(group.model_aliases["gpt-4o"].as_str(), "gemini-2.5-pro");
    assert_eq!(secrets(group), ["AIzaSyFirst", "AIzaSySecond"]);
    assert_eq!(config.projects.len(), 2, "a key without a project is one of its own");
}

#[test]
fn what_has_no_effect_yet_is_said_once_each() {
    let warnings = Case::file(EXISTING).load().warnings;
    let mut paths: Vec<_> = warnings.iter().map(|w| w.rsplit(": ").nth(1).unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "server.max_tokens_per_request",
            "server.security.lockout_duration_secs",
            "server.security.max_login_attempts",
            "server.security.require_https",
            "server.security.session_timeout_secs",
            "server.tokenizer_config",
            "server.tokenizer_type",
        ]
    );
    assert!(
        warnings.iter().all(|w| w.contains("config.yaml:") && w.ends_with("has no effect yet")),
        "{warnings:?}"
    );
}

fn secrets(group: &Group) -> Vec<&str> {
    group.keys.iter().map(|key| key.secret.expose()).collect()
}

#[test]
fn nothing_at_all_is_a_valid_configuration_without_keys() {
    let loaded = Case::new().load();
    let server = &loaded.config.server;
    assert_eq!((server.host.as_str(), server.port), ("127.0.0.1", 4806));
    assert_eq!(server.state_file.as_deref(), Some(FilePath::new("keyfleet-state.json")));
    assert!(loaded.config.groups.is_empty() && loaded.config.rate_limit.is_none());
    assert_eq!(require_keys(&loaded).unwrap_err().iter().count(), 1);
    assert!(Case::file("").load().config.groups.is_empty());
    assert!(Case::file("server:\ngroups: ~\n").load().config.groups.is_empty());
}

#[test]
fn a_key_or_token_stays_the_text_that_was_written() {
    let looks = [
        "0123",
        "1e5",
        "0x1F",
        "123456",
        "true",
        "no",
        "1_000",
        ".5",
        "+1",
        "12:30:45",
        "2026-11-23",
        "[x",
        "{x",
    ];
    for text in looks {
        let loaded =
            Case::new().env("KEYFLEET__SERVER__ADMIN_TOKEN", text).env("GEMINI_API_KEYS", text).load();
        assert_eq!(loaded.config.server.admin_token, Some(Secret::new(text)));
        assert_eq!(secrets(&loaded.config.groups[0]), [text]);
        if text.starts_with(['[', '{']) {
            continue;
        }
        let file = format!(
            "server:\n  admin_token: {text}\n  clients: [{{name: a, token: {text}}}]\ngroups:\n  - name: g\n    api_keys: [{text}, {{key: '{text}2'}}]\n"
        );
        let config = Case::file(&file).load().config;
        assert_eq!(config.server.admin_token, Some(Secret::new(text)));
        assert_eq!(config.server.clients[0].token, Secret::new(text));
        assert_eq!(secrets(&config.groups[0]), [text.to_owned(), format!("{text}2")]);
        let json = format!(r#"[{{"name":"g","api_keys":[{text}]}}]"#);
        let config = Case::new().env("KEYFLEET__GROUPS", &json).load().config;
        assert_eq!(secrets(&config.groups[0]), [text], "inside JSON of a variable");
    }
}

#[test]
fn each_layer_overrides_the_one_before() {
    let file = "server: {port: 1, host: localhost}";
    assert_eq!(Case::file(file).load().config.server.port, 1);
    assert_eq!(Case::file(file).env("PORT", "2").load().config.server.port, 2);
    let both = Case::file(file).env("PORT", "2").env("KEYFLEET__SERVER__PORT", "3");
    assert_eq!(both.load().config.server.port, 3);
    let all = both.cli(None, Some(4)).load().config.server;
    assert_eq!((all.port, all.host.as_str()), (4, "localhost"));
    assert_eq!(Case::file(file).cli(Some("::1"), None).load().config.server.host, "::1");
    assert_eq!(Case::file(file).env("HOST", "0.0.0.0").load().config.server.host, "localhost");
    assert_eq!(
        Case::file(file).env("KEYFLEET__SERVER__PORT", "").load().config.server.port,
        1,
        "empty is not set"
    );
    assert_eq!(Case::file("server: {port: ~}").load().config.server.port, 4806, "null is not set");
}

#[test]
fn config_path_names_the_file_unless_an_argument_does() {
    let case =
        Case::new().and_file("config.yaml", "server: {port: 1}").and_file("b.yaml", "server: {port: 2}");
    let case = case.env("CONFIG_PATH", "@b.yaml");
    assert_eq!(case.load().config.server.port, 2);
    assert_eq!(case.with_file().load().config.server.port, 1);
}

#[test]
fn lists_come_from_variables_as_json_or_between_commas() {
    let case = Case::new()
        .env("KEYFLEET__SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1")
        .env("KEYFLEET__SERVER__CORS_ALLOWED_ORIGINS", r#"["*"]"#)
        .env("KEYFLEET__SERVER__CLIENTS", r#"[{"name": "a", "token": "t"}]"#)
        .env("KEYFLEET__FALLBACKS", r#"{"gemini-2.5-pro": ["gemini-2.5-flash"]}"#);
    let config = case.load().config;
    assert_eq!(config.server.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert_eq!(config.server.cors_allowed_origins, ["*"]);
    assert_eq!(config.server.clients[0].name, "a");
    assert_eq!(config.fallbacks["gemini-2.5-pro"][0].as_str(), "gemini-2.5-flash");
}

#[test]
fn keys_of_the_variable_are_a_group_of_their_own() {
    let config = Case::new().env("GEMINI_API_KEYS", "a, b,").load().config;
    assert_eq!((config.groups[0].name.as_str(), secrets(&config.groups[0])), ("default", vec!["a", "b"]));
    let named = Case::new().and_file("keys", "a\nb # second\n").env("GEMINI_API_KEYS_FILE", "@keys").load();
    assert_eq!(secrets(&named.config.groups[0]), ["a", "b"]);
    assert!(named.inputs.paths().any(|path| path.ends_with("keys")));
    let file = Case::file("groups: [{name: x, api_keys: [c]}]").env("GEMINI_API_KEYS", "a,b");
    assert_eq!(secrets(&file.load().config.groups[1]), ["a", "b"]);
    let extended =
        Case::file("groups: [{name: env, api_keys: [c]}]").env("GEMINI_API_KEYS", "a").load().config;
    assert_eq!((extended.groups.len(), secrets(&extended.groups[0])), (1, vec!["c", "a"]));
}

#[test]
fn files_may_lie_in_the_folder_of_credentials() {
    let file = "server: {admin_token_file: \"${CREDENTIALS_DIRECTORY}/empty\"}
groups: [{name: g, api_keys_file: \"${CREDENTIALS_DIRECTORY}/keys\"}]";
    let case = Case::file(file).and_file("keys", "a\nb\n").and_file("empty", "");
    let loaded = case.env("CREDENTIALS_DIRECTORY", "@").load();
    assert_eq!(secrets(&loaded.config.groups[0]), ["a", "b"]);
    assert_eq!(loaded.config.server.admin_token, None, "an empty credential is no secret");
    assert!(loaded.inputs.paths().any(|path| path.ends_with("keys")));
    let problems = Case::file(file).problems();
    assert_eq!(problems.matches("CREDENTIALS_DIRECTORY is not set").count(), 2, "{problems}");
}

#[test]
fn a_key_has_options_of_its_own_and_its_groups_ones_else() {
    let case = Case::file(
        "groups:
  - name: g
    auth_mode: bearer
    proxy_url: http://p1:3128
    priority: 2
    weight: 3
    models: [gemini-2.5-*, models/gemma-3]
    api_keys:
      - {key: a, id: first, project: p, weight: 4, auth_mode: api_key, proxy_url: socks5h://p2}
      - {key_file: secret, project: p}
      - c
    api_keys_file: keys.txt
projects: [{id: p, billing_account: b}, {id: unused}]
",
    )
    .and_file("secret", "b\n")
    .and_file("keys.txt", "# ours\nd\r\n\n  e # the fifth\n");
    let config = case.load().config;
    let group = &config.groups[0];
    assert_eq!((group.priority, group.weight), (2, 3));
    assert_eq!(group.models, ["gemini-2.5-*", "gemma-3"]);
    assert_eq!(secrets(group), ["a", "b", "c", "d", "e"]);
    let [first, second, third, ..] = &group.keys[..] else { panic!() };
    assert_eq!((first.id.as_str(), first.weight, first.auth_mode), ("first", 4, AuthMode::ApiKey));
    assert_eq!(first.proxy_url, Some(Secret::new("socks5h://p2")));
    assert_eq!((&second.id, second.weight, second.auth_mode), (&fingerprint("b"), 1, AuthMode::Bearer));
    assert_eq!(second.proxy_url, Some(Secret::new("http://p1:3128")));
    assert_eq!((second.project.as_str(), third.project.as_str()), ("p", fingerprint("c").as_str()));
    assert_eq!(fingerprint("abc").as_str(), "key-ba7816bf8f");
    assert_eq!(config.projects["p"].billing_account.as_deref(), Some("b"));
    assert_eq!(config.projects.len(), 5);
}

#[test]
fn secrets_come_from_files_and_the_higher_layer_wins() {
    let case = Case::file("server: {admin_token_file: token}").and_file("token", " from-file \n");
    assert_eq!(case.load().config.server.admin_token, Some(Secret::new("from-file")));
    let case = case.env("KEYFLEET__SERVER__ADMIN_TOKEN", "from-env");
    assert_eq!(case.load().config.server.admin_token, Some(Secret::new("from-env")));
    let case = Case::file("server: {admin_token: a}")
        .and_file("t", "b")
        .env("KEYFLEET__SERVER__ADMIN_TOKEN_FILE", "@t");
    let loaded = case.load();
    assert_eq!(loaded.config.server.admin_token, Some(Secret::new("b")));
    assert!(loaded.inputs.paths().any(|path| path.ends_with("t")), "a secret's file is watched");
}

#[test]
fn the_state_is_kept_beside_the_file_unless_told_otherwise() {
    let case = Case::file("");
    assert_eq!(case.load().config.server.state_file, Some(case.folder.path().join("keyfleet-state.json")));
    assert_eq!(Case::file("server: {state_file: ''}").load().config.server.state_file, None);
    assert_eq!(Case::new().env("KEYFLEET__SERVER__STATE_FILE", "").load().config.server.state_file, None);
    let elsewhere = Case::file("server: {state_file: /var/lib/x.json}").load().config.server.state_file;
    assert_eq!(elsewhere.as_deref(), Some(FilePath::new("/var/lib/x.json")));
}

#[test]
fn what_means_off_or_the_default_is_taken_as_such() {
    let server = |options: &str| Case::file(&format!("server: {{{options}}}")).load().config.server;
    assert_eq!(server("port: 5, ops_port: 5").ops_port, None, "the client port");
    assert_eq!(server("port: 0, ops_port: 0").ops_port, Some(0), "two free ports");
    assert_eq!(server("ops_port: 9").ops_port, Some(9));
    assert_eq!(server("stream_heartbeat_secs: 0").stream_heartbeat, None);
    assert_eq!(server("stream_heartbeat_secs: 15").stream_heartbeat.map(|d| d.as_secs()), Some(15));
    assert_eq!(server("admin_token: ''").admin_token, None);
    assert_eq!(server("session_affinity: off").session_affinity, SessionAffinity::Off);
}

#[test]
fn traces_go_where_the_file_says_and_its_credentials_are_not_shown() {
    let of = |text: &str| Case::file(text).load();
    let default = of("").config.telemetry;
    assert_eq!((default.endpoint, default.protocol), (None, OtlpProtocol::Http));
    assert!(default.sampling_ratio >= 1.0 && !default.propagate_upstream && !default.metrics);
    assert!(of("telemetry: {metrics: true}").config.telemetry.metrics);
    let text = "telemetry:\n  endpoint: https://user:pass9@otel.example:4317\n  protocol: grpc\n  sampling_ratio: 0.25";
    let loaded = of(&format!("{text}\n  propagate_upstream: true"));
    let telemetry = loaded.config.telemetry.clone();
    assert_eq!(telemetry.endpoint, Some(Secret::new("https://user:pass9@otel.example:4317/")));
    assert_eq!(telemetry.protocol, OtlpProtocol::Grpc);
    let printed = print(&loaded);
    assert!(
        printed.contains("0.25") && printed.contains("otel.example") && !printed.contains("pass9"),
        "{printed}"
    );
    assert!(of(text).config.telemetry.traces_as(&telemetry), "what is told to the upstream changes at once");
    assert!(!of("telemetry:\n  sampling_ratio: 0.5").config.telemetry.traces_as(&telemetry));
    let wrong = "telemetry: {endpoint: 'grpc://c', protocol: http/json, sampling_ratio: 2, x: 1}";
    let problems = Case::file(wrong).problems();
    for name in ["telemetry.endpoint", "telemetry.protocol", "telemetry.sampling_ratio", "telemetry.x"] {
        assert!(problems.contains(name), "{name}: {problems}");
    }
}

#[test]
fn a_buffer_smaller_than_a_body_is_worth_a_warning() {
    let warnings = Case::file("server: {max_buffered_bytes: 1000}").load().warnings;
    assert!(warnings[0].contains("server.max_buffered_bytes: less than"), "{warnings:?}");
    assert!(
        Case::file("server: {max_buffered_bytes: 1000, max_body_bytes: 1000}").load().warnings.is_empty()
    );
}

#[test]
fn files_of_other_editors_and_what_is_no_file_are_read() {
    assert_eq!(Case::file("\u{feff}server:\r\n  port: 1\r\n").load().config.server.port, 1);
    let mut case = Case::new();
    case.sources.file = Some(PathBuf::from("/dev/null"));
    assert_eq!(case.load().inputs, Inputs::default(), "what can be read only once is not watched");
}

#[test]
fn anchors_are_followed() {
    let case = Case::file(
        "groups:\n  - {name: a, api_keys: [x], model_aliases: &m {a: b}}\n  - {name: b, api_keys: [y], model_aliases: *m}\n",
    );
    assert_eq!(case.load().config.groups[1].model_aliases["a"].as_str(), "b");
}

#[test]
fn a_bind_that_others_reach_needs_clients_or_a_decision() {
    let open = "reachable from other machines, but anybody may call; add `server.clients`, or set `server.allow_anonymous: true`, or bind to 127.0.0.1";
    let case = Case::file("server:\n  host: 0.0.0.0\n  clients: []");
    assert_eq!(case.problems(), format!("config.yaml:2: server.host: {open}"));
    assert_eq!(Case::new().cli(Some("::"), None).problems(), format!("command line: server.host: {open}"));
    let env = Case::new().env("KEYFLEET__SERVER__HOST", "gateway.local");
    assert_eq!(env.problems(), format!("env KEYFLEET__SERVER__HOST: server.host: {open}"));
    Case::file("server: {host: 0.0.0.0, allow_anonymous: true}").load();
    Case::file("server: {host: '[::]', clients: [{name: a, token: t}]}").load();
    for host in ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"] {
        Case::new().cli(Some(host), None).load();
    }
}
