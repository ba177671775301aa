//! What every kind of stored resource has in common: it belongs to the project that made it. And caches, which are no
//! more than that.

use http::Method;
use serde_json::{Value, json};

use crate::call::{Call, whole};
use crate::chance::LOWER;
use crate::clock::rfc3339;
use crate::errors::{self, Failure};
use crate::reply::Reply;
use crate::route::{Kind, Surface};
use crate::store::Resource;
use crate::{batches, files, interactions, models, search, tuned, videos};

const HOUR_MS: i64 = 3_600_000;
/// How long anything is kept that has no end of its own.
pub(crate) const DAYS_MS: i64 = 55 * 24 * HOUR_MS;

pub(crate) fn serve(
    call: &mut Call<'_>,
    kind: Kind,
    id: Option<&str>,
    verb: Option<&str>,
) -> Result<Reply, Failure> {
    let method = call.head.method.clone();
    let Some(id) = id else {
        return match (kind, method) {
            (Kind::CachedContents, Method::POST) => create_cache(call),
            (Kind::Interactions, Method::POST) => interactions::create(call),
            (Kind::Batches, Method::POST) => batches::create_compat(call),
            (Kind::TunedModels, Method::POST) => tuned::create(call),
            (Kind::FileSearchStores, Method::POST) => search::create(call),
            (Kind::Videos, Method::POST) => videos::create(call),
            (_, Method::GET) => Ok(list(call, kind)),
            _ => Err(errors::not_found_page()),
        };
    };
    let found = own(call, kind, id)?;
    match (method, verb) {
        (Method::GET, None) => Ok(whole(models::pretty(&shown(call, kind, &found)))),
        (Method::GET, Some("download")) if kind == Kind::Files => files::download(call, id),
        (Method::DELETE, None) => {
            if matches!(kind, Kind::FileSearchStores | Kind::Documents) {
                search::before_delete(call, kind, id)?;
            }
            call.state.store.remove(kind, id);
            Ok(whole(models::pretty(&json!({}))))
        }
        (Method::PATCH, None) if matches!(kind, Kind::CachedContents | Kind::TunedModels) => {
            Ok(change(call, kind, id, found))
        }
        (Method::POST, Some("cancel")) if matches!(kind, Kind::Batches | Kind::Interactions) => {
            Ok(cancel(call, kind, id, found))
        }
        (Method::POST, Some("importFile")) if kind == Kind::FileSearchStores => search::import(call, id),
        _ => Err(errors::not_found_page()),
    }
}

/// A resource of the caller's project. Another project's and none at all look the same.
pub(crate) fn own(call: &Call<'_>, kind: Kind, id: &str) -> Result<Resource, Failure> {
    let found = call.state.store.get(kind, id, call.now_ms);
    found.filter(|found| found.project == call.caller.project.id).ok_or_else(|| match kind {
        Kind::Files => errors::file_forbidden(id),
        Kind::CachedContents => errors::cache_forbidden(),
        Kind::TunedModels | Kind::FileSearchStores | Kind::Documents => errors::permission_denied(),
        Kind::Batches | Kind::Interactions | Kind::Operations | Kind::Videos => errors::no_entity(),
    })
}

/// As it is seen now, on the surface of the request.
pub(crate) fn shown(call: &Call<'_>, kind: Kind, found: &Resource) -> Value {
    let now = call.now_ms;
    match kind {
        Kind::Batches if call.route.surface == Surface::Compat => batches::shown_compat(found, now),
        Kind::Batches => batches::shown(found, now),
        Kind::Interactions => interactions::shown(found, now),
        Kind::TunedModels => tuned::shown(found, now),
        Kind::FileSearchStores => search::shown(call, found),
        Kind::Documents => search::shown_document(found, now),
        Kind::Files => files::shown(found, now),
        Kind::Videos => videos::shown(found, now),
        Kind::CachedContents | Kind::Operations => found.body.clone(),
    }
}

fn list(call: &Call<'_>, kind: Kind) -> Reply {
    let all = call.state.store.list(kind, &call.caller.project.id, call.now_ms);
    let entry = |found: &Resource| shown(call, kind, found);
    if kind == Kind::Batches && call.route.surface == Surface::Compat {
        let all: Vec<Value> = all.iter().map(entry).collect();
        return whole(models::pretty(&json!({"object": "list", "data": all, "has_more": false})));
    }
    let name = if kind == Kind::Batches { "operations" } else { kind.collection() };
    whole(models::pretty(&models::page(name, &all, call.head.uri.query().unwrap_or_default(), entry)))
}

fn cancel(call: &Call<'_>, kind: Kind, id: &str, mut found: Resource) -> Reply {
    if found.job.as_mut().is_some_and(|job| job.cancel(call.now_ms)) {
        if kind == Kind::Batches {
            batches::drop_output(call, id);
        }
        call.state.store.put(kind, id, found.clone());
    }
    let native_batch = kind == Kind::Batches && call.route.surface != Surface::Compat;
    whole(models::pretty(&if native_batch { json!({}) } else { shown(call, kind, &found) }))
}

fn change(call: &Call<'_>, kind: Kind, id: &str, mut found: Resource) -> Reply {
    let asked: Value = serde_json::from_slice(call.body).unwrap_or_default();
    if kind == Kind::CachedContents {
        found.expires_ms = call.now_ms + lifetime(&asked);
        found.body["expireTime"] = json!(rfc3339(found.expires_ms));
    }
    for name in ["displayName", "description"] {
        if kind == Kind::TunedModels && asked[name].is_string() {
            found.body[name] = asked[name].clone();
        }
    }
    found.body["updateTime"] = json!(rfc3339(call.now_ms));
    let reply = whole(models::pretty(&shown(call, kind, &found)));
    call.state.store.put(kind, id, found);
    reply
}

/// The body of a request that makes something.
pub(crate) fn asked(call: &Call<'_>) -> Result<Value, Failure> {
    serde_json::from_slice(call.body)
        .map_err(|_| errors::bad_request("400:json", "Invalid JSON payload received. Unexpected token.\n^"))
}

/// `ttl` is seconds with an `s`, an hour when absent.
fn lifetime(asked: &Value) -> i64 {
    let seconds = asked["ttl"].as_str().and_then(|ttl| ttl.strip_suffix('s')?.parse::<i64>().ok());
    seconds.map_or(HOUR_MS, |seconds| seconds.clamp(1, DAYS_MS / 1000) * 1000)
}

fn create_cache(call: &mut Call<'_>) -> Result<Reply, Failure> {
    let asked = asked(call)?;
    let model = asked["model"].as_str().unwrap_or_default();
    let model = call.model(model, "createCachedContent", Some(false))?.id.clone();
    files::check_references(call)?;
    let (id, lives_ms, now) = (call.chance.id(16, LOWER), lifetime(&asked), rfc3339(call.now_ms));
    let mut body = json!({
        "name": format!("cachedContents/{id}"), "model": format!("models/{model}"), "createTime": now,
        "updateTime": now, "expireTime": rfc3339(call.now_ms + lives_ms),
        "usageMetadata": {"totalTokenCount": call.prompt_tokens()},
    });
    if let Some(display_name) = asked["displayName"].as_str() {
        body["displayName"] = json!(display_name);
    }
    let reply = whole(models::pretty(&body));
    let cache = Resource::new(&call.caller.project.id, body, call.now_ms, lives_ms);
    call.state.store.put(Kind::CachedContents, &id, cache);
    Ok(reply)
}
