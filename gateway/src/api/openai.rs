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

/// What may stand before a model's name.
const PREFIX: &str = "models/";

/// The model that a body names, with or without the prefix that the upstream's own lists have.
pub(crate) fn model(body: &[u8], skim: &Skim) -> (Model, ModelAt) {
    let Some(at) = skim.model.clone() else { return (Model::new(""), ModelAt::Nowhere) };
    let given = &body[at.clone()];
    let name = skim::unescaped(given);
    let name = std::str::from_utf8(&name).unwrap_or_default();
    // An alias takes the place of the name behind the prefix, unless that is spelled with escapes.
    let prefix = if given.starts_with(PREFIX.as_bytes()) { PREFIX.len() } else { 0 };
    (Model::new(name.strip_prefix(PREFIX).unwrap_or(name)), ModelAt::Body(at.start + prefix..at.end))
}
