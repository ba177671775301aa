//! Files: the resumable upload, and who may see what it made.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use memchr::memmem;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::errors::{self, Failure};
use crate::exchange::hex;
use crate::exhausted;
use crate::jobs::{Job, JobSpec, Stage};
use crate::models;
use crate::reply::Reply;
use crate::resources;
use crate::route::Kind;
use crate::search;
use crate::store::{Resource, Session, upload_id};

const LIFETIME_MS: i64 = 48 * 3_600_000;
/// The longest file that is kept.
const MAX_FILE: usize = 256 * 1024 * 1024;

/// The limits of stored files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileSpec {
    /// How long a video is in state `PROCESSING`, on the virtual clock. All other files are `ACTIVE` at once.
    pub processing_ms: u64,
    /// The largest file, by what its upload announces or brings.
    pub file_bytes: u64,
    /// All files of one project together.
    pub project_bytes: u64,
}

impl Default for FileSpec {
    fn default() -> Self {
        const GIB: u64 = 1024 * 1024 * 1024;
        Self { processing_ms: 5_000, file_bytes: 2 * GIB, project_bytes: 20 * GIB }
    }
}

pub(crate) fn upload(call: &mut Call<'_>, search_store: Option<&str>) -> Result<Reply, Failure> {
    let command = header(call, "x-goog-upload-command").unwrap_or_default().to_ascii_lowercase();
    let id = upload_id(call.head.uri.query()).map(str::to_owned);
    match (id, command.as_str()) {
        (None, "start") => start(call, search_store),
        (None, _) => {
            let session = session(call, search_store)?;
            let mime_type = header(call, "content-type").unwrap_or("application/octet-stream").to_owned();
            let data = call.body.to_vec();
            store(call, Session { mime_type, data, ..session })
        }
        (Some(id), "query") => {
            let Some(received) = call.state.store.with_session(&id, |session| session.data.len()) else {
                return Err(terminated());
            };
            let mut reply = status("active");
            set(&mut reply, "x-goog-upload-size-received", &received.to_string());
            Ok(reply)
        }
        (Some(id), "cancel") => {
            call.state.store.close_session(&id);
            Ok(status("cancelled"))
        }
        (Some(id), command) => append(call, &id, command.contains("finalize")),
    }
}

fn start(call: &mut Call<'_>, search_store: Option<&str>) -> Result<Reply, Failure> {
    let id = call.chance.id(48, crate::chance::MIXED);
    let session = session(call, search_store)?;
    let announced = header(call, "x-goog-upload-header-content-length").and_then(|text| text.parse().ok());
    check_room(call, announced.unwrap_or(0))?;
    if !call.state.store.open_session(&id, session) {
        return Err(errors::bad_request("400:uploads", "Too many uploads."));
    }
    let host = header(call, "host").map_or_else(|| call.local.to_string(), str::to_owned);
    let secret = &call.caller.key.secret;
    let to = search_store.map_or_else(
        || "files".to_owned(),
        |store| format!("fileSearchStores/{store}:uploadToFileSearchStore"),
    );
    let scheme = call.state.scheme();
    let url =
        format!("{scheme}://{host}/upload/v1beta/{to}?key={secret}&upload_id={id}&upload_protocol=resumable");
    let mut reply = status("active");
    set(&mut reply, "x-goog-upload-url", &url);
    set(&mut reply, "x-goog-upload-control-url", &url);
    set(&mut reply, "x-goog-upload-chunk-granularity", "8388608");
    set(&mut reply, "x-guploader-uploadid", &id);
    Ok(reply)
}

