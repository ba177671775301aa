//! The store of one process: in its memory, and in a file if it has one, for the process after it.
//!
//! With a file, every commit is written to its journal before it is acknowledged, in the calling task: a write of a
//! few kilobytes to the page cache, on no request's path. What takes long, a new snapshot, is made elsewhere.

use super::journal::{Files, Line};
use super::{Claim, KEEP, Lead, StateStore, StoreError, chain};
use async_trait::async_trait;
use keyfleet_core::id::ReplicaId;
use keyfleet_core::message::Delta;
use keyfleet_core::state::{Commit, Entry, Image, Meta, Table};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::Path;
use tokio::time::Instant;

/// A [`StateStore`] in memory.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    keep: usize,
}

/// A store that was opened from a file.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: MemoryStore,
    /// How far it can be trusted to know the past.
    pub vouch: Vouch,
    /// What an earlier release had left in that file, for as long as nothing newer was committed.
    pub old: Option<serde_json::Value>,
}

/// Whether what a store holds is everything that was ever acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouch {
    /// It is: the last process closed it, or the machine has been running since.
    Whole,
    /// There was nothing yet: the first start, or the first one of this release.
    Fresh,
    /// Something may be missing: the machine stopped without a clean end, or a file is damaged.
    Partial,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    lock: Option<(ReplicaId, Instant)>,
    out: VecDeque<Delta>,
    files: Option<Files>,
    /// The last line did not get into them.
    unwritten: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct State {
    meta: Meta,
    heard: BTreeMap<ReplicaId, u64>,
    tables: BTreeMap<Table, HashMap<String, String>>,
}

impl State {
    fn apply(&mut self, meta: Meta, heard: Vec<(ReplicaId, u64)>, entries: Vec<Entry>) {
        self.meta = meta;
        for (replica, seq) in heard {
            if seq == 0 {
                self.heard.remove(&replica);
            } else {
                self.heard.insert(replica, seq);
            }
        }
        for Entry { table, key, value } in entries {
            let table = self.tables.entry(table).or_default();
            match value {
                Some(value) => table.insert(key, value),
                None => table.remove(&key),
            };
        }
    }

    /// Repeats a step from a journal; false if it does not follow.
    fn replay(&mut self, line: Line) -> bool {
        let at = self.meta.commit;
        let known = line.meta.commit < at || (line.meta.commit == at && line.meta.epoch <= self.meta.epoch);
        if known {
            return true;
        }
        let follows = line.follows == at;
        if follows {
            self.apply(line.meta, line.heard, line.entries);
        }
        follows
    }

    fn image(&self) -> Image {
        let entries = self.tables.iter().flat_map(|(table, entries)| {
            entries.iter().map(|(key, value)| Entry {
                table: *table,
                key: key.clone(),
                value: Some(value.clone()),
            })
        });
        Image {
            meta: self.meta.clone(),
            heard: self.heard.iter().map(|(replica, seq)| (replica.clone(), *seq)).collect(),
            entries: entries.collect(),
        }
    }
}

impl From<Image> for State {
    fn from(image: Image) -> Self {
        let mut state = Self::default();
        state.apply(image.meta, image.heard, image.entries);
        state
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(KEEP)
    }
}

impl MemoryStore {
    /// An empty one without a file, which keeps so many decisions.
    pub fn new(keep: usize) -> Self {
        Self { inner: Mutex::default(), keep }
    }

    /// Keeps so many decisions from now on.
    #[must_use]
    pub fn keeping(mut self, keep: usize) -> Self {
        self.keep = keep;
        self
    }

    /// One that lives on in the file at `path` and two journals beside it. `boot` names the time since the machine
    /// was started (`/proc/sys/kernel/random/boot_id`); it is empty where there is no such name.
    ///
    /// A file that cannot be read is set aside. An error means that no file can be written there, or that another
    /// process has this one open.
    pub fn open(path: &Path, boot: &str) -> io::Result<Opened> {
        let (mut files, found) = Files::open(path, boot)?;
        let mut state = State::from(found.image);
        let mut lossy = found.lossy;
        for line in found.lines {
            if !state.replay(line) {
                lossy = true;
                tracing::warn!(file = %path.display(), "the journal has a gap: what is after it is cut off");
                break;
            }
        }
        let vouch = match (found.any, lossy) {
            (_, true) => Vouch::Partial,
            (true, false) => Vouch::Whole,
            (false, false) => Vouch::Fresh,
        };
        files.rewrite(&state.image(), false)?;
        let old = found.old.filter(|_| state.meta.commit == 0);
        let inner = Inner { state, files: Some(files), ..Inner::default() };
        Ok(Opened { store: Self { inner: Mutex::new(inner), keep: KEEP }, vouch, old })
    }

    /// Whether the last thing that was to be written to the file could be.
    pub fn is_written(&self) -> bool {
        !self.inner.lock().unwritten
    }

    /// Writes everything down as the end: the next process can rely on it. Nothing can be written afterwards.
    pub async fn close(&self) -> io::Result<()> {
        let (under_way, files, image) = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.lock = None;
            let Some(mut files) = inner.files.take() else { return Ok(()) };
            (files.under_way(), files, inner.state.image())
        };
        if let Some(task) = under_way {
            // Whether it worked does not matter: everything is written once more.
            drop(task.await);
        }
        let mut files = files;
        tokio::task::spawn_blocking(move || files.rewrite(&image, true)).await.map_err(io::Error::other)?
    }
}

