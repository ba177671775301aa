//! Reads `server`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::print::{HIDDEN, quoted};
use super::reader::{Context, Field, Section};
use super::schema::{Client, IpNet, Secret, Server, SessionAffinity};

const DAY: u64 = 86_400;
const MIB: usize = 1 << 20;

/// Where the state is kept unless the option says otherwise, beside the configuration file.
const STATE_FILE: &str = "keyfleet-state.json";

pub(super) fn read(mut s: Section<'_>) -> Server {
    let cx = s.field.cx;
    let host_field = s.field("host");
    let host = host(&host_field, "127.0.0.1");
    let port = s.number("port", 0..=u16::MAX, 4806);
    let ops_port = s.optional_number("ops_port", 0..=u16::MAX).filter(|&ops| ops != port || ops == 0);
    let clients = clients(&s.field("clients"));
    let anonymous = s.field("allow_anonymous");
    let allow_anonymous = anonymous.flag().unwrap_or(false);
    anonymous.show(allow_anonymous);
    if !is_loopback(&host) && !allow_anonymous && s.field("clients").elements().is_empty() {
        host_field.problem(
            "reachable from other machines, but anybody may call; add `server.clients`, \
             or set `server.allow_anonymous: true`, or bind to 127.0.0.1",
        );
    }
    let max_body_bytes = s.number("max_body_bytes", 1..=usize::MAX, 100 * MIB);
    let buffered = s.field("max_buffered_bytes");
    let max_buffered_bytes = s.number("max_buffered_bytes", 1..=usize::MAX, 512 * MIB);
    if buffered.is_set() && max_buffered_bytes < max_body_bytes {
        buffered.warn("less than `server.max_body_bytes`: a body between the two is always refused");
    }
    let server = Server {
        host,
        port,
        ops_port,
        clients,
        trusted_proxies: s
            .texts("trusted_proxies")
            .iter()
            .filter_map(|(t, field)| network(t, field))
            .collect(),
        top_p: s.optional_number("top_p", 0.0..=1.0),
        admin_token: s.shown_secret("admin_token").map(|(token, _)| token),
        connect_timeout: s.seconds("connect_timeout_secs", 1..=DAY, 10),
        request_timeout: s.seconds("request_timeout_secs", 1..=DAY, 600),
        idle_timeout: s.seconds("idle_timeout_secs", 1..=DAY, 300),
        max_wait: Duration::from_millis(s.number("max_wait_ms", 0..=DAY * 1000, 0)),
        drain_timeout: s.seconds("drain_timeout_secs", 0..=DAY, 300),
        max_body_bytes,
        max_buffered_bytes,
        stream_heartbeat: Some(s.seconds("stream_heartbeat_secs", 0..=DAY, 0)).filter(|d| !d.is_zero()),
        session_affinity: s.choice(
            "session_affinity",
            &[
                ("off", SessionAffinity::Off),
                ("header", SessionAffinity::Header),
                ("conversation", SessionAffinity::Conversation),
            ],
        ),
        cors_allowed_origins: origins(&mut s),
        state_file: state_file(cx, &s.field("state_file")),
    };
    later(&mut s);
    s.finish();
    server
}

/// Options of a later version.
fn later(s: &mut Section<'_>) {
    let tokens = s.field("max_tokens_per_request");
    if let Some(number) = tokens.number(&(1..=u64::MAX)) {
        tokens.show(number);
    }
    let kind = s.field("tokenizer_type");
    if let Some(kind_name) = kind.name() {
        kind.show(quoted(&kind_name));
    }
    s.field("tokenizer_config").entries();

    let mut security = s.section("security");
    let https = security.field("require_https");
    if let Some(on) = https.flag() {
        https.show(on);
    }
    for name in ["max_login_attempts", "lockout_duration_secs", "session_timeout_secs"] {
        let field = security.field(name);
        if let Some(number) = field.number(&(1..=u64::from(u32::MAX))) {
            field.show(number);
        }
    }
    security.finish();
}

/// An address or a name to listen on.
pub(super) fn host(field: &Field<'_>, default: &str) -> String {
    let host = field.name().unwrap_or_else(|| default.to_owned());
    field.show(quoted(&host));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if field.is_set() && bare.parse::<IpAddr>().is_err() && !host.chars().all(name) {
        let port = field.path.parent().name("port");
        field.problem(format_args!(
            "not an address or a host name; give one without scheme and port (that is `{port}`)"
        ));
    }
    bare.to_owned()
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn clients(list: &Field<'_>) -> Vec<Client> {
    let mut clients = Vec::new();
    let mut names = BTreeMap::new();
    let mut tokens = BTreeMap::new();
    for entry in list.elements() {
        let Some(mut s) = entry.entry() else { continue };
        let name = s.field("name");
        let token = s.secret_text("token");
        let unreadable = s.field("token").has_mistake();
        s.finish();
        if let Some(text) = name_of(&name, &entry) {
            name.show(quoted(&text));
            if let Some(first) = names.insert(text.clone(), name.origin.clone()) {
                let first = name.origin.refer_to(&first);
                name.problem(format_args!("another client has this name (at {first}); choose another"));
            }
            match token {
                Some((field, token)) if field.sendable(&token) => {
                    field.show(HIDDEN);
                    if token == text {
                        name.problem("this is the token itself, but it is shown in logs; choose a name");
                    }
                    if let Some(first) = tokens.insert(token.clone(), field.origin.clone()) {
                        let first = field.origin.refer_to(&first);
                        field.problem(format_args!(
                            "another client has this token (at {first}); make one of its own"
                        ));
                    }
                    clients.push(Client { name: text, token: Secret::new(token) });
                }
                None if !unreadable => entry.problem("`token` is missing; add it, or `token_file`"),
                _ => {}
            }
        }
    }
    if clients.is_empty() {
        list.show("[]");
    }
    clients
}

/// The name of a client, a group or a project: it goes into logs.
pub(super) fn label(field: &Field<'_>) -> Option<String> {
    const MAX: usize = 128;
    let text = field.name()?;
    if text.len() > MAX || text.chars().any(char::is_control) {
        return field.expected("a name of at most 128 bytes, on one line");
    }
    Some(text)
}

fn name_of(field: &Field<'_>, entry: &Field<'_>) -> Option<String> {
    if !field.is_set() {
        entry.problem("`name` is missing; add it");
        return None;
    }
    label(field)
}

fn network(text: &str, field: &Field<'_>) -> Option<IpNet> {
    let net = text.parse().ok();
    if net.is_none() {
        field.problem("not a network; give one like 10.0.0.0/8 or a single address");
    }
    net
}

fn origins(s: &mut Section<'_>) -> Vec<String> {
    let mut origins = Vec::new();
    for (text, field) in s.texts("cors_allowed_origins") {
        if text == "*" {
            origins.push(text);
        } else if let Some(url) = field.url(&text, &["http", "https"]) {
            let origin = url.origin().ascii_serialization();
            if text.trim_end_matches('/').eq_ignore_ascii_case(&origin) {
                origins.push(origin);
            } else {
                field.problem("an origin has no path, query, user or default port; give scheme://host, or *");
            }
        }
    }
    origins
}

fn state_file(cx: &Context, field: &Field<'_>) -> Option<std::path::PathBuf> {
    let name = field.text().unwrap_or_else(|| STATE_FILE.to_owned());
    let path = (!name.is_empty()).then(|| cx.resolve(&name, &field.origin));
    field.show(path.as_deref().map_or_else(|| "\"\"".to_owned(), |path| quoted(&path.display().to_string())));
    path
}
