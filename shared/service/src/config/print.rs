//! The effective configuration as text: every value with its origin, no secret.

use std::fmt::Write as _;

use url::Url;

use super::Loaded;
use super::place::{Origin, Path, Step};

/// What stands for a secret.
pub(super) const HIDDEN: &str = "\"***\"";

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its place.
    pub path: Path,
    /// The value as it may be shown.
    pub shown: String,
    /// Which layer it is from.
    pub origin: Origin,
}

/// Text as YAML, quoted where it would be misread.
pub(super) fn quoted(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off"
        );
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// A URL without what may be a secret in it.
pub(super) fn without_user(url: &Url) -> String {
    let user = if url.username().is_empty() && url.password().is_none() { "" } else { "***@" };
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let query = if url.query().is_some() || url.fragment().is_some() { "?***" } else { "" };
    format!("{}://{user}{}{port}{}{query}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// The effective configuration, redacted, each value with its origin as a comment.
pub fn print(loaded: &Loaded) -> String {
    let mut text = String::new();
    for warning in &loaded.warnings {
        let _infallible = writeln!(text, "# warning: {warning}");
    }
    let mut previous: &[Step] = &[];
    for setting in &loaded.settings {
        let steps = setting.path.steps();
        let common = steps.iter().zip(previous).take_while(|(a, b)| a == b).count();
        line(&mut text, steps, common);
        let _infallible = writeln!(text, "{}  # {}", setting.shown, setting.origin);
        previous = steps;
    }
    text
}

/// Writes the names of `steps` from the first that differs from the line before.
fn line(text: &mut String, steps: &[Step], common: usize) {
    let mut fresh = true;
    for (depth, step) in steps.iter().enumerate().skip(common) {
        if fresh {
            text.push_str(&"  ".repeat(depth));
        }
        let last = depth + 1 == steps.len();
        match step {
            Step::Index(_) => {
                text.push_str("- ");
                fresh = false;
            }
            Step::Name(name) => {
                text.push_str(&quoted(name));
                text.push_str(if last { ": " } else { ":\n" });
                fresh = true;
            }
        }
    }
}