impl Inner {
    fn open(&self) -> Result<(), StoreError> {
        if self.closed { Err(StoreError::Unreachable("it is closed".to_owned())) } else { Ok(()) }
    }

    fn write(&mut self, line: &Line) -> Result<(), StoreError> {
        match &mut self.files {
            Some(files) => {
                let written = files.append(line);
                self.unwritten = written.is_err();
                written.map_err(|error| StoreError::Unreachable(error.to_string()))
            }
            None => Ok(()),
        }
    }

    fn lead(&mut self, claim: &Claim, now: Instant) -> Result<Lead, StoreError> {
        self.open()?;
        let stored = &self.state.meta;
        let same_epoch = claim.epoch == stored.epoch && claim.holder.as_str() == stored.leader;
        let held = self.lock.as_ref().filter(|(_, until)| *until > now);
        if let Some((holder, until)) = held
            && (*holder != claim.holder || (claim.epoch != 0 && !same_epoch))
        {
            let epoch = self.state.meta.epoch;
            return Ok(Lead::Theirs { holder: holder.clone(), epoch, left: *until - now });
        }
        if claim.epoch != 0 && !same_epoch {
            return Ok(Lead::Nobody);
        }
        if claim.epoch == 0 && !claim.ttl.is_zero() {
            let floor = self.state.meta.epoch.max(claim.above);
            let epoch = floor
                .checked_add(1)
                .ok_or_else(|| StoreError::Damaged("there is no higher epoch".to_owned()))?;
            let leader = claim.holder.as_str().to_owned();
            let meta = Meta { epoch, leader, ..self.state.meta.clone() };
            let follows = meta.commit;
            self.write(&Line { follows, meta: meta.clone(), heard: Vec::new(), entries: Vec::new() })?;
            self.state.meta = meta;
        } else if claim.epoch != 0
            && let Some((time, at)) = claim.clock
            && time > self.state.meta.time
        {
            // Written with the next commit or the end. A time that is behind after a crash only makes quotas look
            // more used than they are.
            self.state.meta.time = time;
            self.state.meta.at = at;
        }
        if claim.ttl.is_zero() {
            self.lock = None;
            return Ok(Lead::Nobody);
        }
        self.lock = Some((claim.holder.clone(), now + claim.ttl));
        Ok(Lead::Mine(self.state.meta.clone()))
    }

    fn fits(&self, commit: &Commit) -> bool {
        let stored = &self.state.meta;
        let mut heard = HashMap::new();
        let last = self.out.back().map_or(0, |delta| delta.rev);
        stored.epoch == commit.meta.epoch
            && stored.leader == commit.meta.leader
            && stored.commit == commit.follows
            && commit.heard.iter().all(|(replica, seq)| {
                let known = heard.insert(replica, *seq).or_else(|| self.state.heard.get(replica).copied());
                *seq == 0 || *seq > known.unwrap_or(0)
            })
            && commit.delta.as_ref().is_none_or(|delta| delta.rev > last)
    }

    fn commit(&mut self, commit: &Commit, keep: usize) -> Result<(), StoreError> {
        self.open()?;
        let stored = &self.state.meta;
        if stored.epoch > commit.meta.epoch {
            return Err(StoreError::Fenced { stored: stored.epoch });
        }
        if !self.fits(commit) {
            return Err(StoreError::Conflict(Box::new(stored.clone())));
        }
        let mut meta = commit.meta.clone();
        if meta.time <= stored.time {
            (meta.time, meta.at) = (stored.time, stored.at);
        }
        let line = Line {
            follows: commit.follows,
            meta,
            heard: commit.heard.clone(),
            entries: commit.entries.clone(),
        };
        self.write(&line)?;
        self.state.apply(line.meta, line.heard, line.entries);
        if let Some(delta) = &commit.delta {
            self.out.push_back(delta.clone());
            while self.out.len() > keep {
                self.out.pop_front();
            }
        }
        if let Some(files) = &mut self.files {
            files.compact(|| self.state.image());
        }
        Ok(())
    }
}

#[async_trait]
impl StateStore for MemoryStore {
    async fn lead(&self, claim: &Claim) -> Result<Lead, StoreError> {
        self.inner.lock().lead(claim, Instant::now())
    }

    async fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        self.inner.lock().commit(commit, self.keep)
    }

    async fn load(&self) -> Result<Image, StoreError> {
        Ok(self.inner.lock().state.image())
    }

    async fn since(&self, rev: u64) -> Result<Option<Vec<Delta>>, StoreError> {
        let inner = self.inner.lock();
        Ok(chain(rev, inner.state.meta.rev, inner.out.iter().cloned()))
    }

    async fn identity(&self) -> Result<String, StoreError> {
        Ok("memory".to_owned())
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<String>, StoreError> {
        Ok(self.inner.lock().state.tables.get(&table).and_then(|entries| entries.get(key)).cloned())
    }
}
