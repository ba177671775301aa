//! The state file: what one process knows, for the next one.
//!
//! It is replaced as a whole (written beside, synced, renamed), so a crash leaves the old or the new one. A file
//! that cannot be read is set aside, never deleted.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use keyfleet_core::ledger::Saved;
use serde::{Deserialize, Serialize};

/// The format that this release writes. An unknown one is set aside like a damaged file.
const VERSION: u32 = 1;
/// A larger file is not ours.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Document<T> {
    version: u32,
    state: T,
}

/// A state file, or none.
#[derive(Debug, Clone)]
pub struct StateFile(Option<PathBuf>);

impl StateFile {
    /// The file at `path`; `None` keeps nothing.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// Reads it. No file is an empty state; a damaged one is set aside with a warning.
    pub fn load(&self) -> Saved {
        let Some(path) = &self.0 else { return Saved::default() };
        match read(path) {
            Ok(saved) => saved,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Saved::default(),
            Err(error) => {
                let aside = path.with_extension("json.damaged");
                let kept = fs::rename(path, &aside);
                tracing::warn!(
                    file = %path.display(), %error, aside = %aside.display(), renamed = kept.is_ok(),
                    "the state file cannot be read: it is set aside, and blocks and scores start afresh"
                );
                Saved::default()
            }
        }
    }

    /// Replaces it.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let text = serde_json::to_vec(&Document { version: VERSION, state: saved })?;
        let beside = path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    }
}

fn read(path: &Path) -> io::Result<Saved> {
    let size = fs::metadata(path)?.len();
    if size > MAX_BYTES {
        return Err(io::Error::other(format!("{size} bytes are more than the limit of {MAX_BYTES}")));
    }
    let document: Document<Saved> = serde_json::from_slice(&fs::read(path)?)?;
    if document.version != VERSION {
        return Err(io::Error::other(format!("version {} instead of {VERSION}", document.version)));
    }
    Ok(document.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_what_is_damaged_is_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let file = StateFile::new(Some(path.clone()));
        assert_eq!(file.load(), Saved::default());
        let saved = Saved { rev: 7, ..Saved::default() };
        file.save(&saved).unwrap();
        assert_eq!(file.load(), saved);
        fs::write(&path, "{\"version\":1,\"sta").unwrap();
        assert_eq!(file.load(), Saved::default());
        assert!(!path.exists() && folder.path().join("state.json.damaged").exists());
        fs::write(&path, r#"{"version":9,"state":{}}"#).unwrap();
        assert_eq!(file.load(), Saved::default(), "a later format is not guessed at");
    }
}
