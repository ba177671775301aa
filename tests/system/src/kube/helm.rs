//! The real `helm`, against our API server.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use super::api::ApiServer;

const LONGEST: Duration = Duration::from_mins(2);

/// A `helm` with a home of its own.
#[derive(Debug)]
pub struct Helm {
    home: TempDir,
}

/// What it said, and whether it was content.
#[derive(Debug)]
pub struct Said {
    /// It ended well.
    pub well: bool,
    /// What it said to whoever reads it.
    pub text: String,
    /// What it complained about.
    pub complaints: String,
}

impl Said {
    /// What it said.
    ///
    /// # Panics
    /// If it did not end well.
    pub fn ok(self) -> String {
        assert!(self.well, "{}{}", self.text, self.complaints);
        self.text
    }
}

impl Helm {
    /// One that works on this cluster.
    pub fn on(server: &ApiServer) -> Self {
        let home = TempDir::new().expect("a home for helm");
        let config = server.kubeconfig().to_string();
        std::fs::write(home.path().join("kubeconfig"), config).expect("its configuration is written");
        Self { home }
    }

    /// Runs a command, as `["install", "it", "./chart"]`.
    ///
    /// # Panics
    /// If it cannot be run, or does not end.
    pub async fn run(&self, arguments: &[&str]) -> Said {
        let mut command = tokio::process::Command::new(program());
        command.args(arguments).current_dir(self.home.path()).stdin(Stdio::null()).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_uppercase();
            if text.starts_with("HELM") || text.starts_with("KUBE") || text.ends_with("_PROXY") {
                command.env_remove(&name);
            }
        }
        command.env("HOME", self.home.path()).env("KUBECONFIG", self.home.path().join("kubeconfig"));
        let output = tokio::time::timeout(LONGEST, command.output()).await.expect("helm ends");
        let output = output.expect("helm runs: scripts/test installs it");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { well: output.status.success(), text: text(output.stdout), complaints: text(output.stderr) }
    }
}

/// The one that the environment names, or the one that `scripts/test` installs, or any.
fn program() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin/helm");
    let named = std::env::var_os("KEYFLEET_TEST_HELM").map(PathBuf::from);
    named.or_else(|| ours.exists().then_some(ours)).unwrap_or_else(|| "helm".into())
}