/// What the first step says about the file.
fn session(call: &Call<'_>, search_store: Option<&str>) -> Result<Session, Failure> {
    if let Some(store) = search_store {
        resources::own(call, Kind::FileSearchStores, store)?;
    }
    let body: Value = serde_json::from_slice(call.body).unwrap_or_default();
    let about = if search_store.is_some() { &body } else { &body["file"] };
    let text = |names: [&str; 2]| names.iter().find_map(|name| about[*name].as_str()).map(str::to_owned);
    let declared = header(call, "x-goog-upload-header-content-type").map(str::to_owned);
    let name = text(["name", "name"]).map(|name| name.trim_start_matches("files/").to_owned());
    Ok(Session {
        secret: call.caller.key.secret.clone(),
        project: call.caller.project.id.clone(),
        mime_type: declared
            .or_else(|| text(["mimeType", "mime_type"]))
            .unwrap_or_else(|| "application/octet-stream".to_owned()),
        display_name: text(["displayName", "display_name"]),
        name,
        search_store: search_store.map(str::to_owned),
        data: Vec::new(),
    })
}

fn append(call: &mut Call<'_>, id: &str, finalize: bool) -> Result<Reply, Failure> {
    let offset = header(call, "x-goog-upload-offset").and_then(|text| text.parse::<usize>().ok());
    let body = call.body;
    let fits = call.state.store.with_session(id, |session| {
        let fits = offset.is_none_or(|offset| offset == session.data.len())
            && session.data.len() + body.len() <= MAX_FILE;
        if fits {
            session.data.extend_from_slice(body);
        }
        fits
    });
    match fits {
        None => Err(terminated()),
        Some(false) => Err(errors::bad_request("400:upload_offset", "Upload offset does not match.")),
        Some(true) if !finalize => Ok(status("active")),
        Some(true) => {
            let session = call.state.store.close_session(id).ok_or_else(terminated)?;
            let mut reply = store(call, session)?;
            set(&mut reply, "x-goog-upload-status", "final");
            Ok(reply)
        }
    }
}

fn terminated() -> Failure {
    errors::bad_request("400:upload_terminated", "Upload has already been terminated.")
}

/// Makes the file of a finished upload, or the document.
fn store(call: &mut Call<'_>, session: Session) -> Result<Reply, Failure> {
    if let Some(to) = &session.search_store {
        let name = session.display_name.unwrap_or_default();
        let document = search::Document { name, mime_type: session.mime_type, size: session.data.len() };
        return search::take_in(call, to, &document, &format!("fileSearchStores/{to}/upload"));
    }
    check_room(call, session.data.len() as u64)?;
    let id = session.name.unwrap_or_else(|| call.chance.id(12, LOWER));
    let now = rfc3339(call.now_ms);
    let mut body = json!({
        "name": format!("files/{id}"), "mimeType": session.mime_type, "sizeBytes": session.data.len().to_string(),
        "createTime": now, "updateTime": now, "expirationTime": rfc3339(call.now_ms + LIFETIME_MS),
        "sha256Hash": crate::embed::base64(hex(&Sha256::digest(&session.data)).as_bytes()),
        "uri": format!("https://generativelanguage.googleapis.com/v1beta/files/{id}"),
        "state": "ACTIVE", "source": "UPLOADED",
    });
    if let Some(display_name) = session.display_name {
        body["displayName"] = json!(display_name);
    }
    let processing = JobSpec { waiting_ms: 0, running_ms: call.pool.world.files.processing_ms };
    let job = session.mime_type.starts_with("video/").then(|| Job::new(processing, call.now_ms, Value::Null));
    let content = Bytes::from(session.data);
    let file = Resource { content, job, ..Resource::new(&session.project, body, call.now_ms, LIFETIME_MS) };
    let reply = whole(models::pretty(&json!({"file": shown(&file, call.now_ms)})));
    call.state.store.put(Kind::Files, &id, file);
    Ok(reply)
}

/// Refuses more than one file, or all files of the caller's project, may hold.
fn check_room(call: &Call<'_>, more: u64) -> Result<(), Failure> {
    let FileSpec { file_bytes, project_bytes, .. } = call.pool.world.files;
    if more > file_bytes {
        return Err(errors::bad_request(
            "400:file_size",
            format!("The file is larger than {file_bytes} bytes."),
        ));
    }
    let kept = call.state.store.list(Kind::Files, &call.caller.project.id, call.now_ms);
    let kept: u64 = kept.iter().map(|file| file.content.len() as u64).sum();
    if kept + more > project_bytes { Err(exhausted::storage(project_bytes)) } else { Ok(()) }
}

