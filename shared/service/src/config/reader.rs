//! Reads options one by one, each with its type, range and default, and collects every mistake on the way.
//!
//! A mapping is a [`Section`]: what nobody asked it for is an unknown field. A [`Field`] is one place in it.

use std::cell::RefCell;
use std::path::{Path as FilePath, PathBuf};

use figment::Figment;
use figment::value::{Dict, Tag, Value};

use super::inputs::Inputs;
use super::layers::{Environment, IN_CREDENTIALS, Layer};
use super::place::{Origin, Path};
use super::print::Setting;
use super::problem::Problem;
use super::unknown::Unknown;
use super::yaml::{self, Lines};

/// What all readers of one load share.
pub(super) struct Context {
    pub figment: Figment,
    pub environment: Environment,
    pub lines: Lines,
    /// The file as the operator named it.
    pub file: Option<PathBuf>,
    pub problems: RefCell<Vec<Problem>>,
    pub unknown: RefCell<Unknown>,
    pub settings: RefCell<Vec<Setting>>,
    pub warnings: RefCell<Vec<String>>,
    pub inputs: RefCell<Inputs>,
}

impl Context {
    /// The whole configuration.
    pub(super) fn root(&self) -> Section<'_> {
        // An empty path finds the root; a provider that can fail is not among the layers.
        let value = self.figment.find_value("").unwrap_or_else(|_| Value::Dict(Tag::Default, Dict::new()));
        let root = Field { cx: self, path: Path::default(), value: Some(value), origin: Origin::Default };
        root.section()
    }

    fn origin(&self, value: &Value, path: &Path) -> Option<Origin> {
        Some(match Layer::of(&self.figment, value)? {
            Layer::File => {
                let name = self.file.as_deref().unwrap_or_else(|| FilePath::new("")).display().to_string();
                Origin::File { name: name.into(), line: self.lines.get(path).copied().unwrap_or(1) }
            }
            Layer::Environment => Origin::Env(self.environment.variable(path).cloned().unwrap_or_default()),
            Layer::CommandLine => Origin::CommandLine,
        })
    }

    /// A path of the configuration file is relative to that file, one of another layer to the current folder, and one that
    /// begins with `${CREDENTIALS_DIRECTORY}/` to what systemd gives the unit.
    pub(super) fn resolve(&self, path: &str, origin: &Origin) -> PathBuf {
        if let (Some(name), Some(folder)) = (path.strip_prefix(IN_CREDENTIALS), &self.environment.credentials)
        {
            return folder.join(name);
        }
        match (origin, self.file.as_deref().and_then(FilePath::parent)) {
            (Origin::File { .. } | Origin::Default, Some(folder)) => folder.join(path),
            _ => PathBuf::from(path),
        }
    }
}

/// One place of the configuration, set or not.
#[derive(Clone)]
pub(super) struct Field<'c> {
    pub cx: &'c Context,
    pub path: Path,
    pub origin: Origin,
    value: Option<Value>,
}

