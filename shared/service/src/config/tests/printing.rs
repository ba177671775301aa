//! What `print-config` shows.

use super::*;

#[test]
fn every_value_is_printed_with_its_origin_and_no_secret() {
    let case = Case::file(
        "server:
  port: 1
  admin_token: tok-en
  clients:
    - name: alice
      token: clienttoken
groups:
  - name: a
    proxy_url: http://user:pass9@proxy:3128
    api_keys:
      - abc
      - {key: second, id: mine}
redis_url: redis://:pw1234@r:6379/0
monitoring:
  alert_thresholds:
    error_rate: 0.5
",
    )
    .env("KEYFLEET__SERVER__TOP_P", "0.5")
    .env("GEMINI_API_KEYS", "third")
    .cli(Some("127.0.0.2"), None);
    let folder = format!("{}/", case.folder.path().display());
    let text = print(&case.load()).replace(&folder, "");
    for line in [
        "server:",
        "  host: \"127.0.0.2\"  # command line",
        "  port: 1  # config.yaml:2",
        "  clients:",
        "    - name: alice  # config.yaml:5",
        "      token: \"***\"  # config.yaml:6",
        "  top_p: 0.5  # env KEYFLEET__SERVER__TOP_P",
        "  admin_token: \"***\"  # config.yaml:3",
        "  drain_timeout_secs: 300  # default",
        "    proxy_url: \"http://***@proxy:3128/\"  # config.yaml:9",
        "      - key-ba7816bf8f  # config.yaml:11",
        "      - id: mine  # config.yaml:12",
        "        key: \"***\"  # config.yaml:12",
        "  - name: env  # env GEMINI_API_KEYS",
        "redis_url: \"redis://***@r:6379/0\"  # config.yaml:13",
        "rate_limit: null  # default",
        "    error_rate: 0.5  # config.yaml:16",
    ] {
        assert!(text.lines().any(|l| l == line), "no line `{line}` in:\n{text}");
    }
    for secret in ["tok-en", "clienttoken", "pass9", "second", "third", "pw1234"] {
        assert!(!text.contains(secret), "{secret} in:\n{text}");
    }
}

#[test]
fn what_is_printed_can_be_parsed() {
    let text = print(&Case::file(EXISTING).load());
    assert!(
        yaml::parse(&text)
            .unwrap()
            .root
            .is_some_and(|root| root.find("monitoring.alert_thresholds.error_rate").is_some())
    );
}

#[test]
fn debug_output_shows_no_secret() {
    let case = Case::file(EXISTING).env("GEMINI_API_KEYS", "third-key");
    let text = format!("{:?}{:?}", case.load(), case.sources);
    for secret in ["third-key", "AIzaSyFirst", "0123-admin", "pass9", "pw1234"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[test]
fn networks_contain_their_addresses() {
    for (net, addr, inside) in [
        ("10.0.0.0/8", "10.255.1.2", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("0.0.0.0/0", "8.8.8.8", true),
        ("192.168.1.7", "192.168.1.7", true),
        ("192.168.1.7", "192.168.1.6", false),
        ("10.0.0.0/8", "::ffff:10.1.1.1", true),
        ("::ffff:10.0.0.0/104", "10.1.1.1", true),
        ("::ffff:10.0.0.0/104", "11.1.1.1", false),
        ("fd00::/8", "fd12::1", true),
        ("::/0", "fe80::1", true),
        ("fd00::/8", "10.0.0.1", false),
    ] {
        let net: IpNet = net.parse().unwrap();
        assert_eq!(net.contains(addr.parse().unwrap()), inside, "{net:?} {addr}");
    }
}
