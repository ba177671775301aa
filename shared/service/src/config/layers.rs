//! The layers file < environment < command line, merged by figment. Defaults are with the options' readers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::place::Path;
use super::{CliOverrides, Program, problem::Problem};
use crate::config::place::Origin;

/// What the options of the environment begin with; levels are separated by two underscores.
const PREFIX: &str = "KEYFLEET__";

/// Variables with a name of their own. The `KEYFLEET__` name of the same option wins.
const SHORT: [(&str, &[&str]); 3] =
    [("PORT", &["server", "port"]), ("REDIS_URL", &["redis_url"]), ("REDIS_URL_FILE", &["redis_url_file"])];

/// The variables that hold keys without any file, or name a file with them.
pub(super) const KEYS: &str = "GEMINI_API_KEYS";
pub(super) const KEYS_FILE: &str = "GEMINI_API_KEYS_FILE";

/// Where systemd puts what `LoadCredential=` names, and how a file name begins that lies there.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
pub(super) const IN_CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}/";

/// One layer, as figment's metadata names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    File,
    Environment,
    CommandLine,
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Environment => "environment",
            Self::CommandLine => "command line",
        }
    }

    /// The layer that a merged value came from.
    pub(super) fn of(figment: &Figment, value: &Value) -> Option<Self> {
        let name = &figment.get_metadata(value.tag())?.name;
        [Self::File, Self::Environment, Self::CommandLine].into_iter().find(|layer| layer.name() == name)
    }
}

/// A layer whose content is known.
pub(super) struct Given {
    pub layer: Layer,
    pub content: Dict,
}

impl Provider for Given {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.layer.name())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.content.clone())]))
    }
}

/// Whether a variable says anything about the configuration.
pub(super) fn is_read(variable: &str) -> bool {
    variable.starts_with(PREFIX)
        || ["CONFIG_PATH", KEYS, KEYS_FILE].contains(&variable)
        || SHORT.iter().any(|(name, _)| *name == variable)
}

/// The environment as a layer, and the variable behind each path.
#[derive(Default)]
pub(super) struct Environment {
    pub content: Dict,
    pub variables: BTreeMap<Path, String>,
    pub problems: Vec<Problem>,
    /// The folder that [`IN_CREDENTIALS`] stands for.
    pub credentials: Option<PathBuf>,
}

impl Environment {
    pub(super) fn of(variables: &BTreeMap<String, String>) -> Self {
        let credentials = variables.get(CREDENTIALS).filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let mut environment = Self { credentials, ..Self::default() };
        for (variable, path) in SHORT {
            if let Some(text) = variables.get(variable) {
                environment.set(variable, path, text);
            }
        }
        for (variable, text) in variables {
            if let Some(path) = variable.strip_prefix(PREFIX) {
                let path = path.to_ascii_lowercase();
                environment.set(variable, &path.split("__").collect::<Vec<_>>(), text);
            }
        }
        environment
    }

    fn set(&mut self, variable: &str, names: &[&str], text: &str) {
        // An empty variable is how compose files and shells say "not set"; only for this option empty means something.
        if text.trim().is_empty() && names != ["server", "state_file"] {
            return;
        }
        let path = names.iter().fold(Path::default(), |path, name| path.name(name));
        if put(&mut self.content, names, text) {
            self.variables.insert(path, variable.to_owned());
        } else {
            let what = "another variable sets what this one is a part of; keep one";
            self.problems.push(Problem::new(&Origin::Env(variable.to_owned()), &path, what));
        }
    }

    /// The variable that set a path, what is around it, or something in it.
    pub(super) fn variable(&self, path: &Path) -> Option<&String> {
        let mut around = path.clone();
        while !around.steps().is_empty() {
            if let Some(variable) = self.variables.get(&around) {
                return Some(variable);
            }
            around = around.parent();
        }
        let mut inside = self.variables.iter().filter(|(inner, _)| inner.steps().starts_with(path.steps()));
        inside.next().map(|(_, variable)| variable)
    }
}

/// What a variable that sets this path would be called.
pub(super) fn variable_name(path: &Path) -> String {
    format!("{PREFIX}{}", path.to_string().replace('.', "__").to_ascii_uppercase())
}

fn put(dict: &mut Dict, names: &[&str], text: &str) -> bool {
    match names {
        [] => false,
        [name] => {
            let free = !matches!(dict.get(*name), Some(Value::Dict(..)));
            if free {
                dict.insert((*name).to_owned(), Value::String(Tag::Default, text.to_owned()));
            }
            free
        }
        [name, rest @ ..] => {
            let inner =
                dict.entry((*name).to_owned()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
            match inner {
                Value::Dict(_, inner) => put(inner, rest, text),
                _ => false,
            }
        }
    }
}

/// The arguments of a program as a layer: they say where it listens itself.
pub(super) fn command_line(program: Program, cli: &CliOverrides) -> Given {
    let mut listener = Dict::new();
    if let Some(host) = &cli.host {
        listener.insert("host".to_owned(), host.as_str().into());
    }
    if let Some(port) = cli.port {
        listener.insert("port".to_owned(), port.to_string().into());
    }
    let section = match program {
        Program::Gateway => "server",
        Program::Coordinator => "coordinator",
    };
    let mut content = Dict::new();
    if !listener.is_empty() {
        content.insert(section.to_owned(), Value::Dict(Tag::Default, listener));
    }
    Given { layer: Layer::CommandLine, content }
}
