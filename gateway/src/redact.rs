//! Upstream errors may quote the key that was used, and clients send secrets where names belong. Before any such text
//! is shown or logged, every secret of the configuration and everything that looks like a Google key is blotted out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use keyfleet_service::config::Config;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::live::Live;

const BLOT: &str = "[redacted]";
/// Secrets of this length are blotted out wherever they stand. Shorter ones may be parts of ordinary words.
const LONG: usize = 8;
/// Shorter ones than this may be ordinary numbers or names, whatever they are made of.
const ODD: usize = 4;
/// What announces a secret.
const MARKERS: [&str; 7] = ["key", "token", "bearer", "password", "secret", "credential", "credentials"];

/// `text` without secrets.
pub(crate) fn redact(text: &str, live: &Live) -> String {
    let clean = secrets(&live.config).blot(text);
    patterns(clean.as_deref().unwrap_or(text))
}

/// Every string inside a JSON value without secrets.
pub(crate) fn redact_json(value: &mut serde_json::Value, live: &Live) {
    match value {
        serde_json::Value::String(text) => *text = redact(text, live),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| redact_json(item, live)),
        serde_json::Value::Object(fields) => {
            for (name, mut field) in std::mem::take(fields) {
                redact_json(&mut field, live);
                fields.insert(redact(&name, live), field);
            }
        }
        _ => {}
    }
}

/// The secrets of a configuration, made ready once per thread.
fn secrets(config: &Arc<Config>) -> Rc<Secrets> {
    thread_local! {
        static LAST: RefCell<Option<(Weak<Config>, Rc<Secrets>)>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| match last {
        // As long as the weak reference lives, no other configuration can have its address.
        Some((known, secrets)) if Weak::as_ptr(known) == Arc::as_ptr(config) => secrets.clone(),
        _ => {
            let secrets = Rc::new(Secrets::of(config));
            *last = Some((Arc::downgrade(config), secrets.clone()));
            secrets
        }
    })
}

/// A set of bytes.
struct Begins([bool; 256]);

impl Default for Begins {
    fn default() -> Self {
        Self([false; 256])
    }
}

#[derive(Default)]
struct Secrets {
    /// By their first [`LONG`] bytes; of those that begin alike, the longest first.
    long: HashMap<[u8; LONG], Vec<String>, foldhash::fast::RandomState>,
    short: Vec<String>,
    /// Whether any of them begins with a byte: most bytes of a text begin none.
    begins: Begins,
    /// The length of the shortest, if there is any: most names are shorter.
    shortest: Option<usize>,
}

impl Secrets {
    fn of(config: &Config) -> Self {
        let mut secrets = Self::default();
        let server = &config.server;
        server.clients.iter().for_each(|client| secrets.add(client.token.expose()));
        server.admin_token.iter().for_each(|token| secrets.add(token.expose()));
        for key in config.groups.iter().flat_map(|group| &group.keys) {
            secrets.add(key.secret.expose());
            let proxy = key.proxy_url.as_ref().and_then(|proxy| Url::parse(proxy.expose()).ok());
            if let Some(password) = proxy.as_ref().and_then(Url::password) {
                secrets.add(password);
                secrets.add(&percent_decode_str(password).decode_utf8_lossy());
            }
        }
        secrets
    }

