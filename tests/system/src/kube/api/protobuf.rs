//! The encoding that `helm` uses for what it keeps in Secrets; all else comes as JSON.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Value, json};

/// What every object in this encoding begins with.
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
}

/// A Secret as JSON; nothing, if it is something else.
pub(super) fn secret(body: &[u8]) -> Option<Value> {
    let unknown = Unknown::decode(body.strip_prefix(MAGIC)?).ok()?;
    if unknown.type_meta?.kind != "Secret" {
        return None;
    }
    let secret = Secret::decode(&unknown.raw[..]).ok()?;
    let metadata = secret.metadata?;
    let data: BTreeMap<_, _> =
        secret.data.into_iter().map(|(name, value)| (name, STANDARD.encode(value))).collect();
    Some(json!({
        "metadata": {"name": metadata.name, "labels": metadata.labels}, "data": data, "type": secret.kind,
    }))
}