/// A file as it is seen now.
pub(crate) fn shown(found: &Resource, now_ms: i64) -> Value {
    let mut body = found.body.clone();
    if !is_active(found, now_ms) {
        body["state"] = json!("PROCESSING");
    }
    body
}

fn is_active(file: &Resource, now_ms: i64) -> bool {
    file.job.as_ref().is_none_or(|job| job.stage(now_ms) == Stage::Done)
}

/// Keeps what a model makes as a file that can be downloaded from `ready_ms` on; its URI.
pub(crate) fn keep_generated(
    call: &Call<'_>,
    id: &str,
    mime_type: &str,
    content: Vec<u8>,
    ready_ms: i64,
) -> String {
    let uri = format!("https://generativelanguage.googleapis.com/v1beta/files/{id}");
    let body = json!({
        "name": format!("files/{id}"), "mimeType": mime_type, "sizeBytes": content.len().to_string(),
        "createTime": rfc3339(ready_ms), "updateTime": rfc3339(ready_ms),
        "expirationTime": rfc3339(ready_ms + LIFETIME_MS), "uri": uri,
        "downloadUri": format!("{uri}:download?alt=media"), "state": "ACTIVE", "source": "GENERATED",
    });
    let file = Resource::new(&call.caller.project.id, body, ready_ms, LIFETIME_MS);
    let file = Resource { content: Bytes::from(content), visible_ms: ready_ms, ..file };
    call.state.store.put(Kind::Files, id, file);
    uri
}

pub(crate) fn download(call: &Call<'_>, id: &str) -> Result<Reply, Failure> {
    let file = resources::own(call, Kind::Files, id)?;
    Ok(Reply::new(StatusCode::OK, "application/octet-stream", file.content))
}

/// Refuses a body that refers to a file, a cache or a file search store which the caller's project does not own. The
/// tokens that come from a cache.
pub(crate) fn check_references(call: &Call<'_>) -> Result<u64, Failure> {
    let (body, mut cached) = (call.body, 0);
    if memmem::find(body, b"fileUri").is_some() || memmem::find(body, b"file_uri").is_some() {
        for id in ids_after(body, b"/files/") {
            let file = resources::own(call, Kind::Files, &id)?;
            if !is_active(&file, call.now_ms) {
                return Err(errors::file_not_active(&id));
            }
        }
    }
    for (kind, prefix) in [
        (Kind::CachedContents, b"\"cachedContents/".as_slice()),
        (Kind::FileSearchStores, b"\"fileSearchStores/"),
    ] {
        for id in ids_after(body, prefix) {
            let found = resources::own(call, kind, &id)?;
            cached += found.body["usageMetadata"]["totalTokenCount"].as_u64().unwrap_or(0);
        }
    }
    Ok(cached)
}

fn ids_after<'b>(body: &'b [u8], prefix: &'b [u8]) -> impl Iterator<Item = String> + 'b {
    memmem::find_iter(body, prefix).map(move |at| {
        let rest = body.get(at + prefix.len()..).unwrap_or_default();
        let id = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-');
        id.map(|byte| char::from(*byte)).collect()
    })
}

fn header<'h>(call: &'h Call<'_>, name: &str) -> Option<&'h str> {
    call.head.headers.get(name)?.to_str().ok()
}

fn status(status: &str) -> Reply {
    let mut reply = Reply::new(StatusCode::OK, "text/plain; charset=utf-8", Bytes::new());
    set(&mut reply, "x-goog-upload-status", status);
    reply
}

fn set(reply: &mut Reply, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers.insert(HeaderName::from_static(name), value);
    }
}
