//! Where a value stands (its path) and where it came from (its origin).

use std::fmt;
use std::sync::Arc;

/// One step of a [`Path`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A field of a mapping.
    Name(String),
    /// An element of a list.
    Index(usize),
}

/// The place of a value in the configuration: `groups[0].api_keys[3]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[must_use]
pub struct Path(Vec<Step>);

impl Path {
    /// The path of a field below this one.
    pub fn name(&self, name: &str) -> Self {
        self.then(Step::Name(name.to_owned()))
    }

    /// The path of an element below this one.
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The place that holds this one; the root's is the root.
    pub fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// Its steps from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Name(name) if i == 0 => f.write_str(name)?,
                Step::Name(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Which layer set a value. The order is the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A file: the configuration itself, or one that it names.
    File {
        /// As the operator wrote it.
        name: Arc<str>,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// An argument.
    CommandLine,
}

impl Origin {
    /// Whether two values stand on one layer, so that neither overrides the other.
    pub(super) fn same_layer(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// How somebody who looks at `self` is told where `other` is.
    pub(super) fn refer_to(&self, other: &Self) -> String {
        match (self, other) {
            (Self::File { name, .. }, Self::File { name: theirs, line }) if name == theirs => {
                format!("line {line}")
            }
            _ => other.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Env(variable) => write!(f, "env {variable}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}
