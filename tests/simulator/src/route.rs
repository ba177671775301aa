//! Every path of both surfaces, on one screen.

use http::Method;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// Which face of the API a request was addressed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Surface {
    /// `/{version}/openai/…`.
    Compat,
    /// `/{version}/…`, and every path that belongs to no surface.
    Native,
    /// `/upload/…` and `/download/…`.
    Upload,
    /// `/__sim/…`; never in the log.
    Control,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) surface: Surface,
    pub(crate) version: String,
    pub(crate) op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Chat,
    CompatEmbeddings,
    CompatImages,
    ListModels,
    GetModel(String),
    Generate {
        model: String,
        stream: bool,
    },
    CountTokens(String),
    Embed(String),
    BatchEmbed(String),
    Batch {
        model: String,
        embeds: bool,
    },
    PredictLongRunning(String),
    /// To a file search store, or to the project's files.
    Upload(Option<String>),
    Download(String),
    Resource {
        kind: Kind,
        id: Option<String>,
        verb: Option<String>,
    },
    /// By its whole name.
    Operation {
        name: String,
        verb: Option<String>,
    },
    ListDocuments(String),
    NoPage,
    NoMethod,
}

/// Resources that belong to the project which made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Files,
    CachedContents,
    Batches,
    Interactions,
    TunedModels,
    FileSearchStores,
    /// Of a file search store; the id is `STORE/DOCUMENT`.
    Documents,
    /// The id is the last part of the name.
    Operations,
    /// Of the compatible surface.
    Videos,
}

impl Kind {
    pub(crate) fn collection(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::CachedContents => "cachedContents",
            Self::Batches => "batches",
            Self::Interactions => "interactions",
            Self::TunedModels => "tunedModels",
            Self::FileSearchStores => "fileSearchStores",
            Self::Documents => "documents",
            Self::Operations => "operations",
            Self::Videos => "videos",
        }
    }
}

impl Route {
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        let parts: Vec<&str> = decoded.split('/').filter(|part| !part.is_empty()).collect();
        let (surface, version, op) = match parts.as_slice() {
            ["__sim", ..] => (Surface::Control, "", Op::NoPage),
            ["upload", version, rest @ ..] => (Surface::Upload, *version, upload(method, rest)),
            ["download", version, "files", file] => (Surface::Upload, *version, download(file)),
            [version, "openai", rest @ ..] if is_version(version) => {
                (Surface::Compat, *version, compat(method, rest))
            }
            [version, rest @ ..] if is_version(version) => (Surface::Native, *version, native(method, rest)),
            _ => (Surface::Native, "", Op::NoPage),
        };
        Self { surface, version: version.to_owned(), op }
    }

    /// The name of the called method, as errors and audit logs show it.
    pub(crate) fn rpc(&self) -> String {
        let name = match &self.op {
            Op::Chat | Op::Generate { stream: false, .. } => "GenerativeService.GenerateContent",
            Op::Generate { .. } => "GenerativeService.StreamGenerateContent",
            Op::CountTokens(_) => "GenerativeService.CountTokens",
            Op::Embed(_) => "GenerativeService.EmbedContent",
            Op::BatchEmbed(_) | Op::CompatEmbeddings => "GenerativeService.BatchEmbedContents",
            Op::Batch { embeds: false, .. } => "GenerativeService.BatchGenerateContent",
            Op::Batch { .. } => "GenerativeService.AsyncBatchEmbedContent",
            Op::PredictLongRunning(_) | Op::Resource { kind: Kind::Videos, .. } => {
                "PredictionService.PredictLongRunning"
            }
            Op::GetModel(_) => "ModelService.GetModel",
            Op::Upload(None) => "FileService.CreateFile",
            Op::Upload(Some(_)) => "FileSearchService.UploadToFileSearchStore",
            Op::Resource { kind: Kind::Files, .. } | Op::Download(_) => "FileService.GetFile",
            Op::Resource { kind: Kind::CachedContents, .. } => "CacheService.GetCachedContent",
            Op::Resource { kind: Kind::TunedModels, .. } => "ModelService.GetTunedModel",
            Op::Resource { kind: Kind::FileSearchStores | Kind::Documents, .. } | Op::ListDocuments(_) => {
                "FileSearchService.GetFileSearchStore"
            }
            Op::Resource { .. } | Op::Operation { .. } => "GenerativeService.GetOperation",
            Op::ListModels | Op::CompatImages | Op::NoPage | Op::NoMethod => "ModelService.ListModels",
        };
        let version = if self.version.is_empty() { "v1beta" } else { &self.version };
        format!("google.ai.generativelanguage.{version}.{name}")
    }
}

