//! The program as a command that is given, says something and ends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::command;

const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// The gateway's binary in a folder of its own.
#[derive(Debug)]
pub struct Program {
    folder: TempDir,
    env: Vec<(String, String)>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Both outputs.
    pub said: String,
}

impl Program {
    /// In an empty folder.
    pub fn new() -> Self {
        Self { folder: TempDir::new().expect("a folder for the gateway"), env: Vec::new() }
    }

    /// With a file in the folder.
    #[must_use]
    pub fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.folder.path().join(name), text).expect("the file is written");
        self
    }

    /// With a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs it with these arguments until it ends by itself.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = command(arguments, self.folder.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let mut command = tokio::process::Command::from(command);
        let output = command.kill_on_drop(true).output();
        let output = tokio::time::timeout(ENDS_WITHIN, output).await;
        let output =
            output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("the gateway runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ended { code: output.status.code(), said }
    }
}

impl Default for Program {
    fn default() -> Self {
        Self::new()
    }
}
