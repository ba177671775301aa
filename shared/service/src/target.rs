//! The upstream's two surfaces, from the one address that is configured.

use url::Url;

/// Where the official compat surface lies below the native one.
const OFFICIAL: &str = "/v1beta/openai/";

/// Where the native surface begins, with its last slash, given the compat base with its last slash. Native paths begin
/// with their version, so what names the version or the surface is taken off; a prefix before it stays.
#[must_use]
pub fn native_base(compat: &Url) -> Url {
    let path = compat.path();
    let prefix = match path.find(OFFICIAL) {
        Some(at) => &path[..=at],
        None => {
            without_version(path.strip_suffix("openai/").filter(|rest| rest.ends_with('/')).unwrap_or(path))
        }
    };
    let mut native = compat.clone();
    native.set_path(prefix);
    native.set_query(None);
    native
}

/// A path without a last segment such as `v1` or `v1beta`.
fn without_version(path: &str) -> &str {
    let Some((rest, last)) = path.trim_end_matches('/').rsplit_once('/') else { return path };
    let number = last.strip_prefix('v').unwrap_or_default();
    if number.starts_with(|first: char| first.is_ascii_digit()) { &path[..=rest.len()] } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_native_surface_is_found_from_the_compat_base() {
        for (compat, native) in [
            (
                "https://generativelanguage.googleapis.com/v1beta/openai/",
                "https://generativelanguage.googleapis.com/",
            ),
            ("http://127.0.0.1:4807/gw/v1beta/openai/", "http://127.0.0.1:4807/gw/"),
            ("http://host/v1beta/openai/more/", "http://host/"),
            ("http://host/gw/v1/openai/", "http://host/gw/"),
            ("http://host/gw/openai/", "http://host/gw/"),
            ("http://host/openai/", "http://host/"),
            ("http://host/notopenai/", "http://host/notopenai/"),
            ("http://host/gw/v1/", "http://host/gw/"),
            ("http://host/v2/", "http://host/"),
            ("http://host/via/", "http://host/via/"),
            ("http://host/", "http://host/"),
        ] {
            let compat = Url::parse(compat).unwrap();
            assert_eq!(native_base(&compat).as_str(), native, "{compat}");
        }
    }
}
