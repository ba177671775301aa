//! No answer of a gateway may hold one of its secrets, whatever the scenario is about.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

static SECRETS: LazyLock<Mutex<HashMap<u16, Vec<String>>>> = LazyLock::new(Mutex::default);

/// From now on, no answer from `port` may hold any of `secrets`.
pub(crate) fn watch(port: u16, secrets: &[String]) {
    SECRETS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(port)
        .or_default()
        .extend_from_slice(secrets);
}

/// Fails if `text`, which came from `port`, holds one of its secrets.
pub(crate) fn check(port: Option<u16>, text: &str) {
    let all = SECRETS.lock().unwrap_or_else(PoisonError::into_inner);
    let secrets = port.and_then(|port| all.get(&port)).cloned().unwrap_or_default();
    drop(all);
    let spilled = secrets.iter().any(|secret| text.contains(secret.as_str()));
    assert!(!spilled, "an answer holds a secret: {text}");
}