impl<'c> Field<'c> {
    fn below(&self, path: Path, value: Option<Value>) -> Field<'c> {
        let value = value.filter(|v| v.to_empty().is_none());
        let origin = match &value {
            // A list or mapping that was written inside one variable carries no tag of its own.
            Some(value) => self.cx.origin(value, &path).unwrap_or_else(|| self.origin.clone()),
            None => Origin::Default,
        };
        Field { cx: self.cx, path, origin, value }
    }

    /// A place for mistakes about a value that stands outside the layers.
    pub(super) fn elsewhere(&self, path: Path, origin: Origin) -> Self {
        Field { cx: self.cx, path, origin, value: None }
    }

    pub(super) fn is_set(&self) -> bool {
        self.value.is_some()
    }

    /// Reports a mistake here: what is wrong, and what to do.
    pub(super) fn problem(&self, what: impl std::fmt::Display) {
        self.cx.problems.borrow_mut().push(Problem::new(&self.origin, &self.path, what));
    }

    /// Whether a mistake has been reported here or below.
    pub(super) fn has_mistake(&self) -> bool {
        let path = self.path.to_string();
        self.cx
            .problems
            .borrow()
            .iter()
            .any(|p| p.path.strip_prefix(&path).is_some_and(|r| !r.starts_with(char::is_alphanumeric)))
    }

    pub(super) fn warn(&self, what: &str) {
        let place = if self.origin == Origin::Default { String::new() } else { format!("{}: ", self.origin) };
        self.cx.warnings.borrow_mut().push(format!("{place}{}: {what}", self.path));
    }

    /// Notes the effective value, for `print-config`. Secrets are passed in hidden.
    pub(super) fn show(&self, shown: impl std::fmt::Display) {
        let setting =
            Setting { path: self.path.clone(), shown: shown.to_string(), origin: self.origin.clone() };
        self.cx.settings.borrow_mut().push(setting);
    }

    /// The text, trimmed; a mistake if this is no text.
    pub(super) fn text(&self) -> Option<String> {
        match self.value.as_ref()? {
            Value::String(_, text) => Some(text.trim().to_owned()),
            Value::Array(..) => self.expected("a single value, not a list"),
            Value::Dict(..) => self.expected("a single value, not a mapping"),
            _ => self.expected("text"),
        }
    }

    /// Non-empty text.
    pub(super) fn name(&self) -> Option<String> {
        let text = self.text()?;
        if text.is_empty() { self.expected("text; it is empty") } else { Some(text) }
    }

    pub(super) fn expected<T>(&self, what: &str) -> Option<T> {
        self.problem(format_args!("wrong value; give {what}"));
        None
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self.value, Some(Value::String(..)))
    }

    /// The elements: of a list, of a list inside a variable as JSON, or between commas of a variable.
    pub(super) fn elements(&self) -> Vec<Field<'c>> {
        let items = match self.structured() {
            None => return Vec::new(),
            Some(Value::Array(_, items)) => items,
            Some(Value::String(_, text)) if matches!(self.origin, Origin::Env(_)) => {
                text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Value::from).collect()
            }
            Some(_) => {
                self.problem("wrong value; give a list");
                return Vec::new();
            }
        };
        let mut fields = Vec::with_capacity(items.len());
        for (i, item) in items.into_iter().enumerate() {
            if item.to_empty().is_some() {
                let hole = Field { value: Some(item), ..self.below(self.path.index(i), None) };
                let origin = hole.value.as_ref().and_then(|v| self.cx.origin(v, &hole.path));
                Field { origin: origin.unwrap_or_else(|| self.origin.clone()), ..hole }
                    .problem("empty; give a value or remove the line");
            } else {
                fields.push(self.below(self.path.index(i), Some(item)));
            }
        }
        fields
    }

    /// The fields of a mapping with free names.
    pub(super) fn entries(&self) -> Vec<(String, Field<'c>)> {
        match self.structured() {
            None => Vec::new(),
            Some(Value::Dict(_, dict)) => {
                dict.into_iter().map(|(n, v)| (n.clone(), self.below(self.path.name(&n), Some(v)))).collect()
            }
            Some(_) => {
                self.problem("wrong value; give a mapping");
                Vec::new()
            }
        }
    }

    /// The fields of a mapping with known names; something else is taken for an empty one, after its report.
    pub(super) fn section(&self) -> Section<'c> {
        let empty = || Section { field: self.clone(), dict: Dict::new(), asked: Vec::new() };
        if self.is_set() { self.entry().unwrap_or_else(empty) } else { empty() }
    }

    /// The fields of a mapping that stands in a list.
    pub(super) fn entry(&self) -> Option<Section<'c>> {
        match self.structured()? {
            Value::Dict(_, dict) => Some(Section { field: self.clone(), dict, asked: Vec::new() }),
            _ => self.expected("a mapping"),
        }
    }

    /// The value; what a variable holds as JSON is taken apart here, where it is known not to be a token.
    fn structured(&self) -> Option<Value> {
        match self.value.as_ref()? {
            Value::String(_, text)
                if matches!(self.origin, Origin::Env(_)) && text.trim().starts_with(['[', '{']) =>
            {
                match yaml::parse(text) {
                    Ok(document) => document.root,
                    Err(_) => self.expected("valid JSON"),
                }
            }
            value => Some(value.clone()),
        }
    }
}

/// A mapping whose fields are known.
pub(super) struct Section<'c> {
    pub field: Field<'c>,
    dict: Dict,
    asked: Vec<String>,
}

impl<'c> Section<'c> {
    /// The field of that name, which thereby is a known one.
    pub(super) fn field(&mut self, name: &str) -> Field<'c> {
        self.asked.push(name.to_owned());
        self.field.below(self.field.path.name(name), self.dict.get(name).cloned())
    }

    /// A mapping inside this one.
    pub(super) fn section(&mut self, name: &str) -> Section<'c> {
        self.field(name).section()
    }

    /// Reports what nobody asked for. Call it when every field has been read.
    pub(super) fn finish(self) {
        let mut unknown = self.field.cx.unknown.borrow_mut();
        for (name, value) in self.dict {
            if !self.asked.contains(&name) {
                let path = self.field.path.name(&name);
                let origin = self.field.cx.origin(&value, &path).unwrap_or_else(|| self.field.origin.clone());
                unknown.found(name, self.field.path.clone(), origin, self.asked.clone());
            }
        }
        unknown.known(&self.field.path, &self.asked);
    }
}
