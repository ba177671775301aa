//! The native surface: what a Gemini request asks for.

use http::Method;
use keyfleet_core::id::{Model, Resource};

use crate::call::{Kind, ModelAt};
use crate::skim;

/// What a native path says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    pub(crate) model: Model,
    pub(crate) model_at: ModelAt,
    pub(crate) quota: &'static str,
    pub(crate) stream: bool,
    pub(crate) resource: Option<Resource>,
}

/// Reads `v1beta/models/M:method` and its like.
pub(crate) fn asked(method: &Method, path: &str) -> Asked {
    let (rest_at, rest) = behind_version(path);
    let resource = skim::reference(rest.as_bytes()).map(|name| Resource::new(&rest[name]));
    let mut asked = Asked {
        // An interaction too: it is a model's answer, but one that is stored.
        kind: if method == Method::POST { Kind::Create } else { Kind::Other },
        model: Model::new(""),
        model_at: ModelAt::Nowhere,
        quota: "",
        stream: false,
        resource,
    };
    let Some((at, name, verb)) = model_and_verb(rest_at, rest) else { return asked };
    if verb.is_empty() {
        asked.kind = Kind::Other;
        return asked;
    }
    asked.model = Model::new(name);
    asked.model_at = ModelAt::Path(at..at + name.len());
    asked.kind = match verb {
        "generateContent" | "streamGenerateContent" => Kind::Generate,
        "batchGenerateContent" | "asyncBatchEmbedContent" | "predictLongRunning" => Kind::Create,
        _ => Kind::Other,
    };
    asked.quota = match verb {
        "countTokens" => "countTokens",
        "batchGenerateContent" | "asyncBatchEmbedContent" => "batch",
        _ => "",
    };
    asked.stream = verb == "streamGenerateContent";
    asked
}

/// Splits `upload/v1beta/` and its like off; the position of the rest.
pub(crate) fn behind_version(path: &str) -> (usize, &str) {
    let at = path.find("/v1").map_or(0, |at| at + 1).min(path.len());
    let start = if path.starts_with("v1") { 0 } else { at };
    let end = path[start..].find('/').map_or(path.len(), |slash| start + slash + 1);
    (end, &path[end..])
}

/// Model and method of `models/M:method`; the method may be empty.
fn model_and_verb(rest_at: usize, rest: &str) -> Option<(usize, &str, &str)> {
    let name = rest.strip_prefix("models/")?;
    let at = rest_at + "models/".len();
    let (model, verb) = name.rsplit_once(':').unwrap_or((name, ""));
    Some((at, model, verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_methods() {
        let post = |path| asked(&Method::POST, path);
        let plain = post("v1beta/models/gemini-2.5-flash:generateContent");
        assert_eq!(
            (plain.model.as_str(), plain.kind, plain.stream),
            ("gemini-2.5-flash", Kind::Generate, false)
        );
        assert_eq!(plain.model_at, ModelAt::Path(14..30));
        let streamed = post("v1/models/x:streamGenerateContent");
        assert_eq!((streamed.model.as_str(), streamed.stream), ("x", true));
        assert_eq!(post("v1beta/models/x:countTokens").quota, "countTokens");
        assert_eq!(post("v1beta/models/x:batchGenerateContent").kind, Kind::Create);
        assert_eq!(asked(&Method::GET, "v1beta/models/x").kind, Kind::Other);
        assert_eq!(
            asked(&Method::GET, "v1beta/models/x").model.as_str(),
            "",
            "a look at a model costs no quota"
        );
    }

    #[test]
    fn resources_in_paths() {
        let of = |path| asked(&Method::GET, path).resource.map(|name| name.as_str().to_owned());
        assert_eq!(of("v1beta/files/abc-1").as_deref(), Some("files/abc-1"));
        assert_eq!(of("download/v1beta/files/abc:download").as_deref(), Some("files/abc"));
        assert_eq!(of("v1beta/batches/b1:cancel").as_deref(), Some("batches/b1"));
        assert_eq!(of("v1beta/files"), None);
        assert_eq!(asked(&Method::POST, "upload/v1beta/files").kind, Kind::Create);
    }
}
