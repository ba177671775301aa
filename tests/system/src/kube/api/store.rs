//! Objects, and what happened to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Refusal, controllers, discovery, run};

/// The resource, the namespace (empty: none) and the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    resource: String,
    namespace: String,
    name: String,
}

impl Id {
    pub(super) fn new(resource: &str, namespace: &str, name: &str) -> Self {
        let [resource, namespace, name] = [resource, namespace, name].map(str::to_owned);
        Self { resource, namespace, name }
    }
}

#[derive(Debug, Default)]
pub(super) struct Store {
    all: Mutex<All>,
    /// The newest version, for those who wait for a newer one.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct All {
    objects: BTreeMap<Id, Value>,
    /// With the version that each made. A scenario is too short for them to be many.
    events: Vec<(u64, Id, Value)>,
    version: u64,
    logs: BTreeMap<Id, String>,
    /// By the name of a Service.
    addresses: BTreeMap<String, String>,
}

impl All {
    fn happened(&mut self, what: &str, id: &Id, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.events.push((self.version, id.clone(), json!({"type": what, "object": object})));
        if what == "DELETED" {
            self.objects.remove(id);
        } else {
            self.objects.insert(id.clone(), object.clone());
        }
        object
    }
}

impl Store {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn version(&self) -> u64 {
        self.all().version
    }

    pub(super) fn get(&self, id: &Id) -> Option<Value> {
        self.all().objects.get(id).cloned()
    }

    pub(super) fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Value> {
        let all = self.all();
        let of = all.objects.iter().filter(|(id, _)| {
            id.resource == resource && namespace.is_none_or(|namespace| namespace == id.namespace)
        });
        of.map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.all().objects.keys().map(|id| format!("{}/{}", id.resource, id.name)).collect()
    }

    pub(super) fn create(self: &Arc<Self>, id: &Id, mut object: Value, dry: bool) -> Result<Value, Refusal> {
        let mut all = self.all();
        if all.objects.contains_key(id) {
            return Err(Refusal::conflict(&format!("{} \"{}\"", id.resource, id.name)));
        }
        object["kind"] =
            discovery::kind(&id.resource).ok_or_else(|| Refusal::not_found(&id.resource))?.into();
        let meta = &mut object["metadata"];
        meta["uid"] = format!("00000000-0000-4000-8000-{:012}", all.version + 1).into();
        meta["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        meta["generation"] = 1.into();
        if !id.namespace.is_empty() {
            meta["namespace"] = id.namespace.clone().into();
        }
        Ok(self.put("ADDED", &mut all, id, object, dry))
    }

    pub(super) fn change(
        self: &Arc<Self>,
        id: &Id,
        change: impl FnOnce(&Value) -> Result<Value, Refusal>,
        dry: bool,
    ) -> Result<Value, Refusal> {
        let mut all = self.all();
        let missing = || Refusal::not_found(&format!("{} \"{}\"", id.resource, id.name));
        let before = all.objects.get(id).cloned().ok_or_else(missing)?;
        let mut object = change(&before)?;
        let is_workload = ["deployments", "statefulsets"].contains(&id.resource.as_str());
        if is_workload && object["spec"]["selector"] != before["spec"]["selector"] {
            return Err(Refusal::invalid("spec.selector: Invalid value: field is immutable"));
        }
        for kept in ["uid", "creationTimestamp", "generation", "namespace"] {
            object["metadata"][kept] = before["metadata"][kept].clone();
        }
        object["kind"] = before["kind"].clone();
        object["apiVersion"] = before["apiVersion"].clone();
        if object["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_u64().unwrap_or_default();
            object["metadata"]["generation"] = (generation + 1).into();
        }
        Ok(self.put("MODIFIED", &mut all, id, object, dry))
    }

    /// Stores it as it will be when every controller has done its work; those who run pods do that later.
    fn put(self: &Arc<Self>, what: &str, all: &mut All, id: &Id, mut object: Value, dry: bool) -> Value {
        let owned = controllers::settle(&mut object);
        if dry {
            return object;
        }
        let object = all.happened(what, id, object);
        for (resource, owned) in owned {
            let name = owned["metadata"]["name"].as_str().unwrap_or_default();
            let id = Id::new(resource, &id.namespace, name);
            all.happened("ADDED", &id, owned);
        }
        self.version.send_replace(all.version);
        if what == "ADDED" && ["pods", "jobs"].contains(&id.resource.as_str()) {
            tokio::spawn(run::to_its_end(self.clone(), id.clone(), object.clone()));
        }
        object
    }

    pub(super) fn delete(&self, id: &Id, dry: bool) -> Option<Value> {
        let mut all = self.all();
        let object = all.objects.get(id).cloned()?;
        if dry {
            return Some(object);
        }
        let uid = &object["metadata"]["uid"];
        let owned = |other: &Value| {
            let owners = other["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == *uid))
        };
        let gone: Vec<_> =
            all.objects.iter().filter(|(_, other)| owned(other)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            let object = all.objects[&id].clone();
            all.happened("DELETED", &id, object);
        }
        let object = all.happened("DELETED", id, object);
        self.version.send_replace(all.version);
        Some(object)
    }

    /// What happened after a version, as soon as something has; and the version of the last.
    pub(super) async fn after(
        &self,
        seen: u64,
        resource: &str,
        namespace: Option<&str>,
    ) -> (u64, Vec<Value>) {
        let mut version = self.version.subscribe();
        // An error: nobody will change anything any more, because the server has ended.
        let _ = version.wait_for(|version| *version > seen).await;
        let all = self.all();
        let new = all.events.iter().filter(|(version, id, _)| {
            *version > seen
                && id.resource == resource
                && namespace.is_none_or(|namespace| namespace == id.namespace)
        });
        (all.version, new.map(|(.., event)| event.clone()).collect())
    }

    pub(super) fn log_of(&self, id: &Id) -> Option<String> {
        self.all().logs.get(id).cloned()
    }

    /// A pod or job has ended.
    pub(super) fn ended(self: &Arc<Self>, id: &Id, status: Value, log: String) {
        self.all().logs.insert(id.clone(), log);
        // An error: it was deleted meanwhile.
        let _ = self.change(
            id,
            |object| {
                let mut object = object.clone();
                object["status"] = status;
                Ok(object)
            },
            false,
        );
    }

    pub(super) fn stand_in(&self, service: &str, address: &str) {
        self.all().addresses.insert(service.to_owned(), address.to_owned());
    }

    /// With the addresses of this machine for those of Services.
    pub(super) fn resolve(&self, text: &str) -> String {
        let all = self.all();
        let found = text.split_once("://").and_then(|(scheme, rest)| {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let service = host.split(':').next()?;
            Some(format!("{scheme}://{}{path}", all.addresses.get(service)?))
        });
        found.unwrap_or_else(|| text.to_owned())
    }
}
