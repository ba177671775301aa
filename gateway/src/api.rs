//! Which surface a request speaks to, and what it asks for: from method, path, query and headers to a [`Call`].
//!
//! | path | surface |
//! |---|---|
//! | `/v1beta/openai/*`, `/v1/openai/*`, `/openai/v1/*`, `/chat/completions` and its like | compat |
//! | `/v1beta/*`, `/v1alpha/*`, `/upload/*`, `/download/*` | native |
//! | `/v1/*` | native if the path exists only there, or by the credential; else compat |

pub(crate) mod gemini;
pub(crate) mod interactions;
pub(crate) mod openai;
pub(crate) mod route;

use std::borrow::Cow;

use http::{HeaderMap, Uri};

use crate::call::Surface;

/// A request's way, found from its head alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) surface: Surface,
    /// Behind the compat base or the native root, without a leading slash.
    pub(crate) path: String,
}

const COMPAT: [&str; 4] = ["v1beta/openai/", "v1alpha/openai/", "v1/openai/", "openai/"];
const VERSIONS: [&str; 3] = ["v1/", "v1beta/", "v1alpha/"];
/// What OpenAI clients ask for at the root when their base URL is only a host.
const COMPAT_ROOTS: [&str; 10] = [
    "chat/",
    "completions",
    "embeddings",
    "images/",
    "videos",
    "audio/",
    "batches",
    "responses",
    "moderations",
    "models",
];
/// Collections that only the native surface has.
const NATIVE_ONLY: [&str; 5] =
    ["cachedContents", "operations", "fileSearchStores", "tunedModels", "interactions"];

/// Finds the way of a request; `None` for a path that is nobody's.
pub(crate) fn way(uri: &Uri, headers: &HeaderMap) -> Option<Way> {
    let path = plain(uri.path());
    let path = tidy(&path);
    let path = path.as_ref();
    // An HTTP client reads a backslash as a slash; dots would lead out of the API that the path names.
    let leads_out = |path: &str| path.split('/').any(|segment| matches!(segment, "." | ".."));
    if path.contains('\\') || leads_out(path) {
        return None;
    }
    let compat = |path: &str| Some(Way { surface: Surface::Compat, path: path.to_owned() });
    let native = |path: &str| {
        // Names have no slashes here: an encoded one is spelled so by a client that takes a path for a name.
        let path = path.replace("%2F", "/").replace("%2f", "/");
        (!leads_out(&path)).then_some(Way { surface: Surface::Native, path })
    };
    if let Some(rest) = COMPAT.iter().find_map(|base| path.strip_prefix(base)) {
        return compat(rest.strip_prefix("v1/").unwrap_or(rest));
    }
    if ["v1beta/", "v1alpha/", "upload/", "download/"].iter().any(|root| path.starts_with(root)) {
        return native(path);
    }
    if let Some(rest) = path.strip_prefix("v1/") {
        let is_native = native_only(rest) || google_credential(uri, headers);
        return if is_native { native(path) } else { compat(rest) };
    }
    let is_root = |root: &str| {
        let rest = path.strip_prefix(root);
        rest.is_some_and(|rest| root.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
    };
    if COMPAT_ROOTS.iter().any(|root| is_root(root)) { compat(path) } else { None }
}

fn native_only(rest: &str) -> bool {
    let collection = rest.split(['/', ':', '?']).next().unwrap_or_default();
    let has_method = rest.starts_with("models/") && rest.contains(':');
    has_method || NATIVE_ONLY.contains(&collection)
}

/// A Google client's credential and no Bearer, which wins over the others.
fn google_credential(uri: &Uri, headers: &HeaderMap) -> bool {
    let bearer = headers.get(http::header::AUTHORIZATION).is_some_and(|value| is_bearer(value.as_bytes()));
    let key = uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("key=")));
    !bearer && (headers.contains_key("x-goog-api-key") || headers.contains_key("x-goog-api-client") || key)
}

pub(crate) fn is_bearer(value: &[u8]) -> bool {
    value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
}

