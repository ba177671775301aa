//! Videos of the compatible surface: asked for by a form or by JSON, and looked at again and again until they are made.

use memchr::memmem;
use serde_json::{Value, json};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::errors::{self, Failure};
use crate::jobs::{Job, Stage};
use crate::reply::Reply;
use crate::resources::DAYS_MS;
use crate::route::Kind;
use crate::store::Resource;
use crate::{files, models, operations};

pub(crate) fn create(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked: Value = serde_json::from_slice(call.body).unwrap_or_default();
    let field = |name: &str| asked[name].as_str().map(str::to_owned).or_else(|| form_field(call.body, name));
    let (Some(model), Some(_)) = (field("model"), field("prompt")) else {
        return Err(errors::bad_request("400:video", "model and prompt must be specified"));
    };
    let model = call.model(&model, "predictLongRunning", Some(false))?.id.clone();
    call.charge(&model)?;
    let (id, file) = (call.chance.id(20, LOWER), call.chance.id(12, LOWER));
    let mut job = Job::new(call.pool.world.jobs, call.now_ms, Value::Null);
    let uri = files::keep_generated(call, &file, "video/mp4", operations::VIDEO.to_vec(), job.ends_ms());
    job.result = json!(format!("{uri}:download?alt=media"));
    let body = json!({"id": id, "object": "video", "created_at": call.now_ms / 1000, "model": model});
    let video = Resource::new(&call.caller.project.id, body, call.now_ms, DAYS_MS);
    let video = Resource { job: Some(job), ..video };
    let reply = whole(models::compact(&shown(&video, call.now_ms)));
    call.state.store.put(Kind::Videos, &id, video);
    Ok(reply)
}

/// With the address of its file at the end.
pub(crate) fn shown(found: &Resource, now_ms: i64) -> Value {
    let mut body = found.body.clone();
    let Some(job) = &found.job else { return body };
    body["status"] = json!(match job.stage(now_ms) {
        Stage::Waiting => "queued",
        Stage::Running => "in_progress",
        Stage::Done => "completed",
        Stage::Cancelled => "failed",
    });
    if job.stage(now_ms) == Stage::Done {
        body["url"] = job.result.clone();
    }
    body
}

/// A text field of a `multipart/form-data` body, found by its name alone.
fn form_field(body: &[u8], name: &str) -> Option<String> {
    let named = format!("name=\"{name}\"");
    let rest = body.get(memmem::find(body, named.as_bytes())? + named.len()..)?;
    let value = rest.get(memmem::find(rest, b"\r\n\r\n")? + 4..)?;
    let value = value.get(..memmem::find(value, b"\r\n")?)?;
    Some(String::from_utf8_lossy(value).into_owned())
}
