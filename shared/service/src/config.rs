//! The configuration: defaults < file < environment < command line, every mistake reported at once.
//!
//! [`load`] reads the layers and turns them into the domain types of [`Config`], which are valid by construction.
//! Texts stay as they were written until an option asks for a number, so that no key or token is misread for its
//! looks. Nothing here opens a connection or resolves a name.

mod alerts;
mod groups;
mod inputs;
mod layers;
mod limits;
mod nats;
mod network;
mod options;
mod pending;
mod place;
mod print;
mod problem;
mod reader;
mod receivers;
mod redis;
mod schema;
mod server;
mod unknown;
mod values;
mod yaml;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use figment::Figment;
use figment::value::{Dict, Value};

pub use groups::fingerprint;
pub use inputs::Inputs;
pub use place::{Origin, Path, Step};
pub use print::{Setting, print};
pub use problem::{EXIT_CODE, Problem, Problems};
pub use schema::{
    Alerts, AuthMode, Bare429, Client, Config, Coordinator, Failure, Group, IpNet, Key, LimitRule,
    Monitoring, Nats, NatsLogin, OtlpProtocol, Project, Quota, RateLimit, Receiver, Redis, Secret, Server,
    SessionAffinity, SigningKey, Telemetry, WhenUnleased, Wire,
};

use groups::Seen;
use layers::{Environment, Given, Layer};
use problem::Place;
use reader::Context;
use unknown::{Unknown, among_secrets};

/// The file that is read, if it is there, when nobody names one.
const DEFAULT_FILE: &str = "config.yaml";

/// What a configuration is made from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file; `None`: the one that `CONFIG_PATH` names, if any.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The arguments.
    pub cli: CliOverrides,
    /// Whose arguments these are.
    pub program: Program,
}

impl std::fmt::Debug for Sources {
    /// Without the values of the environment, among which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let env = self.env.keys().filter(|name| layers::is_read(name)).collect::<Vec<_>>();
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("env", &env)
            .field("cli", &self.cli)
            .field("program", &self.program)
            .finish()
    }
}

/// The programs that read one and the same file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Program {
    /// Listens at `server.host` and `server.port`.
    #[default]
    Gateway,
    /// Listens at `coordinator.host` and `coordinator.port`.
    Coordinator,
}

/// Arguments that override options.
#[derive(Debug, Clone, Default)]
pub struct CliOverrides {
    /// `server.host`, or `coordinator.host`
    pub host: Option<String>,
    /// `server.port`, or `coordinator.port`
    pub port: Option<u16>,
}

impl Sources {
    /// The sources of this process, which is a coordinator; else as [`Self::of_process`].
    pub fn of_coordinator(file: Option<PathBuf>, cli: CliOverrides) -> Self {
        Self { program: Program::Coordinator, ..Self::of_process(file, cli) }
    }

    /// The sources of this process, which is a gateway: the file that was named, else `CONFIG_PATH`, else
    /// `config.yaml` if there is one.
    pub fn of_process(file: Option<PathBuf>, cli: CliOverrides) -> Self {
        let text = |name: std::ffi::OsString| name.to_string_lossy().into_owned();
        let env: BTreeMap<_, _> =
            std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        let mut sources = Self { file, env, cli, program: Program::Gateway };
        let default = PathBuf::from(DEFAULT_FILE);
        if sources.path().is_none() && default.exists() {
            sources.file = Some(default);
        }
        sources
    }

    fn path(&self) -> Option<PathBuf> {
        let named = || self.env.get("CONFIG_PATH").filter(|p| !p.is_empty()).map(PathBuf::from);
        self.file.clone().or_else(named)
    }
}

/// A configuration without a mistake.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What the operator should know, each with its place.
    pub warnings: Vec<String>,
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Every effective value with its origin, redacted, in the order of [`print()`].
    pub settings: Vec<Setting>,
    /// The files that were read and a fingerprint of each.
    pub inputs: Inputs,
}

