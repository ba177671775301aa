//! File search stores: documents come in by upload or from a file of the project, and take a while to be ready.

use serde_json::{Value, json};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::errors::Failure;
use crate::jobs::{Job, Stage};
use crate::reply::Reply;
use crate::resources::{self, DAYS_MS};
use crate::route::Kind;
use crate::store::Resource;
use crate::{models, operations};

/// A document on its way in.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) name: String,
    pub(crate) mime_type: String,
    pub(crate) size: usize,
}

pub(crate) fn create(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked = resources::asked(call)?;
    let display_name = asked["displayName"].as_str().or_else(|| asked["display_name"].as_str());
    let slug = display_name.map_or_else(String::new, slug);
    let id = format!("{slug}{}", call.chance.id(12, LOWER));
    let now = rfc3339(call.now_ms);
    let mut body = json!({"name": format!("fileSearchStores/{id}"), "createTime": now, "updateTime": now});
    if let Some(display_name) = display_name {
        body["displayName"] = json!(display_name);
    }
    let store = Resource::new(&call.caller.project.id, body, call.now_ms, DAYS_MS);
    let reply = whole(models::pretty(&shown(call, &store)));
    call.state.store.put(Kind::FileSearchStores, &id, store);
    Ok(reply)
}

/// The part of an id that comes from the display name.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().take(27).map(plain).chain(['-']).collect()
}

/// A store with the count of its documents.
pub(crate) fn shown(call: &Call<'_>, store: &Resource) -> Value {
    let mut body = store.body.clone();
    let documents = documents(call, body["name"].as_str().unwrap_or_default());
    let ready = documents.iter().filter(|document| is_ready(document, call.now_ms)).count();
    let size = |document: &Resource| document.body["sizeBytes"].as_str()?.parse::<u64>().ok();
    let size: u64 = documents.iter().filter_map(size).sum();
    let counts = [
        ("activeDocumentsCount", ready as u64),
        ("pendingDocumentsCount", (documents.len() - ready) as u64),
        ("sizeBytes", size),
    ];
    for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        body[name] = json!(count.to_string());
    }
    body
}

pub(crate) fn shown_document(found: &Resource, now_ms: i64) -> Value {
    let mut body = found.body.clone();
    body["state"] = json!(if is_ready(found, now_ms) { "STATE_ACTIVE" } else { "STATE_PENDING" });
    body
}

fn is_ready(document: &Resource, now_ms: i64) -> bool {
    document.job.as_ref().is_none_or(|job| job.stage(now_ms) == Stage::Done)
}

/// The documents of a store, by its name.
fn documents(call: &Call<'_>, store: &str) -> Vec<Resource> {
    let prefix = format!("{store}/documents/");
    let mut all = call.state.store.list(Kind::Documents, &call.caller.project.id, call.now_ms);
    all.retain(|document| document.body["name"].as_str().is_some_and(|name| name.starts_with(&prefix)));
    all
}

pub(crate) fn list_documents(call: &Call<'_>, store: &str) -> Result<Reply, Failure> {
    resources::own(call, Kind::FileSearchStores, store)?;
    let all = documents(call, &format!("fileSearchStores/{store}"));
    let query = call.head.uri.query().unwrap_or_default();
    let page = models::page("documents", &all, query, |document| shown_document(document, call.now_ms));
    Ok(whole(models::pretty(&page)))
}

pub(crate) fn import(call: &mut Call<'_>, store: &str) -> Result<Reply, Failure> {
    let asked = resources::asked(call)?;
    let file = asked["fileName"].as_str().or_else(|| asked["file_name"].as_str()).unwrap_or_default();
    let file = resources::own(call, Kind::Files, file.trim_start_matches("files/"))?;
    let text = |name: &str| file.body[name].as_str().unwrap_or_default().to_owned();
    let document =
        Document { name: text("displayName"), mime_type: text("mimeType"), size: file.content.len() };
    take_in(call, store, &document, &format!("fileSearchStores/{store}"))
}

/// Makes a document; the answer is the operation, named under `parent`, that makes it ready.
pub(crate) fn take_in(
    call: &mut Call<'_>,
    store: &str,
    document: &Document,
    parent: &str,
) -> Result<Reply, Failure> {
    resources::own(call, Kind::FileSearchStores, store)?;
    let id = call.chance.id(12, LOWER);
    let (name, now) = (format!("fileSearchStores/{store}/documents/{id}"), rfc3339(call.now_ms));
    let mut job = Job::new(call.pool.world.jobs, call.now_ms, Value::Null);
    let body = json!({
        "name": name, "displayName": document.name, "mimeType": document.mime_type,
        "sizeBytes": document.size.to_string(), "createTime": now, "updateTime": now,
    });
    let kept = Resource::new(&call.caller.project.id, body, call.now_ms, DAYS_MS);
    let kept = Resource { job: Some(job.clone()), ..kept };
    call.state.store.put(Kind::Documents, &format!("{store}/{id}"), kept);
    job.result = json!({
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.UploadToFileSearchStoreResponse",
        "parent": format!("fileSearchStores/{store}"), "documentName": name,
    });
    let operation = operations::start(call, parent, None, job);
    Ok(whole(models::pretty(&operation)))
}

/// A store with documents is deleted only by force, and they with it.
pub(crate) fn before_delete(call: &Call<'_>, kind: Kind, id: &str) -> Result<(), Failure> {
    if kind != Kind::FileSearchStores {
        return Ok(());
    }
    let documents = documents(call, &format!("fileSearchStores/{id}"));
    let force = call.head.uri.query().unwrap_or_default().split('&').any(|pair| pair == "force=true");
    if !force && !documents.is_empty() {
        let message = "Cannot delete non-empty FileSearchStore.";
        return Err(Failure::api("400:not_empty", 400, "FAILED_PRECONDITION", message));
    }
    for document in documents {
        let name = document.body["name"].as_str().unwrap_or_default();
        let id = name.trim_start_matches("fileSearchStores/").replacen("/documents/", "/", 1);
        call.state.store.remove(Kind::Documents, &id);
    }
    Ok(())
}
