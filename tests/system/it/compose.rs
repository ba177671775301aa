//! `compose/` as its users start it, as far as that goes without a container: the real docker-compose reads the file, and
//! what it says is run as processes.

mod file;
mod image;
mod inside;
mod names;
mod running;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A path of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect(name)
}

/// A program that `scripts/test` prepares.
fn tool(variable: &str) -> Command {
    let program = std::env::var_os(variable);
    assert!(program.is_some(), "{variable} is not set: run scripts/test");
    Command::new(program.unwrap_or_default())
}

/// What docker-compose says, whatever the environment and a `.env` of this machine say.
fn docker_compose(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = tool("KEYFLEET_TEST_COMPOSE");
    command.env_clear().args(["--env-file", "/dev/null", "-f"]).arg(path("compose/compose.yaml"));
    command.args(arguments).envs(variables.iter().copied());
    let output = command.output().expect("docker-compose runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The file as it is in force with these profiles.
fn rendered(profiles: &[&str], variables: &[(&str, &str)]) -> Value {
    let mut arguments: Vec<&str> = profiles.iter().flat_map(|profile| ["--profile", profile]).collect();
    arguments.extend(["config", "--format", "json"]);
    // What it prints is a compose file again, in which a dollar sign is two.
    serde_json::from_str(&docker_compose(&arguments, variables).replace("$$", "$")).expect("JSON")
}

/// With everything.
fn whole() -> Value {
    rendered(&["demo", "observability", "smoke", "tools"], &[])
}

fn services(file: &Value) -> impl Iterator<Item = (&str, &Value)> {
    file["services"].as_object().expect("services").iter().map(|(name, service)| (name.as_str(), service))
}

/// The texts of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
