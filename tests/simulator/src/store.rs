//! What projects own: files, caches, batches, operations and the like, and uploads that are not finished.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use crate::jobs::Job;
use crate::route::Kind;

/// Resources and sessions beyond this are refused.
const MOST: usize = 100_000;

#[derive(Debug, Default)]
pub(crate) struct Store {
    resources: Mutex<HashMap<(Kind, String), Resource>>,
    sessions: Mutex<HashMap<String, Session>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) project: String,
    pub(crate) body: Value,
    pub(crate) created_ms: i64,
    /// Nobody sees it before; the output of work that is not done exists already.
    pub(crate) visible_ms: i64,
    pub(crate) expires_ms: i64,
    pub(crate) content: Bytes,
    /// What it waits for, if it does.
    pub(crate) job: Option<Job>,
}

/// A resumable upload.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) secret: String,
    pub(crate) project: String,
    pub(crate) mime_type: String,
    pub(crate) display_name: Option<String>,
    pub(crate) name: Option<String>,
    /// The file search store that it goes to, rather than to the project's files.
    pub(crate) search_store: Option<String>,
    pub(crate) data: Vec<u8>,
}

impl Resource {
    pub(crate) fn new(project: &str, body: Value, now_ms: i64, lives_ms: i64) -> Self {
        Self {
            project: project.to_owned(),
            body,
            created_ms: now_ms,
            visible_ms: i64::MIN,
            expires_ms: now_ms + lives_ms,
            content: Bytes::new(),
            job: None,
        }
    }

    fn is_alive(&self, now_ms: i64) -> bool {
        self.visible_ms <= now_ms && self.expires_ms > now_ms
    }
}

impl Store {
    pub(crate) fn put(&self, kind: Kind, id: &str, resource: Resource) -> bool {
        let mut all = self.resources.lock();
        let room = all.len() < MOST;
        if room {
            all.insert((kind, id.to_owned()), resource);
        }
        room
    }

    /// A resource that is alive, whoever owns it.
    pub(crate) fn get(&self, kind: Kind, id: &str, now_ms: i64) -> Option<Resource> {
        let all = self.resources.lock();
        all.get(&(kind, id.to_owned())).filter(|resource| resource.is_alive(now_ms)).cloned()
    }

    pub(crate) fn remove(&self, kind: Kind, id: &str) {
        self.resources.lock().remove(&(kind, id.to_owned()));
    }

    /// A project's resources, by id.
    pub(crate) fn list(&self, kind: Kind, project: &str, now_ms: i64) -> Vec<Resource> {
        let all = self.resources.lock();
        let mine = |(key, r): &(&(Kind, String), &Resource)| {
            key.0 == kind && r.project == project && r.is_alive(now_ms)
        };
        let mut found: Vec<_> = all.iter().filter(mine).collect();
        found.sort_by_key(|(key, _)| key.1.clone());
        found.into_iter().map(|(_, resource)| resource.clone()).collect()
    }

    pub(crate) fn open_session(&self, id: &str, session: Session) -> bool {
        let mut all = self.sessions.lock();
        let room = all.len() < MOST;
        if room {
            all.insert(id.to_owned(), session);
        }
        room
    }

    /// The secret that began the upload which a query names.
    pub(crate) fn session_secret(&self, query: Option<&str>) -> Option<String> {
        let id = upload_id(query)?;
        self.sessions.lock().get(id).map(|session| session.secret.clone())
    }

    /// Changes a session; `None` if there is none of that id.
    pub(crate) fn with_session<T>(&self, id: &str, change: impl FnOnce(&mut Session) -> T) -> Option<T> {
        self.sessions.lock().get_mut(id).map(change)
    }

    pub(crate) fn close_session(&self, id: &str) -> Option<Session> {
        self.sessions.lock().remove(id)
    }
}

pub(crate) fn upload_id(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("upload_id="))
}
