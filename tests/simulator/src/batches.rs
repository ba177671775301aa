//! Batches: many requests at once, answered on the virtual clock, in the words of either surface.

use http::Method;
use serde_json::{Value, json};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::entries::{self, Entries};
use crate::errors::{self, Failure};
use crate::jobs::{Job, Stage};
use crate::reply::Reply;
use crate::resources::{self, DAYS_MS};
use crate::route::Kind;
use crate::store::Resource;
use crate::{files, models};

/// The type of an operation's metadata and of its response.
const TYPE: &str = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch";

/// `:batchGenerateContent`, or `:asyncBatchEmbedContent` if it `embeds`.
pub(crate) fn create(call: &mut Call<'_>, model: &str, embeds: bool) -> Result<Reply, Failure> {
    let method = if embeds { "asyncBatchEmbedContent" } else { "batchGenerateContent" };
    let model = call.model(model, method, Some(embeds))?.id.clone();
    let asked = resources::asked(call)?;
    let batch = &asked["batch"];
    let either = |value: &Value, names: [&str; 2]| {
        names.iter().find_map(|name| value.get(*name)).cloned().unwrap_or_default()
    };
    let input = either(batch, ["inputConfig", "input_config"]);
    files::check_references(call)?;
    let file = either(&input, ["fileName", "file_name"]);
    let entries = if let Some(name) = file.as_str() {
        entries::of_file(&input_file(call, name)?, "key")?
    } else {
        entries::inline(&input["requests"]["requests"])?
    };
    call.charge_apart(&format!("{model}:batch"))?;
    let id = call.chance.id(20, LOWER);
    let stats = answer(call, &entries, |call, request| entries::native(call, &model, request, embeds));
    let named = either(batch, ["displayName", "display_name"]);
    let about = json!({
        "model": format!("models/{model}"), "displayName": named, "inputConfig": without_requests(&input),
    });
    let in_file = file.is_string();
    let kept = keep(call, &id, about, &stats, |call, done_ms| {
        if !in_file {
            return json!({"inlinedResponses": {"inlinedResponses": stats.inline()}});
        }
        json!({"responsesFile": output(call, &id, &stats, done_ms)})
    });
    Ok(whole(models::pretty(&shown(&kept, call.now_ms))))
}

/// `POST /batches` of the compatible surface: its input is always a file.
pub(crate) fn create_compat(call: &mut Call<'_>) -> Result<Reply, Failure> {
    if call.head.method != Method::POST || call.route.surface != crate::route::Surface::Compat {
        return Err(errors::not_found_page());
    }
    let asked = resources::asked(call)?;
    let name = asked["input_file_id"].as_str().unwrap_or_default();
    let entries = entries::of_file(&input_file(call, name)?, "custom_id")?;
    call.charge_apart("batches:create")?;
    let id = call.chance.id(20, LOWER);
    let stats = answer(call, &entries, entries::compat);
    let about = json!({
        "endpoint": asked["endpoint"], "completionWindow": asked["completion_window"],
        "inputConfig": {"fileName": format!("files/{}", name.trim_start_matches("files/"))},
    });
    let kept = keep(
        call,
        &id,
        about,
        &stats,
        |call, done_ms| json!({"responsesFile": output(call, &id, &stats, done_ms)}),
    );
    Ok(whole(models::pretty(&shown_compat(&kept, call.now_ms))))
}

/// The lines of the caller's own file.
fn input_file(call: &Call<'_>, name: &str) -> Result<bytes::Bytes, Failure> {
    Ok(resources::own(call, Kind::Files, name.trim_start_matches("files/"))?.content)
}

fn without_requests(input: &Value) -> Value {
    let mut input = input.clone();
    if let Some(fields) = input.as_object_mut() {
        fields.remove("requests");
    }
    input
}

/// Answers that are known from the start and shown at the end.
#[derive(Debug, Default)]
struct Stats {
    lines: Vec<Value>,
    failed: usize,
}

impl Stats {
    /// As they stand in the operation itself.
    fn inline(&self) -> Vec<Value> {
        let renamed = |line: &Value| {
            let mut line = line.clone();
            if let Some(fields) = line.as_object_mut() {
                let key = fields.remove("key").unwrap_or_default();
                if !key.is_null() {
                    fields.insert("metadata".to_owned(), key);
                }
            }
            line
        };
        self.lines.iter().map(renamed).collect()
    }
}

