//! Reads `nats_url` and `nats`.

use std::path::PathBuf;
use std::time::Duration;

use super::place::Origin;
use super::print::{quoted, without_user};
use super::reader::{Field, Section};
use super::schema::{Nats, NatsLogin, Secret};
use super::values::{CREDENTIALS, PEM};

const HOUR: u64 = 3600;
const MIB: u64 = 1 << 20;

pub(super) fn read(s: &mut Section<'_>, has_redis: bool) -> Option<Nats> {
    let url = s.field("nats_url");
    let (servers, of_url) = servers(s, &url);
    let mut nats = s.section("nats");
    let login = login(&mut nats, of_url);
    let ca_file = nats.file("ca_file", &PEM);
    let certificate = certificate(&mut nats);
    let subject_prefix = subject_prefix(&nats.field("subject_prefix"));
    let hours = nats.number("stream_max_age_hours", 1..=30 * 24, 2);
    let stream_max_bytes = nats.number("stream_max_bytes", MIB..=1 << 50, 1 << 30);
    let stream_replicas = nats.optional_number("stream_replicas", 1..=5);
    if servers.is_empty() {
        if nats.field.is_set() && !url.has_mistake() {
            nats.field.warn("has no effect without `nats_url`");
        }
        nats.finish();
        return None;
    }
    nats.finish();
    if !has_redis && !s.field("redis_url").has_mistake() {
        url.problem(
            "needs `redis_url`, which keeps what all processes share; add `redis_url: redis://host:6379`, \
             or remove `nats_url` to run as one process",
        );
    }
    Some(Nats {
        servers,
        login,
        ca_file,
        certificate,
        subject_prefix,
        stream_max_age: Duration::from_secs(HOUR * hours),
        stream_max_bytes,
        stream_replicas,
    })
}

/// The servers, and the place of one that says who we are.
fn servers<'c>(s: &mut Section<'c>, url: &Field<'c>) -> (Vec<Secret>, Option<Field<'c>>) {
    let file = s.field("nats_url_file");
    let of_file = file.is_set() && (file.origin > url.origin || file.origin.same_layer(&url.origin));
    let listed = !of_file && (!url.is_text() || matches!(url.origin, Origin::Env(_)));
    let texts: Vec<(Field<'c>, String)> = if listed {
        url.elements().into_iter().filter_map(|element| element.name().map(|text| (element, text))).collect()
    } else if let Some((secret, field)) = s.secret("nats_url") {
        let texts = secret.expose().split(',').map(str::trim).filter(|text| !text.is_empty());
        texts.map(|text| (field.clone(), text.to_owned())).collect()
    } else {
        Vec::new()
    };
    let mut servers = Vec::new();
    let mut shown: Vec<(Field<'c>, String)> = Vec::new();
    let mut login: Option<(Field<'c>, (String, Option<String>))> = None;
    for (field, text) in texts.into_iter().filter(|(field, text)| field.sendable(text)) {
        let Some(url) = field.url(&text, &["nats", "tls"]) else { continue };
        if url.username().is_empty() && url.password().is_some() {
            field.problem("a password without a user; give nats://user:password@host");
        }
        if !url.username().is_empty() {
            let own = (url.username().to_owned(), url.password().map(str::to_owned));
            match &login {
                Some((_, other)) if *other != own => {
                    field.problem("two servers log in differently; give all the same user and password");
                }
                Some(_) => {}
                None => login = Some((field.clone(), own)),
            }
        }
        match shown.last_mut() {
            Some((last, text)) if last.path == field.path => {
                text.push(',');
                text.push_str(&without_user(&url));
            }
            _ => shown.push((field, without_user(&url))),
        }
        servers.push(Secret::new(text));
    }
    if shown.is_empty() {
        url.show("null");
    }
    for (field, text) in &shown {
        field.show(quoted(text));
    }
    (servers, login.map(|(field, _)| field))
}

/// One way to log in, of which there are several.
fn login(s: &mut Section<'_>, of_url: Option<Field<'_>>) -> NatsLogin {
    let user = s.field("user");
    let name = user.name();
    user.show(name.as_deref().map_or_else(|| "null".to_owned(), quoted));
    let mut ways = Vec::from_iter(of_url.map(|field| (field, NatsLogin::OfUrl)));
    match (name, s.shown_secret("password")) {
        (Some(name), Some((password, _))) => {
            ways.push((user, NatsLogin::Password { user: name, password }));
        }
        (Some(_), None) if !s.field("password").has_mistake() => {
            user.problem("`password` is missing; add it, or `password_file`");
        }
        (None, Some((_, password))) if !user.has_mistake() => {
            password.problem("`user` is missing; add it");
        }
        _ => {}
    }
    ways.extend(s.shown_secret("token").map(|(token, field)| (field, NatsLogin::Token(token))));
    if let Some((seed, field)) = s.shown_secret("nkey_seed") {
        if is_seed_of_user(seed.expose()) {
            ways.push((field, NatsLogin::Nkey(seed)));
        } else {
            field.problem("wrong value; give the seed of a user, which begins with SU");
        }
    }
    let creds = s.field("creds_file");
    ways.extend(s.file("creds_file", &CREDENTIALS).map(|path| (creds, NatsLogin::Credentials(path))));
    let mut ways = ways.into_iter();
    let Some((first, login)) = ways.next() else { return NatsLogin::OfUrl };
    for (other, _) in ways {
        other.problem(format_args!("`{}` says who we are as well; keep one of the two", first.path));
    }
    login
}

/// Whether a text has the form of the seed of a user's nkey.
fn is_seed_of_user(text: &str) -> bool {
    let base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
    text.len() == 58 && text.starts_with("SU") && text.chars().all(base32)
}

/// Our certificate and its key, which are of no use without each other.
fn certificate(s: &mut Section<'_>) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (s.field("cert_file"), s.field("key_file"));
    let files = (s.file("cert_file", &PEM), s.file("key_file", &PEM));
    if cert.is_set() && !key.is_set() {
        cert.problem("`key_file` is missing; add it");
    } else if key.is_set() && !cert.is_set() {
        key.problem("`cert_file` is missing; add it");
    }
    files.0.zip(files.1)
}

fn subject_prefix(field: &Field<'_>) -> String {
    let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let prefix = field.text().unwrap_or_default();
    field.show(quoted(&prefix));
    if !prefix.is_empty() && !prefix.split('.').all(word) {
        field.problem("wrong value; give words of letters, digits and - that are joined by dots");
    }
    prefix
}