/// Reads and validates the configuration. No keys at all is no mistake: see [`require_keys`].
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let file = sources.path();
    let mut inputs = Inputs::default();
    let document = match file.as_deref().map(|path| read_file(path, &mut inputs)).transpose() {
        Ok(document) => document.unwrap_or_default(),
        Err(problem) => return Err(Problems::new(vec![problem], inputs)),
    };
    let content = match document.root {
        None => Dict::new(),
        Some(value) if value.to_empty().is_some() => Dict::new(),
        Some(Value::Dict(_, dict)) => dict,
        Some(_) => {
            return Err(Problems::new(
                vec![whole(file.as_deref(), "not a mapping; begin with `groups:`")],
                inputs,
            ));
        }
    };
    let environment = Environment::of(&sources.env);
    let figment = Figment::new()
        .merge(Given { layer: Layer::File, content })
        .merge(Given { layer: Layer::Environment, content: environment.content.clone() })
        .merge(layers::command_line(sources.program, &sources.cli));
    let cx = Context {
        figment,
        problems: RefCell::new(environment.problems.clone()),
        environment,
        lines: document.lines,
        file: file.clone(),
        unknown: RefCell::new(Unknown::default()),
        settings: RefCell::default(),
        warnings: RefCell::default(),
        inputs: RefCell::new(inputs),
    };
    let name = file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    for (path, first, line) in document.twice {
        let shown = if among_secrets(&path.parent()) { path.parent() } else { path };
        let origin = Origin::File { name: name.as_str().into(), line };
        let what = format!("a field given twice (first at line {first}); remove one");
        cx.problems.borrow_mut().push(Problem::new(&origin, &shown, what));
    }
    let config = read(&cx, sources);
    let mut problems = cx.problems.into_inner();
    problems.extend(cx.unknown.into_inner().problems());
    let inputs = cx.inputs.into_inner();
    if problems.is_empty() {
        Ok(Loaded {
            config,
            warnings: cx.warnings.into_inner(),
            file,
            settings: cx.settings.into_inner(),
            inputs,
        })
    } else {
        Err(Problems::new(problems, inputs))
    }
}

/// A mistake for those who cannot do without keys.
pub fn require_keys(loaded: &Loaded) -> Result<(), Problems> {
    if loaded.config.groups.iter().any(|group| !group.keys.is_empty()) {
        return Ok(());
    }
    let what = "no keys; add `groups` with `api_keys` to the file, or set GEMINI_API_KEYS";
    Err(Problems::new(vec![whole(loaded.file.as_deref(), what)], loaded.inputs.clone()))
}

fn read_file(path: &FilePath, inputs: &mut Inputs) -> Result<yaml::Document, Problem> {
    let text = inputs.read(path).map_err(|error| {
        whole(
            Some(path),
            &format!("cannot read: {error}; correct the path (`-c`, CONFIG_PATH) or its rights"),
        )
    })?;
    yaml::parse(&text).map_err(|error| Problem {
        place: Place::Syntax(path.display().to_string(), error.line, error.column),
        path: String::new(),
        what: error.what,
    })
}

fn whole(file: Option<&FilePath>, what: &str) -> Problem {
    let file = file.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
    Problem { place: Place::Whole(file), path: String::new(), what: what.to_owned() }
}

fn read(cx: &Context, sources: &Sources) -> Config {
    let mut root = cx.root();
    let server = server::read(root.section("server"));
    let mut seen = Seen::default();
    let list = root.field("groups");
    let mut groups = groups::read(&list, &mut seen);
    groups::from_variables(&list, &sources.env, &mut groups, &mut seen);
    cx.problems.borrow_mut().extend(seen.problems());
    let redis = redis::read(&mut root);
    let coordinator = options::coordinator(&mut root, &server.host);
    let (monitoring, thresholds) = options::monitoring(&mut root);
    let config = Config {
        server,
        projects: groups::projects(&root.field("projects"), &groups),
        groups,
        failure: options::failure(&mut root),
        rate_limit: options::rate_limit(&mut root),
        monitoring,
        alerts: alerts::alerts(&mut root, thresholds),
        fallbacks: options::fallbacks(&mut root),
        limits: limits::limits(&root.field("limits")),
        quota: options::quota(&mut root),
        nats: nats::read(&mut root, redis.is_some()),
        redis,
        coordinator,
        telemetry: options::telemetry(&mut root),
    };
    root.finish();
    pending::warn(cx);
    config
}

#[cfg(test)]
mod tests;
