//! Upstream errors may quote the key that was used. Before any of them is shown, every configured upstream
//! key and everything that looks like a Google key is blotted out.

use crate::live::Live;

const BLOT: &str = "[redacted]";

/// `text` without secrets.
pub(crate) fn redact(text: &str, live: &Live) -> String {
    let mut clean = text.to_owned();
    for group in &live.config.groups {
        for key in &group.keys {
            let secret = key.secret.expose();
            // A secret of a few letters would blot out ordinary words.
            if secret.len() >= 8 && clean.contains(secret) {
                clean = clean.replace(secret, BLOT);
            }
        }
    }
    patterns(&clean)
}

/// Every string inside a JSON value without secrets.
pub(crate) fn redact_json(value: &mut serde_json::Value, live: &Live) {
    match value {
        serde_json::Value::String(text) => *text = redact(text, live),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| redact_json(item, live)),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(|field| redact_json(field, live)),
        _ => {}
    }
}

/// `AIza` and 35 characters, or `AQ.` and at least ten.
fn patterns(text: &str) -> String {
    let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['A', 'I']) {
        let (before, from) = rest.split_at(at);
        clean.push_str(before);
        let run = from.find(|c| !is_key(c)).unwrap_or(from.len());
        let looks = (from.starts_with("AIza") && run >= 39)
            || ((from.starts_with("AQ.") || from.starts_with("IQ.")) && run >= 13);
        if looks {
            clean.push_str(BLOT);
            rest = &from[run..];
        } else {
            clean.push_str(&from[..1]);
            rest = &from[1..];
        }
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_key_is_blotted_out() {
        let key = format!("AIza{}", "x".repeat(35));
        assert_eq!(patterns(&format!("Consumer 'api_key:{key}' has")), "Consumer 'api_key:[redacted]' has");
        assert_eq!(patterns("key AQ.Ab8RN6_abc-DEF, IQ.0123456789"), "key [redacted], [redacted]");
        for harmless in ["AIza is a prefix", "FAQ. See", "An API", "AQ.", "IAM É A"] {
            assert_eq!(patterns(harmless), harmless);
        }
    }
}
