//! The files that a configuration consists of, and a fingerprint of what each held when it was read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// No configuration is larger than this; a device or a wrong file is.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What was read, by path. `None`: it could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl Inputs {
    /// Reads a file and remembers what it held.
    ///
    /// A pipe or a device can be read only once, so it is not remembered: nothing could tell whether it changed.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<String> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => {
                self.0.insert(path.to_owned(), None);
                return Err(error);
            }
        };
        let regular = file.metadata()?.is_file();
        let mut content = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            self.0.insert(path.to_owned(), None);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 16 MiB"));
        }
        if regular {
            self.0.insert(path.to_owned(), Some(Sha256::digest(&content).into()));
        }
        String::from_utf8(content).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
    }

    /// What the same files hold now.
    pub(crate) fn again(&self) -> Self {
        let mut now = Self::default();
        for path in self.0.keys() {
            if now.read(path).is_err() {
                now.0.entry(path.clone()).or_insert(None);
            }
        }
        now
    }

    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }
}
