//! Fields that no option has, with a guess at what was meant.

use std::collections::BTreeSet;

use super::layers::variable_name;
use super::place::{Origin, Path, Step};
use super::problem::Problem;

/// Names less alike than this are no guess (Jaro-Winkler; 1.0 is equal).
const ALIKE: f64 = 0.84;

/// Slips of the finger that are always taken as such.
const SLIPS: usize = 2;

/// Longer names are not shown: they may be a key that lost its place.
const MAX_SHOWN: usize = 40;

/// Unknown fields and every known one, gathered until all sections have been read.
#[derive(Default)]
pub(super) struct Unknown {
    fields: Vec<UnknownField>,
    known: BTreeSet<Path>,
}

struct UnknownField {
    name: String,
    parent: Path,
    origin: Origin,
    siblings: Vec<String>,
}

impl Unknown {
    pub(super) fn found(&mut self, name: String, parent: Path, origin: Origin, siblings: Vec<String>) {
        self.fields.push(UnknownField { name, parent, origin, siblings });
    }

    pub(super) fn known(&mut self, parent: &Path, names: &[String]) {
        self.known.extend(names.iter().map(|name| parent.name(name)));
    }

    pub(super) fn problems(self) -> Vec<Problem> {
        self.fields.iter().map(|field| field.problem(&self.known)).collect()
    }
}

impl UnknownField {
    fn problem(&self, known: &BTreeSet<Path>) -> Problem {
        let guess = self.guess(known);
        let shown = self.parent.name(if guess.is_some() || self.may_be_shown() { &self.name } else { "…" });
        let what = match guess {
            Some(path) if matches!(self.origin, Origin::Env(_)) => {
                format!("unknown option; did you mean `{}`?", variable_name(&path))
            }
            Some(path) if path.parent() == self.parent => {
                let name = path.steps().last().map_or_else(String::new, |step| match step {
                    Step::Name(name) => name.clone(),
                    Step::Index(index) => index.to_string(),
                });
                format!("unknown field; did you mean `{name}`?")
            }
            Some(path) => format!("unknown field; did you mean `{path}`?"),
            None => format!("unknown field; remove it (known here: {})", self.siblings.join(", ")),
        };
        Problem::new(&self.origin, &shown, what)
    }

    /// A field beside it that is spelt alike, else one of the same name somewhere else.
    fn guess(&self, known: &BTreeSet<Path>) -> Option<Path> {
        let normal = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "");
        let wanted = normal(&self.name);
        let likeness = |name: &String| strsim::jaro_winkler(&wanted, &normal(name));
        let best = self.siblings.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let slip = |name: &String| {
            strsim::damerau_levenshtein(&wanted, &normal(name)) <= SLIPS.min(wanted.len() / 2)
        };
        if let Some(best) =
            best.filter(|name| slip(name) || (!self.among_secrets() && likeness(name) >= ALIKE))
        {
            return Some(self.parent.name(best));
        }
        let same = |path: &&Path| matches!(path.steps().last(), Some(Step::Name(name)) if *name == self.name);
        let in_server = Path::default().name("server");
        known.iter().filter(same).min_by_key(|path| path.parent() != in_server).cloned()
    }

    fn may_be_shown(&self) -> bool {
        !self.among_secrets()
            && self.name.len() <= MAX_SHOWN
            && self.name.starts_with(|c: char| c.is_ascii_lowercase())
            && self.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    fn among_secrets(&self) -> bool {
        among_secrets(&self.parent)
    }
}

/// Whether a place is inside a list of secrets, where even a field's name may be one.
pub(super) fn among_secrets(path: &Path) -> bool {
    path.steps()
        .iter()
        .any(|step| matches!(step, Step::Name(name) if name == "api_keys" || name == "clients"))
}
