//! What kind of path a request had: few names, whatever clients send.

use crate::api::gemini::behind_version;
use crate::call::Surface;

/// The names of the kinds. The first is of paths that are nobody's, the second of what has no name of its own.
pub(super) const ROUTES: [&str; 31] = [
    "none",
    "other",
    "chat_completions",
    "completions",
    "embeddings",
    "images",
    "videos",
    "audio",
    "responses",
    "moderations",
    "batches",
    "files",
    "models",
    "generate_content",
    "stream_generate_content",
    "count_tokens",
    "embed_content",
    "batch_embed_contents",
    "batch_generate_content",
    "async_batch_embed_content",
    "predict",
    "predict_long_running",
    "cached_contents",
    "operations",
    "file_search_stores",
    "tuned_models",
    "interactions",
    "upload",
    "download",
    "corpora",
    "generate_answer",
];

/// The number of a kind's name.
pub(super) fn route(surface: Surface, path: &str) -> usize {
    let name = match surface {
        _ if path.is_empty() => "none",
        Surface::Compat => compat(path),
        Surface::Native => native(path),
    };
    ROUTES.iter().position(|known| *known == name).unwrap_or(1)
}

fn compat(path: &str) -> &str {
    match path.split('/').next().unwrap_or_default() {
        "chat" => "chat_completions",
        // These are written as they are named.
        first => first,
    }
}

fn native(path: &str) -> &'static str {
    if path.starts_with("upload/") {
        return "upload";
    }
    if path.starts_with("download/") {
        return "download";
    }
    let (_, rest) = behind_version(path);
    if let Some(name) = rest.strip_prefix("models/").or_else(|| rest.strip_prefix("tunedModels/"))
        && let Some((_, verb)) = name.rsplit_once(':')
    {
        return match verb {
            "generateContent" => "generate_content",
            "streamGenerateContent" => "stream_generate_content",
            "countTokens" => "count_tokens",
            "embedContent" => "embed_content",
            "batchEmbedContents" => "batch_embed_contents",
            "batchGenerateContent" => "batch_generate_content",
            "asyncBatchEmbedContent" => "async_batch_embed_content",
            "predict" => "predict",
            "predictLongRunning" => "predict_long_running",
            "generateAnswer" => "generate_answer",
            _ => "other",
        };
    }
    match rest.split(['/', ':', '?']).next().unwrap_or_default() {
        "models" => "models",
        "files" => "files",
        "batches" => "batches",
        "cachedContents" => "cached_contents",
        "operations" => "operations",
        "fileSearchStores" => "file_search_stores",
        "tunedModels" => "tuned_models",
        "interactions" => "interactions",
        "corpora" => "corpora",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_of_one_of_few_kinds() {
        for (surface, path, name) in [
            (Surface::Compat, "", "none"),
            (Surface::Compat, "chat/completions", "chat_completions"),
            (Surface::Compat, "embeddings", "embeddings"),
            (Surface::Compat, "models/gemini-2.5-flash", "models"),
            (Surface::Compat, "images/generations", "images"),
            (Surface::Compat, "whatever/x", "other"),
            (Surface::Compat, "upload/x", "upload"),
            (Surface::Native, "v1beta/models/gemini-2.5-flash:generateContent", "generate_content"),
            (Surface::Native, "v1/models/a:b:streamGenerateContent", "stream_generate_content"),
            (Surface::Native, "v1beta/tunedModels/t:generateContent", "generate_content"),
            (Surface::Native, "v1beta/tunedModels/t", "tuned_models"),
            (Surface::Native, "v1beta/models", "models"),
            (Surface::Native, "v1beta/models/m:inventedByAClient", "other"),
            (Surface::Native, "v1beta/files/f", "files"),
            (Surface::Native, "upload/v1beta/files", "upload"),
            (Surface::Native, "download/v1beta/files/f:download", "download"),
            (Surface::Native, "v1beta/interactions/i/cancel", "interactions"),
            (Surface::Native, "v1beta/invented", "other"),
        ] {
            assert_eq!(ROUTES[route(surface, path)], name, "{path}");
        }
        assert!(ROUTES.len() <= 64, "a route has six bits");
    }
}
