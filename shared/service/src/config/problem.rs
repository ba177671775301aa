//! What is wrong with a configuration. Nothing in here ever quotes a value: it might be a secret in the wrong place.

use std::fmt;

use super::inputs::Inputs;
use super::place::{Origin, Path};

/// The exit code of a process whose configuration is wrong (`EX_CONFIG` of sysexits).
pub const EXIT_CODE: u8 = 78;

/// More are counted, but not listed.
const MAX_LISTED: usize = 200;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub(super) place: Place,
    pub(super) path: String,
    pub(super) what: String,
}

/// Where a mistake is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The file as a whole.
    Whole(String),
    /// A spot in a file that is no YAML.
    Syntax(String, usize, usize),
    /// A value.
    Value(Origin),
}

impl Problem {
    pub(super) fn new(origin: &Origin, path: &Path, what: impl fmt::Display) -> Self {
        Self { place: Place::Value(origin.clone()), path: path.to_string(), what: what.to_string() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Whole(file) => write!(f, "{file}: ")?,
            Place::Syntax(file, line, column) => write!(f, "{file}:{line}:{column}: ")?,
            Place::Value(Origin::Default) => {}
            Place::Value(origin) => write!(f, "{origin}: ")?,
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)
    }
}

/// Every mistake of a configuration, one per line, in the order of the file.
#[derive(Debug, Clone)]
pub struct Problems {
    list: Vec<Problem>,
    unlisted: usize,
    inputs: Inputs,
}

impl Problems {
    pub(super) fn new(mut list: Vec<Problem>, inputs: Inputs) -> Self {
        list.sort();
        list.dedup();
        let unlisted = list.len().saturating_sub(MAX_LISTED);
        list.truncate(MAX_LISTED);
        Self { list, unlisted, inputs }
    }

    /// The mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// The files that were read, so that a watch can wait for the correction.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        if self.unlisted > 0 {
            write!(f, "\nand {} more", self.unlisted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
