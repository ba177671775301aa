//! Reads `alerts.receivers`. Whoever knows the URL of a receiver can write to it: they are secrets, path and all.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keyfleet_core::alert::{Recipient, Rule, Severity};
use url::Url;

use super::alerts::SEVERITIES;
use super::groups::{lines, proxy_url};
use super::place::Origin;
use super::print::{HIDDEN, quoted};
use super::reader::{Field, Section};
use super::schema::{Receiver, Secret, SigningKey, Wire};
use super::server::label;

/// Where `PagerDuty` takes events, unless the account is in Europe.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
/// The length of its integration keys.
const ROUTING_KEY: usize = 32;
/// The bytes of a secret, as Standard Webhooks says.
const SIGNING_KEY: std::ops::RangeInclusive<usize> = 24..=64;
/// Each adds a signature to the header.
const MAX_SIGNING_KEYS: usize = 8;

/// Alertmanager loses what it knows when it is restarted, and takes for over what is not repeated. It does not pass
/// repetitions on.
const ALERTMANAGER_FORGETS: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slack,
    Webhook,
    PagerDuty,
    Alertmanager,
    Discord,
    Teams,
}

const KINDS: [(&str, Kind); 6] = [
    ("slack", Kind::Slack),
    ("webhook", Kind::Webhook),
    ("pagerduty", Kind::PagerDuty),
    ("alertmanager", Kind::Alertmanager),
    ("discord", Kind::Discord),
    ("teams", Kind::Teams),
];

/// `proxy` is the way out of those that name none.
pub(super) fn read(list: &Field<'_>, proxy: Option<&Secret>) -> Vec<(Recipient, Receiver)> {
    let mut names = BTreeMap::new();
    let entries = list.elements();
    let receivers = entries.iter().filter_map(|entry| receiver(entry, proxy, &mut names)).collect();
    if !list.is_set() {
        list.show("[]");
    }
    receivers
}

fn receiver(
    entry: &Field<'_>,
    proxy: Option<&Secret>,
    names: &mut BTreeMap<String, Origin>,
) -> Option<(Recipient, Receiver)> {
    let mut s = entry.entry()?;
    let name = name(&s.field("name"), entry, names);
    let kind = kind(&s.field("type"), entry);
    let wire = wire(&mut s, kind, entry);
    let proxy_url = proxy_url(&mut s).or_else(|| proxy.cloned());
    let send_resolved = flag(&s.field("send_resolved"), true);
    let ignore_quiet_hours = flag(&s.field("ignore_quiet_hours"), false);
    let severities = severities(&s.field("severities"));
    let rules = rules(&s.field("rules"));
    s.finish();
    let (name, wire) = (name?, wire?);
    let receiver = Receiver { name: name.clone(), wire, proxy_url };
    let refresh = matches!(receiver.wire, Wire::Alertmanager { .. }).then_some(ALERTMANAGER_FORGETS);
    Some((Recipient { name, severities, rules, send_resolved, ignore_quiet_hours, refresh }, receiver))
}

fn name(field: &Field<'_>, entry: &Field<'_>, names: &mut BTreeMap<String, Origin>) -> Option<String> {
    if !field.is_set() {
        entry.problem("`name` is missing; add it");
    }
    let name = label(field)?;
    field.show(quoted(&name));
    if let Some(first) = names.insert(name.clone(), field.origin.clone()) {
        let first = field.origin.refer_to(&first);
        field.problem(format_args!("another receiver has this name (at {first}); choose another"));
    }
    Some(name)
}

fn kind(field: &Field<'_>, entry: &Field<'_>) -> Option<Kind> {
    if !field.is_set() {
        let known = KINDS.map(|(word, _)| word).join(", ");
        entry.problem(format_args!("`type` is missing; add one of {known}"));
    }
    let kind = field.choice(&KINDS)?;
    field.show(KINDS.iter().find(|(_, k)| *k == kind).map_or("", |(word, _)| word));
    Some(kind)
}

fn wire(s: &mut Section<'_>, kind: Option<Kind>, entry: &Field<'_>) -> Option<Wire> {
    let url = url(s, "url");
    let keys = only(s, "secret", kind.is_none_or(|kind| kind == Kind::Webhook), "webhook", signing_keys);
    let of_pagerduty = kind.is_none_or(|kind| kind == Kind::PagerDuty);
    let routing_key = only(s, "routing_key", of_pagerduty, "pagerduty", |s| routing_key(s, kind, entry));
    let url = match url {
        Some(url) => url,
        None if kind == Some(Kind::PagerDuty) && !is_set(s, "url") => Secret::new(PAGERDUTY),
        None => {
            if !s.field("url").has_mistake() {
                entry.problem("`url` is missing; add it, or `url_file`");
            }
            return None;
        }
    };
    Some(match kind? {
        Kind::Slack => Wire::Slack { url },
        Kind::Webhook => Wire::Webhook { url, keys: keys? },
        Kind::PagerDuty => Wire::PagerDuty { url, routing_key: routing_key?? },
        Kind::Alertmanager => Wire::Alertmanager { url },
        Kind::Discord => Wire::Discord { url },
        Kind::Teams => Wire::Teams { url },
    })
}

