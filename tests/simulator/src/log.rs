//! The log of every request received: the oracle of the tests.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::auth::Credential;
use crate::route::Surface;

/// One request, as it arrived, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Its number, from 1, in order of arrival.
    pub seq: u64,
    /// Arrival on the virtual clock: milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Arrival on the monotonic clock: microseconds since the simulator started.
    pub mono_us: u64,
    /// The connection it came on.
    pub conn: u64,
    /// Whether it came over HTTP/2.
    pub http2: bool,
    /// The HTTP method.
    pub method: String,
    /// The path and the query.
    pub path_and_query: String,
    /// The headers in their order.
    pub headers: Vec<(String, String)>,
    /// The id of the key, when the credential is one of the pool.
    pub key_id: Option<String>,
    /// Every credential that the request carried.
    pub credentials: Vec<Credential>,
    /// The project of the key.
    pub project: Option<String>,
    /// The model asked for, without `models/`.
    pub model: Option<String>,
    /// The surface addressed.
    pub surface: Surface,
    /// SHA-256 of the body, in hexadecimal.
    pub body_sha256: String,
    /// The length of the body.
    pub body_len: usize,
    /// The body, if the world keeps bodies.
    pub body: Option<String>,
    /// The status answered; 0 while there is none.
    pub status: u16,
    /// What became of it: `ok`, `429:perminute`, `auth:api_key_invalid`, `rule:overloaded`, …; empty until known.
    pub outcome: String,
    /// The client went away before the answer ended.
    pub client_gone: bool,
    /// The whole answer was handed to the connection.
    pub done: bool,
}

impl Received {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Mutex<VecDeque<Received>>,
    pub(crate) changed: Notify,
}

impl Log {
    pub(crate) fn push(&self, entry: Received, capacity: usize) {
        let mut entries = self.entries.lock();
        while entries.len() >= capacity.max(1) {
            entries.pop_front();
        }
        // Requests of several connections can swap places between their number and here.
        let place = entries.iter().rposition(|other| other.seq < entry.seq).map_or(0, |at| at + 1);
        entries.insert(place, entry);
        drop(entries);
        self.changed.notify_waiters();
    }

    pub(crate) fn update(&self, seq: u64, change: impl FnOnce(&mut Received)) {
        let mut entries = self.entries.lock();
        let found = entries.binary_search_by_key(&seq, |entry| entry.seq);
        if let Some(entry) = found.ok().and_then(|at| entries.get_mut(at)) {
            change(entry);
        }
        drop(entries);
        self.changed.notify_waiters();
    }

    pub(crate) fn all(&self) -> Vec<Received> {
        self.entries.lock().iter().cloned().collect()
    }

    pub(crate) fn any(&self, condition: impl Fn(&Received) -> bool) -> bool {
        self.entries.lock().iter().any(condition)
    }

    pub(crate) fn clear(&self) {
        self.entries.lock().clear();
    }
}
