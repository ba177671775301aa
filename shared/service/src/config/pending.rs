//! Options that are accepted and checked, but that no program acts upon yet: whoever sets one is told.

use super::reader::{Context, Field};

/// Their places; `[]` is every element of a list. Whoever makes one effective removes it here.
const PENDING: [&str; 7] = [
    "server.max_tokens_per_request",
    "server.tokenizer_type",
    "server.tokenizer_config",
    "server.security.require_https",
    "server.security.max_login_attempts",
    "server.security.lockout_duration_secs",
    "server.security.session_timeout_secs",
];

/// A warning for each of them that is set.
pub(super) fn warn(cx: &Context) {
    for path in PENDING {
        warn_at(&cx.root().field, path);
    }
}

fn warn_at(field: &Field<'_>, path: &str) {
    if !field.is_set() {
        return;
    }
    let Some(name) = path.split(['.', '[']).next().filter(|name| !name.is_empty()) else {
        return field.warn("accepted, but it has no effect yet");
    };
    let (below, rest) = (field.section().field(name), &path[name.len()..]);
    let Some(rest) = rest.strip_prefix("[]") else {
        return warn_at(&below, rest.trim_start_matches('.'));
    };
    for element in below.elements() {
        warn_at(&element, rest.trim_start_matches('.'));
    }
}