fn answer(
    call: &mut Call<'_>,
    entries: &Entries,
    one: impl Fn(&mut Call<'_>, &Value) -> (Value, bool),
) -> Stats {
    let mut stats = Stats::default();
    for (key, request) in entries {
        let (mut line, good) = one(call, request);
        stats.failed += usize::from(!good);
        if !key.is_null() {
            let name = if line.get("id").is_some() { "custom_id" } else { "key" };
            line[name] = key.clone();
        }
        stats.lines.push(line);
    }
    stats
}

fn output_id(id: &str) -> String {
    format!("batch-{id}")
}

/// The file with an answer on each line; its name.
fn output(call: &Call<'_>, id: &str, stats: &Stats, done_ms: i64) -> String {
    let lines: Vec<String> = stats.lines.iter().map(|line| format!("{line}\n")).collect();
    let file = output_id(id);
    files::keep_generated(call, &file, "application/jsonl", lines.concat().into_bytes(), done_ms);
    format!("files/{file}")
}

/// What a cancelled batch would have made.
pub(crate) fn drop_output(call: &Call<'_>, id: &str) {
    call.state.store.remove(Kind::Files, &output_id(id));
}

fn keep<'c>(
    call: &mut Call<'c>,
    id: &str,
    mut about: Value,
    stats: &Stats,
    made: impl FnOnce(&mut Call<'c>, i64) -> Value,
) -> Resource {
    let mut job = Job::new(call.pool.world.jobs, call.now_ms, Value::Null);
    job.result = made(call, job.ends_ms());
    about["name"] = json!(format!("batches/{id}"));
    about["createTime"] = json!(rfc3339(call.now_ms));
    about["total"] = json!(stats.lines.len());
    about["failed"] = json!(stats.failed);
    if let Some(fields) = about.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let batch = Resource::new(&call.caller.project.id, about, call.now_ms, DAYS_MS);
    let batch = Resource { job: Some(job), ..batch };
    call.state.store.put(Kind::Batches, id, batch.clone());
    batch
}

/// An operation whose metadata is the batch.
pub(crate) fn shown(found: &Resource, now_ms: i64) -> Value {
    let mut metadata = found.body.clone();
    let name = metadata["name"].clone();
    let Some(job) = &found.job else { return json!({"name": name, "metadata": metadata}) };
    let (state, over) = match job.stage(now_ms) {
        Stage::Waiting => ("BATCH_STATE_PENDING", false),
        Stage::Running => ("BATCH_STATE_RUNNING", false),
        Stage::Done => ("BATCH_STATE_SUCCEEDED", true),
        Stage::Cancelled => ("BATCH_STATE_CANCELLED", true),
    };
    let count = |name: &str| found.body[name].as_u64().unwrap_or(0);
    let (total, failed) = (count("total"), count("failed"));
    if let Some(fields) = metadata.as_object_mut() {
        fields
            .retain(|name, _| !["total", "failed", "endpoint", "completionWindow"].contains(&name.as_str()));
    }
    metadata["@type"] = json!(TYPE);
    metadata["state"] = json!(state);
    metadata["updateTime"] = json!(rfc3339(job.changed_ms(now_ms, found.created_ms)));
    metadata["batchStats"] = json!({"requestCount": total.to_string()});
    if over {
        metadata["endTime"] = json!(rfc3339(job.ends_ms()));
    } else {
        metadata["batchStats"]["pendingRequestCount"] = json!(total.to_string());
    }
    let mut operation = json!({"name": name});
    job.conclude(&mut operation, now_ms);
    if operation.get("response").is_some() {
        metadata["output"] = job.result.clone();
        metadata["batchStats"]["successfulRequestCount"] = json!((total - failed).to_string());
        if failed > 0 {
            metadata["batchStats"]["failedRequestCount"] = json!(failed.to_string());
        }
        operation["response"]["@type"] = json!(format!("{TYPE}Output"));
    }
    operation["metadata"] = metadata;
    operation
}

/// The same in OpenAI's words.
pub(crate) fn shown_compat(found: &Resource, now_ms: i64) -> Value {
    let about = &found.body;
    let mut body = json!({
        "id": about["name"], "object": "batch", "endpoint": about["endpoint"], "created_at": found.created_ms / 1000,
        "input_file_id": about["inputConfig"]["fileName"], "completion_window": about["completionWindow"],
        "status": "validating",
    });
    let count = |name: &str| about[name].as_u64().unwrap_or(0);
    let (total, failed) = (count("total"), count("failed"));
    let Some(job) = &found.job else { return body };
    let at = job.changed_ms(now_ms, found.created_ms) / 1000;
    let (status, since) = match job.stage(now_ms) {
        Stage::Waiting => ("validating", "created_at"),
        Stage::Running => ("in_progress", "in_progress_at"),
        Stage::Done => ("completed", "completed_at"),
        Stage::Cancelled => ("cancelled", "cancelled_at"),
    };
    body["status"] = json!(status);
    body[since] = json!(at);
    body["request_counts"] = json!({"total": total, "completed": 0, "failed": 0});
    if status == "completed" {
        body["output_file_id"] = job.result["responsesFile"].clone();
        body["request_counts"] = json!({"total": total, "completed": total - failed, "failed": failed});
    }
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    body
}