fn is_set(s: &mut Section<'_>, name: &str) -> bool {
    s.field(name).is_set() || s.field(&format!("{name}_file")).is_set()
}

/// Reads a secret that receivers of one type have, and refuses it in others.
fn only<'c, T>(
    s: &mut Section<'c>,
    name: &str,
    has: bool,
    kind: &str,
    read: impl FnOnce(&mut Section<'c>) -> T,
) -> Option<T> {
    if has {
        return Some(read(s));
    }
    for field in [s.field(name), s.field(&format!("{name}_file"))] {
        if field.is_set() {
            field.problem(format_args!("only a receiver with `type: {kind}` has this; remove it"));
        }
    }
    None
}

/// A URL of which only the server may be shown.
pub(super) fn url(s: &mut Section<'_>, name: &str) -> Option<Secret> {
    let Some((secret, field)) = s.secret(name) else {
        s.field(name).show("null");
        return None;
    };
    let url = field.url(secret.expose(), &["http", "https"])?;
    field.show(quoted(&server(&url)));
    Some(secret)
}

fn server(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{}{port}/***", url.scheme(), url.host_str().unwrap_or_default())
}

fn routing_key(s: &mut Section<'_>, kind: Option<Kind>, entry: &Field<'_>) -> Option<Secret> {
    let Some((key, field)) = s.secret("routing_key") else {
        if kind == Some(Kind::PagerDuty) && !s.field("routing_key").has_mistake() {
            entry.problem("`routing_key` is missing; add it, or `routing_key_file`");
        }
        return None;
    };
    field.show(HIDDEN);
    let text = key.expose();
    if text.len() != ROUTING_KEY || !text.chars().all(|c| c.is_ascii_alphanumeric()) {
        return field.expected("the integration key of a service: 32 letters and digits");
    }
    Some(key)
}

/// `secret`: one, or a list while they are changed; or `secret_file`, one per line.
fn signing_keys(s: &mut Section<'_>) -> Vec<SigningKey> {
    let (inline, file) = (s.field("secret"), s.field("secret_file"));
    if inline.is_set() && file.is_set() && inline.origin.same_layer(&file.origin) {
        file.problem("`secret` is set as well; remove one of the two");
        return Vec::new();
    }
    let mut keys = Vec::new();
    if file.is_set() && file.origin > inline.origin {
        let Some((content, path)) = file.name().and_then(|name| file.content(&name)) else { return keys };
        file.show(HIDDEN);
        let found = lines(&content, &path);
        keys.extend(
            found.filter_map(|(origin, text)| signing_key(&file.elsewhere(file.path.clone(), origin), &text)),
        );
        if keys.is_empty() && !file.has_mistake() {
            file.problem("the file holds no secret; put one on each line");
        }
    } else if inline.is_text() {
        inline.show(HIDDEN);
        keys.extend(inline.text().and_then(|text| signing_key(&inline, &text)));
    } else {
        for element in inline.elements() {
            element.show(HIDDEN);
            keys.extend(element.text().and_then(|text| signing_key(&element, &text)));
        }
        if !inline.is_set() {
            inline.show("null");
        }
    }
    if keys.len() > MAX_SIGNING_KEYS {
        inline.problem(format_args!("more than {MAX_SIGNING_KEYS} secrets; keep those that are in use"));
    }
    keys
}

fn signing_key(field: &Field<'_>, text: &str) -> Option<SigningKey> {
    let bytes = text.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
    match bytes {
        Some(bytes) if SIGNING_KEY.contains(&bytes.len()) => Some(SigningKey::new(bytes)),
        _ => field.expected(
            "whsec_ and 24 to 64 bytes as base64, as `echo whsec_$(openssl rand -base64 32)` prints it",
        ),
    }
}

fn severities(list: &Field<'_>) -> Vec<Severity> {
    let mut severities = Vec::new();
    for field in list.elements() {
        if let Some(severity) = field.choice(&SEVERITIES) {
            field.show(severity.as_str());
            severities.push(severity);
        }
    }
    if severities.is_empty() {
        list.show("[]");
    }
    severities
}

fn rules(list: &Field<'_>) -> Vec<Rule> {
    let known = Rule::ALL.map(|rule| (rule.as_str(), rule));
    let mut rules = Vec::new();
    for field in list.elements() {
        if let Some(rule) = field.choice(&known) {
            field.show(rule.as_str());
            rules.push(rule);
        }
    }
    if rules.is_empty() {
        list.show("[]");
    }
    rules
}

fn flag(field: &Field<'_>, default: bool) -> bool {
    let on = field.flag().unwrap_or(default);
    field.show(on);
    on
}
