//! Which project has what an answer tells of, so that whoever refers to it later is sent there.

use std::time::Duration;

use keyfleet_core::id::{ProjectId, Resource};
use keyfleet_core::ledger::read_owner;
use keyfleet_core::message::{Ask, Owned, Record};
use keyfleet_core::state::Table;
use keyfleet_service::clock;

use crate::answer::Answer;
use crate::api::interactions;
use crate::call::{Call, Kind, Surface};
use crate::pool::{self, Permit};
use crate::{Worker, skim, upload};

/// Uploads and files live for two days upstream; other resources may be asked for much longer.
const FILE_TTL: Duration = Duration::from_hours(48);
const OTHER_TTL: Duration = Duration::from_hours(336);

/// Of the resources that a request refers to, so many are looked up.
const MOST_LOOKED_UP: usize = 4;

/// Whose one of these resources is, as far as anybody knows.
pub(crate) async fn owner(worker: &Worker, resources: &[Resource]) -> Option<ProjectId> {
    match worker.app.pool.owners.of(resources, clock::mono()) {
        None if !resources.is_empty() => look_up(worker, resources).await,
        known => known,
    }
}

/// Asks the store, once in a while, for an owner that this replica has not heard of: the only question on a request's way.
async fn look_up(worker: &Worker, resources: &[Resource]) -> Option<ProjectId> {
    let app = &worker.app;
    for resource in resources.iter().take(MOST_LOOKED_UP) {
        let owners = &app.pool.owners;
        if !owners.may_ask(resource, clock::mono()) {
            continue;
        }
        app.metrics.looked_up();
        let found = match app.fabric.store.get(Table::Owners, resource.as_str()).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "an owner cannot be looked up");
                owners.store_failed(clock::mono());
                return None;
            }
        };
        if let Some((project, ttl_ms)) = found.and_then(|value| read_owner(&value, clock::utc())) {
            let owned = Owned { resource: resource.clone(), project: project.clone(), ttl_ms };
            owners.insert(&owned, clock::mono());
            return Some(project);
        }
        owners.missed(resource, clock::mono());
    }
    None
}

/// What an answer shows to belong to the permit's project: what was just made, and what the client is told of when it
/// asks for what it has, such as the output of a batch.
pub(super) fn shown(call: &Call, answer: &Answer, permit: &Permit) -> Vec<Owned> {
    let creates = call.creates();
    let lists = call.kind == Kind::Other && skim::names_a_collection(&call.path);
    if !creates && !lists {
        return Vec::new();
    }
    let found = skim::skim(&answer.begun);
    let text = |at: std::ops::Range<usize>| std::str::from_utf8(&answer.begun[at]).ok();
    let mut names: Vec<String> = Vec::new();
    if call.surface != Surface::Native || !interactions::has_path(&call.path) {
        // All of an interaction but its id may be the model's own words.
        names.extend(found.references.iter().map(ToString::to_string));
        names.extend(pool::operation(&answer.begun));
    }
    let kind =
        call.path.rsplit('/').next().filter(|kind| creates && matches!(*kind, "interactions" | "videos"));
    names.extend(kind.and_then(|kind| Some(format!("{kind}/{}", text(found.id?)?))));
    names.extend(upload::session(&answer.headers).map(|id| upload::resource(&id)));
    names.dedup();
    let owned = |name: String| {
        let is_file = name.starts_with("files/") || name.starts_with("uploads/");
        let ttl = if is_file { FILE_TTL } else { OTHER_TTL };
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Owned { resource: Resource::new(name), project: permit.project().clone(), ttl_ms }
    };
    names.into_iter().map(owned).collect()
}

/// Remembers owners. What was made is written down by the coordinator before the client can refer to it; if nobody
/// answers, it is reported like everything else.
pub(super) async fn note_owners(worker: &Worker, creates: bool, shown: Vec<Owned>) {
    let app = &worker.app;
    for owned in shown {
        let is_known = app.pool.owners.of(std::slice::from_ref(&owned.resource), clock::mono()).is_some();
        if !creates && is_known {
            continue;
        }
        app.pool.owners.insert(&owned, clock::mono());
        if !creates || app.fabric.bus.ask(Ask::Own(owned.clone())).await.is_err() {
            app.pool.reports.push(Record::Owned(owned));
        }
    }
}
