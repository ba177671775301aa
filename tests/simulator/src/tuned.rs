//! Tuned models: made by an operation, used like the model they are based on, by the keys of their project alone.

use serde_json::{Value, json};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::errors::{self, Failure};
use crate::jobs::{Job, Stage};
use crate::reply::Reply;
use crate::resources::{self, DAYS_MS};
use crate::route::Kind;
use crate::store::Resource;
use crate::{auth, models, operations};

pub(crate) const PREFIX: &str = "tunedModels/";
const STEPS: u32 = 10;

pub(crate) fn create(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked = resources::asked(call)?;
    let base = asked["baseModel"].as_str().or_else(|| asked["base_model"].as_str()).unwrap_or_default();
    let base = call.model(base, "createTunedModel", Some(false))?.id.clone();
    auth::billing(call.caller, call.pool)?;
    let mut pairs = call.head.uri.query().unwrap_or_default().split('&');
    let wanted = pairs.find_map(|pair| pair.strip_prefix("tunedModelId=")).map(str::to_owned);
    let id = wanted.unwrap_or_else(|| call.chance.id(16, LOWER));
    if call.state.store.get(Kind::TunedModels, &id, call.now_ms).is_some() {
        return Err(Failure::api("409:exists", 409, "ALREADY_EXISTS", "Requested entity already exists"));
    }
    let (name, now) = (format!("{PREFIX}{id}"), rfc3339(call.now_ms));
    let mut body = json!({
        "name": name, "displayName": asked["displayName"], "baseModel": format!("models/{base}"),
        "createTime": now, "updateTime": now, "temperature": 1, "topP": 0.95, "topK": 64,
    });
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let mut job = Job::new(call.pool.world.jobs, call.now_ms, Value::Null);
    let model = Resource::new(&call.caller.project.id, body, call.now_ms, DAYS_MS);
    let model = Resource { job: Some(job.clone()), ..model };
    job.result = shown(&model, job.ends_ms());
    job.result["@type"] = json!("type.googleapis.com/google.ai.generativelanguage.v1beta.TunedModel");
    let metadata = json!({
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1beta.CreateTunedModelMetadata",
        "totalSteps": STEPS, "tunedModel": name,
    });
    call.state.store.put(Kind::TunedModels, &id, model);
    let operation = operations::start(call, &name, Some(metadata), job);
    Ok(whole(models::pretty(&operation)))
}

pub(crate) fn shown(found: &Resource, now_ms: i64) -> Value {
    let mut body = found.body.clone();
    let Some(job) = &found.job else { return body };
    let (state, begun, ended) = match job.stage(now_ms) {
        Stage::Waiting => ("CREATING", false, false),
        Stage::Running => ("CREATING", true, false),
        Stage::Done => ("ACTIVE", true, true),
        Stage::Cancelled => ("FAILED", true, false),
    };
    body["state"] = json!(state);
    let mut task = json!({});
    if begun {
        task["startTime"] = json!(rfc3339(found.created_ms));
    }
    if ended {
        task["completeTime"] = json!(rfc3339(job.ends_ms()));
    }
    body["tuningTask"] = task;
    body
}

/// The base of a tuned model of the caller's; `None` if `id` names another kind of model.
pub(crate) fn base(call: &Call<'_>, id: &str) -> Result<Option<String>, Failure> {
    let Some(tuned) = id.strip_prefix(PREFIX) else { return Ok(None) };
    let found = resources::own(call, Kind::TunedModels, tuned)?;
    if found.job.as_ref().is_some_and(|job| job.stage(call.now_ms) != Stage::Done) {
        return Err(errors::bad_request("400:tuning", format!("Tuned model {id} is not active yet.")));
    }
    Ok(found.body["baseModel"].as_str().map(str::to_owned))
}
