//! The template of a path: what it asks for, without names. There are few of them, whatever clients send.

use crate::call::Surface;

/// Words of the two APIs; everything else is a name.
const WORDS: [&str; 39] = [
    "audio",
    "batch",
    "batches",
    "cachedContents",
    "cancel",
    "chat",
    "chunks",
    "completions",
    "content",
    "corpora",
    "documents",
    "download",
    "edits",
    "embeddings",
    "fileSearchStores",
    "files",
    "generatedFiles",
    "generations",
    "images",
    "input_items",
    "interactions",
    "items",
    "models",
    "moderations",
    "openai",
    "operations",
    "permissions",
    "responses",
    "speech",
    "transcriptions",
    "translations",
    "tunedModels",
    "upload",
    "uploads",
    "v1",
    "v1alpha",
    "v1beta",
    "variations",
    "videos",
];
/// What follows a colon.
const VERBS: [&str; 16] = [
    "asyncBatchEmbedContent",
    "batchEmbedContents",
    "batchGenerateContent",
    "cancel",
    "countTokens",
    "delete",
    "download",
    "embedContent",
    "generateAnswer",
    "generateContent",
    "importFile",
    "predict",
    "predictLongRunning",
    "register",
    "streamGenerateContent",
    "uploadToFileSearchStore",
];
/// Segments that are told one by one.
const MOST: usize = 8;

/// The template of a path behind the compat base or the native root, as the client would write it.
pub(crate) fn template(surface: Surface, path: &str) -> String {
    let mut template = String::with_capacity(path.len() + 8);
    if surface == Surface::Compat {
        template.push_str("/v1");
    }
    let mut of_models = false;
    for (n, segment) in path.split('/').enumerate() {
        template.push('/');
        if n == MOST {
            template.push('*');
            break;
        }
        let (name, verb) = match segment.rsplit_once(':') {
            Some((name, verb)) if surface == Surface::Native => (name, Some(verb)),
            _ => (segment, None),
        };
        template.push_str(match WORDS.binary_search(&name) {
            // A model may be called like anything.
            Ok(at) if !of_models => WORDS[at],
            _ if of_models => "{model}",
            _ => "{id}",
        });
        if let Some(verb) = verb {
            template.push(':');
            template.push_str(VERBS.binary_search(&verb).map_or("{method}", |at| VERBS[at]));
        }
        of_models = matches!(name, "models" | "tunedModels");
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_part_of_a_template() {
        assert!(WORDS.is_sorted() && VERBS.is_sorted());
        let table = [
            (Surface::Compat, "chat/completions", "/v1/chat/completions"),
            (Surface::Compat, "models/gemini-2.5-flash", "/v1/models/{model}"),
            (Surface::Compat, "files/abc:def", "/v1/files/{id}"),
            (
                Surface::Native,
                "v1beta/models/files:generateContent",
                "/v1beta/models/{model}:generateContent",
            ),
            (Surface::Native, "v1beta/models/m:hostile", "/v1beta/models/{model}:{method}"),
            (Surface::Native, "upload/v1beta/files", "/upload/v1beta/files"),
            (
                Surface::Native,
                "v1beta/tunedModels/x/permissions/y",
                "/v1beta/tunedModels/{model}/permissions/{id}",
            ),
            (Surface::Compat, "a/b/c/d/e/f/g/h/i/j", "/v1/{id}/{id}/{id}/{id}/{id}/{id}/{id}/{id}/*"),
        ];
        for (surface, path, expected) in table {
            assert_eq!(template(surface, path), expected);
        }
    }
}
