//! Which project owns what clients have stored upstream, so that a request that refers to it goes there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
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

/// What the store knows no owner of is not asked for again before this time: it was made outside of Keyfleet, and is
/// referred to again and again.
const MISSED: Duration = Duration::from_secs(10);
/// So many such resources are remembered; of more, the store is asked each time.
const MOST_MISSED: usize = 10_000;
/// A store that did not answer is asked nothing for so long: each question would hold its request.
const STORE_RESTS: Duration = Duration::from_secs(1);

/// Owners by resource.
#[derive(Default)]
pub(crate) struct Owners {
    known: Mutex<HashMap<Resource, (ProjectId, Mono)>>,
    /// Until when there is no use in asking the store for these.
    missed: Mutex<HashMap<Resource, Mono>>,
    /// Until when there is none in asking it for anything, in ms.
    store_rests: AtomicU64,
}

impl Owners {
    /// Notes an owner.
    pub(crate) fn insert(&self, owned: &Owned, now: Mono) {
        let mut owners = self.known.lock();
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
        let owners = self.known.lock();
        let known = resources.iter().filter_map(|resource| owners.get(resource));
        known.filter(|(_, until)| *until > now).map(|(project, _)| project.clone()).next()
    }

    /// Whether the store may be asked for the owner of this.
    pub(crate) fn may_ask(&self, resource: &Resource, now: Mono) -> bool {
        now.as_ms() >= self.store_rests.load(Acquire)
            && self.missed.lock().get(resource).is_none_or(|until| *until <= now)
    }

    /// The store knows no owner of this.
    pub(crate) fn missed(&self, resource: &Resource, now: Mono) {
        let mut missed = self.missed.lock();
        if missed.len() >= MOST_MISSED {
            missed.retain(|_, until| *until > now);
        }
        if missed.len() < MOST_MISSED {
            missed.insert(resource.clone(), now.plus(MISSED));
        }
    }

    /// The store did not answer.
    pub(crate) fn store_failed(&self, now: Mono) {
        self.store_rests.store(now.plus(STORE_RESTS).as_ms(), Release);
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
    fn the_store_is_not_asked_in_vain() {
        let owners = Owners::default();
        let (one, other) = (Resource::new("files/one"), Resource::new("files/other"));
        let may = |ms| [&one, &other].map(|resource| owners.may_ask(resource, Mono::from_ms(ms)));
        owners.missed(&one, Mono::from_ms(0));
        assert_eq!([may(9_999), may(10_000)], [[false, true], [true, true]]);
        owners.store_failed(Mono::from_ms(20_000));
        assert_eq!([may(20_999), may(21_000)], [[false, false], [true, true]]);
        for number in 0..2 * MOST_MISSED {
            owners.missed(&Resource::new(format!("files/{number}")), Mono::from_ms(30_000));
        }
        assert_eq!(owners.missed.lock().len(), MOST_MISSED);
        owners.missed(&one, Mono::from_ms(40_000));
        assert_eq!(may(40_000), [false, true], "there is room again");
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
