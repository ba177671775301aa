//! The files of the store of one process: a snapshot of everything, and two journals with what came after it.
//!
//! A line is with the kernel before its commit is acknowledged, so the end of the process loses nothing; only the end
//! of the machine can, and the snapshot says in which boot it was written. When the journal has grown, the other one
//! goes on and a new snapshot is made in the background, which makes the first one superfluous: a crash at any
//! moment leaves a snapshot and the journals that follow it, perhaps with lines that the snapshot holds already.

use futures_util::FutureExt;
use keyfleet_core::id::ReplicaId;
use keyfleet_core::state::{Entry, Image, Meta};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// The format that this release writes. Version 1 held what the ledger of earlier releases saved.
const VERSION: u32 = 2;
/// A larger file is not ours.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// A journal is never made superfluous before it has grown to this.
const COMPACT_BYTES: u64 = 8 * 1024 * 1024;
/// Only its owner reads what is in there.
const MODE: u32 = 0o600;

/// What a snapshot file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    /// The boot of the machine in which it was written; empty where there is no such thing.
    boot: String,
    /// Nothing came after it.
    clean: bool,
    /// What an earlier release had written, until there is something newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    old: Option<serde_json::Value>,
    image: Image,
}

/// One step, as a line of a journal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line {
    /// The commit that it follows.
    pub(super) follows: u64,
    /// What stands beside the entries afterwards.
    pub(super) meta: Meta,
    /// As in a commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) heard: Vec<(ReplicaId, u64)>,
    /// As in a commit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) entries: Vec<Entry>,
}

/// What the files of an earlier process hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) image: Image,
    pub(super) lines: Vec<Line>,
    pub(super) old: Option<serde_json::Value>,
    /// There was something.
    pub(super) any: bool,
    /// Something that was acknowledged may be missing.
    pub(super) lossy: bool,
}

/// The open files.
#[derive(Debug)]
pub(super) struct Files {
    snapshot: Arc<Snapshot>,
    journals: [Journal; 2],
    /// Which journal is written.
    current: usize,
    /// The length at which it is to be made superfluous.
    compact_at: u64,
    compaction: Option<JoinHandle<io::Result<u64>>>,
}

impl Files {
    /// Opens the files and reads them. A second process is refused.
    pub(super) fn open(path: &Path, boot: &str) -> io::Result<(Self, Found)> {
        let mut journals =
            [Journal::open(beside(path, ".journal-a"))?, Journal::open(beside(path, ".journal-b"))?];
        journals[0].file.try_lock().map_err(|error| {
            io::Error::new(io::ErrorKind::WouldBlock, format!("{} is in use: {error}", path.display()))
        })?;
        let mut found = Found::default();
        let document = read_snapshot(path, &mut found);
        let mut batches = Vec::new();
        for journal in &mut journals {
            let lines = journal.read(&mut found)?;
            batches.push(lines);
        }
        if let Some(document) = document {
            let same_boot = !boot.is_empty() && document.boot == boot;
            found.lossy |= !document.clean && !same_boot;
            found.old = document.old;
            found.image = document.image;
            batches.sort_by_key(|lines: &Vec<Line>| lines.first().map_or(u64::MAX, |line| line.follows));
            found.lines = batches.into_iter().flatten().collect();
        } else {
            // What a journal follows is gone.
            found.lossy |= batches.iter().any(|lines| !lines.is_empty());
        }
        let snapshot = Snapshot { path: path.to_owned(), boot: boot.to_owned(), old: found.old.clone() };
        let files = Self {
            snapshot: Arc::new(snapshot),
            journals,
            current: 0,
            compact_at: COMPACT_BYTES,
            compaction: None,
        };
        Ok((files, found))
    }

    /// Writes down everything at once and empties the journals; `clean` if nothing will follow. Blocks.
    pub(super) fn rewrite(&mut self, image: &Image, clean: bool) -> io::Result<()> {
        let length = self.snapshot.write(image, clean)?;
        for journal in &mut self.journals {
            journal.empty()?;
        }
        self.compact_at = length.max(COMPACT_BYTES);
        Ok(())
    }

