//! Long-running operations: named after what they work on, and asked for again and again until they are done.

use http::Method;
use serde_json::{Value, json};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::errors::{self, Failure};
use crate::jobs::Job;
use crate::reply::Reply;
use crate::resources::{self, DAYS_MS};
use crate::route::Kind;
use crate::store::Resource;
use crate::{files, models};

/// The smallest beginning of an MP4 file.
pub(crate) const VIDEO: &[u8] = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom";

/// Starts an operation under `parent`; what the caller gets to see of it now.
pub(crate) fn start(call: &mut Call<'_>, parent: &str, metadata: Option<Value>, job: Job) -> Value {
    let id = call.chance.id(20, LOWER);
    let mut body = json!({"name": format!("{parent}/operations/{id}")});
    if let Some(metadata) = metadata {
        body["metadata"] = metadata;
    }
    let operation = Resource::new(&call.caller.project.id, body, call.now_ms, DAYS_MS);
    let operation = Resource { job: Some(job), ..operation };
    let shown = shown(&operation, call.now_ms);
    call.state.store.put(Kind::Operations, &id, operation);
    shown
}

/// `name` is the whole name, or `operations/` and its last part.
pub(crate) fn serve(call: &mut Call<'_>, name: &str, verb: Option<&str>) -> Result<Reply, Failure> {
    let (parent, id) = name.rsplit_once("operations/").unwrap_or_default();
    let mut found = resources::own(call, Kind::Operations, id)?;
    if !parent.is_empty() && found.body["name"] != json!(name) {
        return Err(errors::no_entity());
    }
    let store = &call.state.store;
    let answer = match (call.head.method.as_str(), verb) {
        ("GET", None) => shown(&found, call.now_ms),
        ("DELETE", None) => {
            store.remove(Kind::Operations, id);
            json!({})
        }
        ("POST", Some("cancel")) => {
            if found.job.as_mut().is_some_and(|job| job.cancel(call.now_ms)) {
                store.put(Kind::Operations, id, found);
            }
            json!({})
        }
        _ => return Err(errors::not_found_page()),
    };
    Ok(whole(models::pretty(&answer)))
}

fn shown(found: &Resource, now_ms: i64) -> Value {
    let mut body = found.body.clone();
    if let Some(job) = &found.job {
        job.conclude(&mut body, now_ms);
    }
    body
}

/// A video to be made: its operation, and in the end a file.
pub(crate) fn predict(call: &mut Call<'_>, model: &str) -> Result<Reply, Failure> {
    if call.head.method != Method::POST {
        return Err(errors::not_found_page());
    }
    let model = call.model(model, "predictLongRunning", Some(false))?.id.clone();
    call.charge(&model)?;
    let mut job = Job::new(call.pool.world.jobs, call.now_ms, Value::Null);
    let file = call.chance.id(12, LOWER);
    let uri = files::keep_generated(call, &file, "video/mp4", VIDEO.to_vec(), job.ends_ms());
    job.result = json!({
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1beta.PredictLongRunningResponse",
        "generateVideoResponse": {
            "generatedSamples": [{"video": {"uri": format!("{uri}:download?alt=media")}}],
        },
    });
    let operation = start(call, &format!("models/{model}"), None, job);
    Ok(whole(models::pretty(&operation)))
}
