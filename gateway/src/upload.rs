//! Resumable uploads: the URL that the upstream hands out names its own host and holds the key. The client gets one
//! that names us, without the key; its `upload_id` is the capability by which the upload goes on, with no other
//! credential, and belongs to the project that began it.

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};

use crate::call::Call;

const UPLOAD_URL: HeaderName = HeaderName::from_static("x-goog-upload-url");

/// The `upload_id` in a query.
pub(crate) fn id(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("upload_id="))
}

/// The `upload_id` that an answer hands out.
pub(crate) fn session(headers: &HeaderMap) -> Option<String> {
    let url = headers.get(UPLOAD_URL)?.to_str().ok()?;
    id(url.split_once('?')?.1).map(str::to_owned)
}

/// The name under which an upload's owner is kept: whoever knows the id may write, so the id itself is not.
pub(crate) fn resource(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let (half, _) = digest.split_at(16);
    half.iter().fold(String::from("uploads/"), |name, byte| name + &format!("{byte:02x}"))
}

/// Puts our own base in place of the upstream's, and takes the key out.
pub(crate) fn rewrite_url(headers: &mut HeaderMap, call: &Call) {
    for name in [UPLOAD_URL, HeaderName::from_static("x-goog-upload-control-url"), http::header::LOCATION] {
        let Some(url) = headers.get(&name).and_then(|value| value.to_str().ok()) else { continue };
        let rewritten = rewritten(url, &call.own_base);
        match HeaderValue::from_str(&rewritten) {
            Ok(value) => headers.insert(name, value),
            Err(_) => headers.remove(name),
        };
    }
}

fn rewritten(url: &str, own_base: &str) -> String {
    let behind_scheme = url.find("://").map_or(0, |at| at + 3);
    let path = url[behind_scheme..].find('/').map_or("", |at| &url[behind_scheme + at..]);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let kept: Vec<_> =
        query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("key=")).collect();
    let mark = if kept.is_empty() { "" } else { "?" };
    format!("{own_base}{path}{mark}{}", kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_ours_and_holds_no_key() {
        let url = "https://generativelanguage.googleapis.com/upload/v1beta/files?key=SECRET&upload_id=ab&upload_protocol=resumable";
        assert_eq!(
            rewritten(url, "http://127.0.0.1:4806"),
            "http://127.0.0.1:4806/upload/v1beta/files?upload_id=ab&upload_protocol=resumable"
        );
        assert_eq!(rewritten("https://host/a?key=SECRET", "http://us"), "http://us/a");
        assert_eq!(id("upload_id=ab&x=y"), Some("ab"));
        assert!(!resource("ab").contains("ab&"));
    }
}
