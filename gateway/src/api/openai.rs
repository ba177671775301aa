//! The compat surface: what an OpenAI request asks for.

use keyfleet_core::id::Model;

use crate::call::{Kind, ModelAt};
use crate::skim::{self, Skim};

/// What a path on the compat surface is for.
pub(crate) fn kind(method: &http::Method, path: &str) -> Kind {
    match path.split('/').next().unwrap_or_default() {
        "chat" | "completions" | "responses" => Kind::Generate,
        "batches" | "files" | "videos" if method == http::Method::POST => Kind::Create,
        _ => Kind::Other,
    }
}

/// The model that a body names, with or without the prefix that the upstream's own lists have.
pub(crate) fn model(body: &[u8], skim: &Skim) -> (Model, ModelAt) {
    let Some(at) = skim.model.clone() else { return (Model::new(""), ModelAt::Nowhere) };
    let name = skim::unescaped(&body[at.clone()]);
    let name = std::str::from_utf8(&name).unwrap_or_default();
    (Model::new(name.strip_prefix("models/").unwrap_or(name)), ModelAt::Body(at))
}
