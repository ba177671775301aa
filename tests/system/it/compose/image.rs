//! The Dockerfile builds what is there: its steps are followed as far as they need no network.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{path, text};

/// The instructions, each on one line.
fn instructions() -> Vec<String> {
    let text = text("compose/Dockerfile");
    let lines =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    lines
        .replace("\\\n", " ")
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// The words behind an instruction.
fn all(instructions: &[String], name: &str) -> Vec<Vec<String>> {
    let mark = format!("{name} ");
    let found = instructions.iter().filter_map(|line| line.strip_prefix(&mark));
    found.map(|rest| rest.split_whitespace().map(str::to_owned).collect()).collect()
}

/// The build stage's `COPY`: each source and its target.
fn copies(instructions: &[String]) -> Vec<(String, String)> {
    let lines = all(instructions, "COPY").into_iter().filter(|words| !words[0].starts_with("--"));
    let pairs = lines.flat_map(|mut words| {
        let target = words.pop().expect("a target");
        words.into_iter().map(move |source| (source, target.clone()))
    });
    pairs.collect()
}

/// The folders of the members of the workspace.
fn members() -> Vec<String> {
    let manifest = text("Cargo.toml");
    let (_, rest) = manifest.split_once("members = [").expect("members");
    let (list, _) = rest.split_once(']').expect("their end");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What a crate needs of the workspace, itself included, by folder.
fn needs(member: &str, found: &mut BTreeSet<String>) {
    if !found.insert(member.to_owned()) {
        return;
    }
    let (root, manifest) = (text("Cargo.toml"), text(&format!("{member}/Cargo.toml")));
    let (_, dependencies) = manifest.split_once("[dependencies]").expect("dependencies");
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    for name in dependencies.lines().filter_map(|line| line.split_once(".workspace")).map(|(name, _)| name) {
        let place = format!("\n{name} = {{ path = \"");
        if let Some(folder) = root.split_once(&place).and_then(|(_, rest)| rest.split_once('"')) {
            needs(folder.0, found);
        }
    }
}

#[test]
fn every_source_that_the_programs_need_is_copied() {
    let instructions = instructions();
    let copies = copies(&instructions);
    let ignored = text(".dockerignore");
    for (source, _) in &copies {
        assert!(path(source).exists(), "{source} does not exist");
        let sent = ignored.lines().filter_map(|line| line.strip_prefix('!'));
        assert!(
            sent.clone().any(|sent| Path::new(source).starts_with(sent)),
            "{source} is not sent to the build"
        );
    }
    let mut needed = BTreeSet::new();
    for member in ["gateway", "coordinator", "tests/simulator"] {
        needs(member, &mut needed);
    }
    assert!(needed.contains("shared/core"), "{needed:?}");
    for member in needed {
        let covers =
            |(source, target): &(String, String)| source == target && Path::new(&member).starts_with(source);
        assert!(copies.iter().any(covers), "the source of {member} is not copied");
    }
}

/// The layer of the dependencies: every member's manifest, and sources with which cargo takes the workspace for whole.
#[test]
fn the_layer_of_the_dependencies_is_a_workspace() {
    let instructions = instructions();
    let folder = TempDir::new().expect("a folder");
    let manifests = copies(&instructions).into_iter().filter(|(source, _)| path(source).is_file());
    for (source, target) in manifests {
        let target = folder.path().join(target);
        fs::create_dir_all(&target).expect("a folder");
        let name = PathBuf::from(&source);
        fs::copy(path(&source), target.join(name.file_name().expect("a name"))).expect("a copy");
    }
    for member in members() {
        assert!(
            folder.path().join(&member).join("Cargo.toml").exists(),
            "the manifest of {member} is not copied"
        );
    }
    let stubs = instructions.iter().find_map(|line| line.strip_prefix("RUN for ")).expect("the sources");
    let (stubs, build) = stubs.split_once("&& cargo build ").expect("the build of the dependencies");
    assert!(build.contains("--locked"), "{build}");
    let cargo = env!("CARGO");
    let script =
        format!("set -e; for {stubs}; '{cargo}' metadata --locked --offline --format-version 1 >metadata");
    let output =
        Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).output().expect("sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The same packages are built afterwards, with the real sources.
    let built: BTreeSet<String> = instructions
        .iter()
        .filter_map(|line| {
            line.split_once("cargo build ")?.1.split("&&").next().map(|rest| rest.trim().to_owned())
        })
        .collect();
    assert_eq!(built.len(), 1, "{built:?}");
}

#[test]
fn each_image_is_one_program_without_rights() {
    let text = text("compose/Dockerfile");
    let user = text.lines().filter_map(|line| line.strip_prefix("USER ")).collect::<Vec<_>>();
    assert_eq!(user, ["65532:65532"], "Kubernetes takes a number only");
    assert!(text.contains("\nSTOPSIGNAL SIGTERM\n"));
    let rust = super::text("Cargo.toml");
    let (_, oldest) = rust.split_once("rust-version = \"").expect("a version of Rust");
    let oldest = oldest.split('"').next().unwrap_or_default();
    assert!(text.contains(&format!("FROM rust:{oldest}-")), "another Rust than {oldest}");
    for name in ["gateway", "coordinator", "simulator"] {
        let (_, stage) = text.split_once(&format!("\nFROM base AS {name}\n")).expect(name);
        let stage = stage.split("\nFROM ").next().unwrap_or_default();
        let program = format!("/usr/local/bin/{name}");
        assert!(stage.contains(&format!("COPY --from=build /out/bin/{name} {program}\n")), "{stage}");
        assert!(stage.contains(&format!("ENTRYPOINT [\"{program}\"]")), "{stage}");
        assert!(stage.contains(&format!("CMD [\"{program}\", \"healthcheck\"")), "{stage}");
        assert!(stage.contains("org.opencontainers.image.title="), "{stage}");
    }
}

/// An archive of a release holds the programs of its images: without lines, with the names of functions.
#[test]
fn archives_are_built_as_images_are() {
    let (dockerfile, workflow) = (text("compose/Dockerfile"), text(".github/workflows/release.yml"));
    for (variable, value) in [("DEBUG", "false"), ("STRIP", "debuginfo")] {
        let variable = format!("CARGO_PROFILE_RELEASE_{variable}");
        assert!(dockerfile.contains(&format!(" {variable}={value} ")), "{dockerfile}");
        let line = workflow.lines().find_map(|line| line.trim().strip_prefix(&variable)?.strip_prefix(": "));
        assert_eq!(line.map(|line| line.trim_matches('"')), Some(value), "{variable}");
    }
}
