//! Reads `redis_url`, `redis` and `redis_key_prefix`.

use url::Url;

use super::print::{quoted, without_user};
use super::reader::{Field, Section};
use super::schema::{Redis, Secret};
use super::values::PEM;

const SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];

pub(super) fn read(s: &mut Section<'_>) -> Option<Redis> {
    let given = s.secret("redis_url");
    let url = given.as_ref().and_then(|(secret, field)| url(secret.expose(), field));
    let prefix = s.field("redis_key_prefix");
    let key_prefix = key_prefix(&prefix);
    let mut redis = s.section("redis");
    let user = redis.field("username");
    let username = user.name();
    user.show(username.as_deref().map_or_else(|| "null".to_owned(), quoted));
    let password = redis.shown_secret("password");
    let ca = redis.field("ca_file");
    let ca_file = redis.file("ca_file", &PEM);
    let secret_mistake = redis.field("password").has_mistake();
    let section = redis.field.clone();
    redis.finish();
    let Some((_, field)) = given else {
        s.field("redis_url").show("null");
        if !s.field("redis_url").has_mistake() {
            [section, prefix]
                .iter()
                .filter(|field| field.is_set())
                .for_each(|field| field.warn("has no effect without `redis_url`"));
        }
        return None;
    };
    let mut url = url?;
    field.show(quoted(&without_user(&url)));
    if ca.is_set() && !url.scheme().starts_with("rediss") {
        ca.problem("`redis_url` does not ask for TLS; begin it with rediss, or remove this");
    }
    if user.is_set() && password.is_none() && !secret_mistake {
        user.problem("`password` is missing; add it, or `password_file`");
    }
    for (at, taken) in [
        (user.is_set().then_some(&user), !url.username().is_empty()),
        (password.as_ref().map(|(_, field)| field), url.password().is_some()),
    ] {
        if let Some(at) = at.filter(|_| taken) {
            at.problem("`redis_url` says it as well; keep one of the two");
        }
    }
    // A URL with a host takes both. Only the percent sign is not escaped in it: the URL takes it for an escape.
    let escaped = |text: &str| text.replace('%', "%25");
    let named = username.is_none_or(|name| url.set_username(&escaped(&name)).is_ok());
    let known =
        password.is_none_or(|(password, _)| url.set_password(Some(&escaped(password.expose()))).is_ok());
    (named && known).then(|| Redis { url: Secret::new(String::from(url)), ca_file, key_prefix })
}

/// A URL in one of the forms that name one server, those of Sentinel, or those of a cluster.
fn url(text: &str, field: &Field<'_>) -> Option<Url> {
    let url = field.url(text, &SCHEMES)?;
    let kind = url.scheme().trim_start_matches("rediss").trim_start_matches("redis");
    let given = |name: &str| url.query_pairs().filter(|(n, _)| n == name).map(|(_, v)| v).collect::<Vec<_>>();
    let nodes = given("node");
    if url.host_str().is_some_and(|host| host.contains(',')) || (kind.is_empty() && !nodes.is_empty()) {
        field.problem(
            "several servers; give redis-sentinel://host:26379?sentinelServiceName=name&node=host2:26379, \
             or redis-cluster://host:6379?node=host2:6379",
        );
    }
    if kind == "-sentinel" && given("sentinelServiceName").is_empty() {
        field.problem("the name of the service is missing; add ?sentinelServiceName=name");
    }
    let address = |node: &str| {
        node.split_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if !nodes.iter().all(|node| address(node)) {
        field.problem("a `node` is no address; give node=host:port for each");
    }
    let database = url.path().trim_start_matches('/');
    if !database.is_empty() && database.parse::<u8>().is_err() {
        field.problem("the path is not the number of a database; give /0, or none");
    }
    Some(url)
}

fn key_prefix(field: &Field<'_>) -> String {
    let prefix = field.text().unwrap_or_else(|| "keyfleet".to_owned());
    field.show(quoted(&prefix));
    if prefix.contains(['{', '}']) || prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
        field.problem(
            "wrong value; give a text without spaces and braces, which would scatter the keys over a cluster",
        );
    }
    prefix
}
