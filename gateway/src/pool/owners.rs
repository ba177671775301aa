//! Which project owns what clients have stored upstream, so that a request that refers to it goes there.

use std::collections::HashMap;
use std::time::Duration;

use keyfleet_core::id::{ProjectId, Resource};
use keyfleet_core::ledger::MAX_ENTRIES;
use keyfleet_core::message::Owned;
use keyfleet_core::time::Mono;
use parking_lot::Mutex;

/// Whether a path makes what one later request may refer to together with others: two files, a file and a cache, a
/// store and the files in it. They have to belong to one project, which batches, operations and interactions need not.
pub(crate) fn is_combined(path: &str) -> bool {
    path.split(['/', ':']).any(|part| matches!(part, "files" | "cachedContents" | "fileSearchStores"))
}

/// What a path names by its last parts, whatever stands before them: `models/M/operations/ID`, or on the compat surface
/// `batches/ID`.
pub(crate) fn named(path: &str) -> Option<Resource> {
    let kinds = ["operations", "videos", "batches", "files"];
    let parts = path.split('/').zip(path.split('/').skip(1));
    let (kind, id) = parts.filter(|(kind, id)| kinds.contains(kind) && !kinds.contains(id)).last()?;
    let id = id.split(':').next().filter(|id| !id.is_empty())?;
    Some(Resource::new(format!("{kind}/{id}")))
}

/// The operation that an answer names with its model before it.
pub(crate) fn operation(answer: &[u8]) -> Option<String> {
    const OPERATIONS: &[u8] = b"/operations/";
    let from = memchr::memmem::find(answer, OPERATIONS)? + 1;
    let id = &answer[from + OPERATIONS.len() - 1..];
    let end = id.iter().position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_'))?;
    let name = &answer[from..from + OPERATIONS.len() - 1 + end];
    std::str::from_utf8(name).ok().filter(|_| end > 0).map(str::to_owned)
}

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
        let known = resources.iter().filter_map(|resource| owners.get(resource));
        known.filter(|(_, until)| *until > now).map(|(project, _)| project.clone()).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_is_no_longer_known_hides_no_other() {
        let owners = Owners::default();
        for (name, ttl_ms) in [("files/old", 10), ("files/new", 1_000)] {
            let (resource, project) = (Resource::new(name), ProjectId::new(name));
            owners.insert(&Owned { resource, project, ttl_ms }, Mono::from_ms(0));
        }
        let both = ["files/old", "files/new"].map(Resource::new);
        let at = |ms| owners.of(&both, Mono::from_ms(ms)).map(|project| project.as_str().to_owned());
        assert_eq!(at(9).as_deref(), Some("files/old"));
        assert_eq!(at(10).as_deref(), Some("files/new"));
        assert_eq!(at(1_000), None);
    }

    #[test]
    fn what_paths_and_answers_name() {
        for (path, name) in [
            ("v1beta/models/m/operations/o1", Some("operations/o1")),
            ("batches/b1", Some("batches/b1")),
            ("batches/batches/b1/cancel", Some("batches/b1")),
            ("v1beta/batches/b1:cancel", Some("batches/b1")),
            ("videos/v1", Some("videos/v1")),
            ("v1beta/files", None),
            ("v1beta/files/", None),
            ("v1beta/models/operations:generateContent", None),
        ] {
            assert_eq!(named(path).as_ref().map(Resource::as_str), name, "{path}");
        }
        let answer = br#"{"name": "models/veo/operations/o-1", "done": false}"#;
        assert_eq!(operation(answer).as_deref(), Some("operations/o-1"));
        for none in [&br#"{"name":"operations/o1"}"#[..], b"/operations/", br#"{"a":"/operations/"}"#] {
            assert_eq!(operation(none), None);
        }
    }
}