    fn add(&mut self, secret: &str) {
        let list = match secret.as_bytes().first_chunk() {
            Some(start) => self.long.entry(*start).or_default(),
            None => &mut self.short,
        };
        if let Some(first) = secret.bytes().next()
            && !list.iter().any(|known| known == secret)
        {
            self.begins.0[usize::from(first)] = true;
            self.shortest = Some(self.shortest.map_or(secret.len(), |least| least.min(secret.len())));
            list.push(secret.to_owned());
            list.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    /// The text without secrets, or nothing if there is none in it.
    fn blot(&self, text: &str) -> Option<String> {
        if self.shortest.is_none_or(|least| text.len() < least) {
            return None;
        }
        let mut clean: Option<String> = None;
        let (mut at, mut kept) = (0, 0);
        while let Some(next) = text.as_bytes()[at..].iter().position(|b| self.begins.0[usize::from(*b)]) {
            at += next;
            match self.at(text, at) {
                None => at += 1,
                Some(len) => {
                    let clean = clean.get_or_insert_default();
                    clean.push_str(&text[kept..at]);
                    clean.push_str(BLOT);
                    at += len;
                    kept = at;
                }
            }
        }
        if let Some(clean) = &mut clean {
            clean.push_str(&text[kept..]);
        }
        clean
    }

    /// The length of the secret that begins here.
    fn at(&self, text: &str, at: usize) -> Option<usize> {
        let rest = &text.as_bytes()[at..];
        let long = rest.first_chunk().and_then(|start| self.long.get(start)).into_iter().flatten();
        let long = long.map(String::as_bytes).find(|secret| rest.starts_with(secret));
        let short = || {
            let mut short = self.short.iter().filter(|secret| rest.starts_with(secret.as_bytes()));
            short.find(|secret| is_meant(text, at, secret)).map(String::as_bytes)
        };
        long.or_else(short).map(<[u8]>::len)
    }
}

/// Whether a short secret that was found is one, and not a word that is spelled alike: it has to stand by itself, and
/// to look like no word or number, or to be announced as a secret, or to be all there is.
fn is_meant(text: &str, at: usize, secret: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    let (before, after) = (&text[..at], &text[at + secret.len()..]);
    if before.ends_with(is_part) || after.starts_with(is_part) {
        return false;
    }
    let letters = secret.chars().filter(|c| c.is_alphabetic()).count();
    let is_odd = secret.len() >= ODD && letters > 0 && letters < secret.chars().count();
    let is_all = before.is_empty() && after.is_empty();
    let lead = before.trim_end_matches(|c: char| c == ' ' || c.is_ascii_punctuation());
    let marker = &lead[lead
        .rfind(|c: char| !c.is_alphanumeric())
        .map_or(0, |at| at + lead[at..].chars().next().map_or(1, char::len_utf8))..];
    let marker = marker.to_ascii_lowercase();
    is_odd || is_all || lead.len() < before.len() && MARKERS.iter().any(|word| marker.ends_with(word))
}

/// `AIza` and 35 characters, or `AQ.` and at least ten.
fn patterns(text: &str) -> String {
    if memchr::memchr2(b'A', b'I', text.as_bytes()).is_none() {
        return text.to_owned();
    }
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

    fn known(all: &[&str]) -> Secrets {
        let mut secrets = Secrets::default();
        for secret in all {
            secrets.add(secret);
        }
        secrets
    }

    #[test]
    fn long_secrets_are_blotted_out_wherever_they_stand() {
        let secrets = known(&["0123456789", "0123456789abc", "pässwörter"]);
        for (text, clean) in [
            ("x0123456789y", "x[redacted]y"),
            ("0123456789abc0123456789ab", "[redacted][redacted]ab"),
            ("é=pässwörter!", "é=[redacted]!"),
        ] {
            assert_eq!(secrets.blot(text).as_deref(), Some(clean));
        }
        assert_eq!(secrets.blot("012345678 passwörter"), None);
        assert_eq!(known(&["0123456789"]).blot("0123456789").as_deref(), Some(BLOT), "nothing but it");
    }

    #[test]
    fn short_secrets_are_blotted_out_where_they_are_meant() {
        let secrets = known(&["k3y-a", "test", "42", "Ö1"]);
        for (text, clean) in [
            ("It was k3y-a.", "It was [redacted]."),
            ("API key: test is not valid", "API key: [redacted] is not valid"),
            ("api_key:'42' and Bearer test", "api_key:'[redacted]' and Bearer [redacted]"),
            ("?key=42&n=42", "?key=[redacted]&n=42"),
            ("test", "[redacted]"),
            ("the öffentlicher token Ö1", "the öffentlicher token [redacted]"),
        ] {
            assert_eq!(secrets.blot(text).as_deref(), Some(clean), "{text}");
        }
        for harmless in
            ["This is a test.", "k3y-ab", "monkey-test", "code 42", "keytest", "token tests", "é test"]
        {
            assert_eq!(secrets.blot(harmless), None, "{harmless}");
        }
    }
}