fn is_version(part: &str) -> bool {
    matches!(part, "v1" | "v1beta" | "v1alpha")
}

fn compat(method: &Method, path: &[&str]) -> Op {
    match (method.as_str(), path) {
        ("POST", ["chat", "completions"]) => Op::Chat,
        ("POST", ["embeddings"]) => Op::CompatEmbeddings,
        ("POST", ["images", "generations"]) => Op::CompatImages,
        ("GET", ["models"]) => Op::ListModels,
        ("GET", ["models", id] | ["models", "models", id]) => Op::GetModel((*id).to_owned()),
        ("GET" | "POST", ["batches"]) => Op::Resource { kind: Kind::Batches, id: None, verb: None },
        ("POST", ["videos"]) => Op::Resource { kind: Kind::Videos, id: None, verb: None },
        ("GET", ["videos", id]) => resource(Kind::Videos, id),
        ("GET", ["batches", id] | ["batches", "batches", id]) => resource(Kind::Batches, id),
        ("POST", ["batches", id, "cancel"] | ["batches", "batches", id, "cancel"]) => {
            resource(Kind::Batches, &format!("{id}:cancel"))
        }
        _ => Op::NoMethod,
    }
}

fn native(method: &Method, path: &[&str]) -> Op {
    let post = method == Method::POST;
    match path {
        ["models"] if method == Method::GET => Op::ListModels,
        ["models", id] if method == Method::GET => Op::GetModel((*id).to_owned()),
        ["models", call] if post => model_call(call),
        ["tunedModels", call] if post && call.contains(':') => model_call(&format!("tunedModels/{call}")),
        ["interactions", id, "cancel"] if post => resource(Kind::Interactions, &format!("{id}:cancel")),
        ["fileSearchStores", store, "documents"] => Op::ListDocuments((*store).to_owned()),
        ["fileSearchStores", store, "documents", id] => resource(Kind::Documents, &format!("{store}/{id}")),
        [.., "operations", last] => {
            let (_, verb) = split_verb(last);
            let name = path.join("/");
            let name = name.split(':').next().unwrap_or_default();
            Op::Operation { name: name.to_owned(), verb }
        }
        [collection] => {
            kind(collection).map_or(Op::NoPage, |kind| Op::Resource { kind, id: None, verb: None })
        }
        [collection, id] => kind(collection).map_or(Op::NoPage, |kind| resource(kind, id)),
        _ => Op::NoPage,
    }
}

fn model_call(call: &str) -> Op {
    let Some((model, method)) = call.rsplit_once(':') else { return Op::NoPage };
    let model = model.to_owned();
    match method {
        "generateContent" => Op::Generate { model, stream: false },
        "streamGenerateContent" => Op::Generate { model, stream: true },
        "countTokens" => Op::CountTokens(model),
        "embedContent" => Op::Embed(model),
        "batchEmbedContents" => Op::BatchEmbed(model),
        "batchGenerateContent" => Op::Batch { model, embeds: false },
        "asyncBatchEmbedContent" => Op::Batch { model, embeds: true },
        "predictLongRunning" => Op::PredictLongRunning(model),
        _ => Op::NoPage,
    }
}

fn kind(collection: &str) -> Option<Kind> {
    match collection {
        "files" => Some(Kind::Files),
        "cachedContents" => Some(Kind::CachedContents),
        "batches" => Some(Kind::Batches),
        "interactions" => Some(Kind::Interactions),
        "tunedModels" => Some(Kind::TunedModels),
        "fileSearchStores" => Some(Kind::FileSearchStores),
        _ => None,
    }
}

fn resource(kind: Kind, id: &str) -> Op {
    let (id, verb) = split_verb(id);
    Op::Resource { kind, id: Some(id.to_owned()), verb }
}

fn split_verb(id: &str) -> (&str, Option<String>) {
    id.split_once(':').map_or((id, None), |(id, verb)| (id, Some(verb.to_owned())))
}

fn upload(method: &Method, path: &[&str]) -> Op {
    if method != Method::POST && method != Method::PUT {
        return Op::NoPage;
    }
    match path {
        ["files"] => Op::Upload(None),
        ["fileSearchStores", store] => store
            .strip_suffix(":uploadToFileSearchStore")
            .map_or(Op::NoPage, |store| Op::Upload(Some(store.to_owned()))),
        _ => Op::NoPage,
    }
}

fn download(file: &str) -> Op {
    file.strip_suffix(":download").map_or(Op::NoPage, |id| Op::Download(id.to_owned()))
}