    /// Writes down a step. After an error nothing of it is there. Blocks for as long as the kernel takes the bytes.
    pub(super) fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.journals[self.current].append(&bytes)
    }

    /// Begins to make the journal superfluous, if it is time.
    pub(super) fn compact(&mut self, image: impl FnOnce() -> Image) {
        self.settle();
        if self.compaction.is_some() || self.journals[self.current].length < self.compact_at {
            return;
        }
        let other = 1 - self.current;
        if self.journals[other].length == 0 {
            self.current = other;
        }
        // Both handles go along, and with them the lock, so that nobody reads these files in between.
        let [Ok(a), Ok(b)] = [self.journals[0].file.try_clone(), self.journals[1].file.try_clone()] else {
            return;
        };
        let superfluous = 1 - self.current;
        let (snapshot, image) = (Arc::clone(&self.snapshot), image());
        self.compaction = Some(tokio::task::spawn_blocking(move || {
            let length = snapshot.write(&image, false)?;
            [a, b][superfluous].set_len(0)?;
            Ok(length)
        }));
    }

    /// The compaction that is under way, to be waited for.
    pub(super) fn under_way(&mut self) -> Option<JoinHandle<io::Result<u64>>> {
        self.compaction.take()
    }

    fn settle(&mut self) {
        let Some(done) = self.compaction.as_mut().and_then(FutureExt::now_or_never) else { return };
        self.compaction = None;
        match done.map_err(io::Error::other).flatten() {
            Ok(length) => {
                self.journals[1 - self.current].length = 0;
                self.compact_at = length.max(COMPACT_BYTES);
            }
            Err(error) => {
                self.compact_at = self.journals[self.current].length + COMPACT_BYTES;
                tracing::warn!(
                    file = %self.snapshot.path.display(), %error,
                    "the state file cannot be rewritten: its journal grows until it can"
                );
            }
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.settle();
        if self.compaction.is_none() {
            // Said aloud, since a child process that is being started may still hold a copy of the handle.
            drop(self.journals[0].file.unlock());
        }
    }
}

#[derive(Debug)]
struct Snapshot {
    path: PathBuf,
    boot: String,
    old: Option<serde_json::Value>,
}

impl Snapshot {
    /// Replaces the file as a whole, so that a crash leaves the old or the new one. Returns its length.
    fn write(&self, image: &Image, clean: bool) -> io::Result<u64> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            version: u32,
            boot: &'a str,
            clean: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            old: Option<&'a serde_json::Value>,
            image: &'a Image,
        }
        let old = self.old.as_ref().filter(|_| image.meta.commit == 0);
        let text = serde_json::to_vec(&Borrowed { version: VERSION, boot: &self.boot, clean, old, image })?;
        let new = beside(&self.path, ".new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&new, &self.path)) {
            // Half a file only takes space from whoever tries again.
            return Err(fs::remove_file(&new).err().unwrap_or(error));
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(text.len() as u64)
    }
}

fn read_snapshot(path: &Path, found: &mut Found) -> Option<Document> {
    let parsed = read_bounded(path).and_then(|bytes| {
        let value: serde_json::Value = serde_json::from_slice(&bytes)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(1) => Ok(Document {
                version: VERSION,
                boot: String::new(),
                clean: true,
                old: Some(value),
                image: Image::default(),
            }),
            Some(2) => Ok(serde_json::from_value(value)?),
            other => Err(io::Error::other(format!("version {other:?} is not known"))),
        }
    });
    match parsed {
        Ok(document) => {
            found.any = document.old.is_none();
            Some(document)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            found.any = true;
            found.lossy = true;
            let aside = beside(path, ".damaged");
            let kept = fs::rename(path, &aside);
            tracing::warn!(
                file = %path.display(), %error, aside = %aside.display(), renamed = kept.is_ok(),
                "the state file cannot be read: it is set aside, and blocks, scores and quotas start afresh"
            );
            None
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > MAX_BYTES {
        return Err(io::Error::other(format!("{size} bytes are more than the limit of {MAX_BYTES}")));
    }
    fs::read(path)
}

#[derive(Debug)]
struct Journal {
    path: PathBuf,
    file: File,
    /// Up to where its lines are whole.
    length: u64,
    /// There are bytes after that.
    torn: bool,
}

impl Journal {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(&path)?;
        Ok(Self { path, file, length: 0, torn: false })
    }

    /// Reads the lines up to the first that is not whole.
    fn read(&mut self, found: &mut Found) -> io::Result<Vec<Line>> {
        let mut bytes = Vec::new();
        (&self.file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        let mut lines = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            found.any = true;
            let Ok(parsed) = serde_json::from_slice(line) else {
                found.lossy = true;
                tracing::warn!(
                    file = %self.path.display(), lines = lines.len(),
                    "a line of the journal is torn: what is after the last whole one is cut off"
                );
                break;
            };
            lines.push(parsed);
        }
        Ok(lines)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        if let Err(error) = self.file.write_all(bytes) {
            self.torn = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        self.torn = false;
        Ok(())
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
