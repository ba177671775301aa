//! Which project owns what clients have stored upstream, so that a request that refers to it goes there.

use std::collections::HashMap;
use std::time::Duration;

use keyfleet_core::id::{ProjectId, Resource};
use keyfleet_core::ledger::MAX_ENTRIES;
use keyfleet_core::message::Owned;
use keyfleet_core::time::Mono;
use parking_lot::Mutex;

/// Owners by resource.
#[derive(Default)]
pub(crate) struct Owners(Mutex<HashMap<Resource, (ProjectId, Mono)>>);

impl Owners {
    /// Notes an owner.
    pub(crate) fn insert(&self, owned: &Owned, now: Mono) {
        let mut owners = self.0.lock();
        if owners.len() >= MAX_ENTRIES {
            owners.retain(|_, (_, until)| *until > now);
        }
        if owners.len() < MAX_ENTRIES {
            let until = now.plus(Duration::from_millis(owned.ttl_ms));
            owners.insert(owned.resource.clone(), (owned.project.clone(), until));
        }
    }

    /// The owner of the first resource that has a known one.
    pub(crate) fn of(&self, resources: &[Resource], now: Mono) -> Option<ProjectId> {
        if resources.is_empty() {
            return None;
        }
        let owners = self.0.lock();
        let known = resources.iter().find_map(|resource| owners.get(resource));
        known.filter(|(_, until)| *until > now).map(|(project, _)| project.clone())
    }
}
