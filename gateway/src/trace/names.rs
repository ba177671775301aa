//! The names of attributes, in one place: those of OpenTelemetry's semantic conventions 1.41.0 (the GenAI ones are in
//! development, and have lived in a repository of their own since 1.42), and ours, which begin with `keyfleet.`.

use http::Method;

use crate::call::Surface;

pub(super) const HTTP_METHOD: &str = "http.request.method";
pub(super) const HTTP_ROUTE: &str = "http.route";
pub(super) const HTTP_STATUS: &str = "http.response.status_code";
pub(super) const HTTP_RESEND: &str = "http.request.resend_count";
pub(super) const HTTP_BODY: &str = "http.response.body.size";
pub(super) const URL_PATH: &str = "url.path";
pub(super) const URL_SCHEME: &str = "url.scheme";
pub(super) const SERVER_ADDRESS: &str = "server.address";
pub(super) const SERVER_PORT: &str = "server.port";
pub(super) const ERROR_TYPE: &str = "error.type";

pub(super) const GEN_AI_OPERATION: &str = "gen_ai.operation.name";
pub(super) const GEN_AI_PROVIDER: &str = "gen_ai.provider.name";
pub(super) const GEN_AI_MODEL: &str = "gen_ai.request.model";
pub(super) const GEN_AI_STREAM: &str = "gen_ai.request.stream";
pub(super) const GEN_AI_RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const GEN_AI_RESPONSE_ID: &str = "gen_ai.response.id";
pub(super) const GEN_AI_REASONS: &str = "gen_ai.response.finish_reasons";
pub(super) const GEN_AI_INPUT: &str = "gen_ai.usage.input_tokens";
pub(super) const GEN_AI_OUTPUT: &str = "gen_ai.usage.output_tokens";
pub(super) const GEN_AI_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
/// Google's AI Studio.
pub(super) const GEMINI: &str = "gcp.gemini";

pub(super) const REQUEST_ID: &str = "keyfleet.request.id";
pub(super) const CLIENT: &str = "keyfleet.client.name";
/// What the client asked for. Under the name of GenAI, the request would be taken for one more call of a model.
pub(super) const MODEL: &str = "keyfleet.request.model";
pub(super) const ATTEMPTS: &str = "keyfleet.attempts";
pub(super) const UNRECORDED: &str = "keyfleet.attempts.unrecorded";
pub(super) const CLIENT_GONE: &str = "keyfleet.client_gone";
pub(super) const KEY: &str = "keyfleet.key.id";
pub(super) const CAUSE: &str = "keyfleet.outcome.cause";
pub(super) const SCOPE: &str = "keyfleet.outcome.scope";
/// In seconds: how long what failed stays away from traffic, as this replica has decided.
pub(super) const COOLDOWN: &str = "keyfleet.cooldown";
/// In place of the other: until a check succeeds.
pub(super) const COOLDOWN_OPEN: &str = "keyfleet.cooldown.open_ended";

/// The event of the first bytes of an answer.
pub(super) const FIRST_CHUNK: &str = "gen_ai.first_chunk";

/// What a model is asked to do; `None` for everything that is not about one.
pub(super) fn operation(method: &Method, surface: Surface, path: &str) -> Option<&'static str> {
    let verb = match surface {
        _ if method != Method::POST => return None,
        Surface::Compat => path,
        Surface::Native => path.rsplit([':', '/']).next()?,
    };
    match verb {
        "chat/completions" | "responses" => Some("chat"),
        "completions" => Some("text_completion"),
        "generateContent"
        | "streamGenerateContent"
        | "batchGenerateContent"
        | "interactions"
        | "predict"
        | "predictLongRunning"
        | "images/generations"
        | "images/edits"
        | "videos" => Some("generate_content"),
        "embeddings" | "embedContent" | "batchEmbedContents" | "asyncBatchEmbedContent" => Some("embeddings"),
        _ => None,
    }
}

/// A method by its name, where it is one that the conventions know.
pub(super) fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

/// How the names of spans begin.
pub(super) fn title(method: &'static str) -> &'static str {
    if method == "_OTHER" { "HTTP" } else { method }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_is_asked_to_do_has_the_conventions_name() {
        for (surface, path, name) in [
            (Surface::Compat, "chat/completions", Some("chat")),
            (Surface::Compat, "embeddings", Some("embeddings")),
            (Surface::Compat, "images/generations", Some("generate_content")),
            (Surface::Compat, "models", None),
            (Surface::Native, "v1beta/models/m:streamGenerateContent", Some("generate_content")),
            (Surface::Native, "v1beta/models/m:predict", Some("generate_content")),
            (Surface::Native, "v1beta/interactions", Some("generate_content")),
            (Surface::Native, "v1beta/interactions/v1_a/cancel", None),
            (Surface::Native, "v1beta/models/m:countTokens", None),
            (Surface::Native, "v1beta/files", None),
        ] {
            assert_eq!(operation(&Method::POST, surface, path), name, "{path}");
            assert_eq!(operation(&Method::GET, surface, path), None, "{path}");
        }
    }
}