/// The path with everything decoded that means the same either way (RFC 3986, section 6.2.2.2), and the colon before a
/// method: one model has one name, however it is spelled.
fn plain(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, encoded) = rest.split_at(at);
        plain.push_str(before);
        let code = encoded.get(1..3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let same = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | ':');
        if let Some(c) = code.map(char::from).filter(same) {
            plain.push(c);
            rest = &encoded[3..];
        } else {
            plain.push('%');
            rest = &encoded[1..];
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// Without the leading slash, doubled slashes, and the doubled version of a client whose base URL names one already.
fn tidy(path: &str) -> Cow<'_, str> {
    let mut path = Cow::Borrowed(path.trim_start_matches('/'));
    if path.contains("//") {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        path = Cow::Owned(parts.join("/"));
    }
    let doubled = VERSIONS.iter().find_map(|first| {
        let rest = path.strip_prefix(first)?;
        VERSIONS.iter().any(|second| rest.starts_with(second)).then_some(first.len())
    });
    match doubled {
        Some(len) => Cow::Owned(path[len..].to_owned()),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, headers: &[(&'static str, &str)]) -> Option<(Surface, String)> {
        let headers =
            headers.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        way(&path.parse().unwrap(), &headers.collect()).map(|way| (way.surface, way.path))
    }

    #[test]
    fn every_base_url_in_use_finds_its_surface() {
        use Surface::{Compat, Native};
        let table = [
            ("/v1beta/openai/chat/completions", Compat, "chat/completions"),
            ("/v1/openai/chat/completions", Compat, "chat/completions"),
            ("/openai/v1/chat/completions", Compat, "chat/completions"),
            ("/v1/chat/completions", Compat, "chat/completions"),
            ("//v1//chat/completions", Compat, "chat/completions"),
            ("/chat/completions", Compat, "chat/completions"),
            ("/v1/models", Compat, "models"),
            ("/models", Compat, "models"),
            ("/v1beta/models", Native, "v1beta/models"),
            ("/v1beta/v1/models/m:generateContent", Native, "v1/models/m:generateContent"),
            ("/v1/models/m:generateContent", Native, "v1/models/m:generateContent"),
            ("/v1/models/m%3AgenerateContent", Native, "v1/models/m:generateContent"),
            (
                "/v1beta/models/%67emini%2D2%2e5%5ff:countTokens",
                Native,
                "v1beta/models/gemini-2.5_f:countTokens",
            ),
            ("/v1beta/models%2Fm:countTokens", Native, "v1beta/models/m:countTokens"),
            ("/v1/models/models%2Fm", Compat, "models/models%2Fm"),
            ("/v1/models/%zz%4%", Compat, "models/%zz%4%"),
            ("/v1/interactions/x", Native, "v1/interactions/x"),
            ("/upload/v1beta/files", Native, "upload/v1beta/files"),
            ("/download/v1beta/files/x:download", Native, "download/v1beta/files/x:download"),
        ];
        for (path, surface, rest) in table {
            assert_eq!(of(path, &[]), Some((surface, rest.to_owned())), "{path}");
        }
        for nobodys in [
            "/",
            "/favicon.ico",
            "/modelsx",
            "/admin",
            "/v2/models",
            "/v1/a/../models",
            "/v1/%2e%2E/x",
            r"/v1beta/models/x\..\m:generateContent",
            r"/v1beta\..\..\x",
            "/v1beta/models/x%2f..%2Fm:countTokens",
        ] {
            assert_eq!(of(nobodys, &[]), None, "{nobodys}");
        }
    }

    #[test]
    fn the_credential_decides_what_both_surfaces_have() {
        let google = ("x-goog-api-key", "k");
        let bearer = ("authorization", "Bearer k");
        assert_eq!(of("/v1/models", &[google]).unwrap().0, Surface::Native);
        assert_eq!(
            of("/v1/models", &[("x-goog-api-client", "google-genai-sdk")]).unwrap().0,
            Surface::Native
        );
        assert_eq!(of("/v1/models?key=k", &[]).unwrap().0, Surface::Native);
        assert_eq!(of("/v1/models?key=k", &[bearer]).unwrap().0, Surface::Compat);
        assert_eq!(of("/v1/models", &[bearer, google]).unwrap().0, Surface::Compat);
        assert_eq!(of("/v1/cachedContents", &[bearer]).unwrap().0, Surface::Native);
    }
}
