//! One process of a cluster.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

const EXIT_WITHIN: Duration = Duration::from_secs(20);
/// How often a process that is to end is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What runs, where, and with which arguments; and the child while there is one.
#[derive(Debug)]
pub(crate) struct Process {
    program: Program,
    arguments: Vec<String>,
    folder: PathBuf,
    pub(crate) port: u16,
    child: Option<Child>,
}

#[derive(Debug)]
pub(crate) enum Program {
    /// A binary of this workspace.
    Ours(&'static str),
    /// Another build of one.
    Build(PathBuf),
    /// A server that comes from elsewhere.
    Server(PathBuf),
}

impl Process {
    /// Starts it, in a folder of its own.
    pub(crate) fn start(program: Program, arguments: Vec<String>, folder: PathBuf, port: u16) -> Self {
        fs::create_dir_all(&folder).expect("a folder for the process");
        let mut process = Self { program, arguments, folder, port, child: None };
        process.revive();
        process
    }

    /// Starts it again where it ended.
    pub(crate) fn revive(&mut self) {
        assert!(self.child.is_none(), "{self:?} still runs");
        let log = OpenOptions::new().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("a log file");
        let mut command = match &self.program {
            Program::Ours(name) => crate::gateway::program(name, &self.folder),
            Program::Build(path) => crate::gateway::program_at(path, &self.folder),
            Program::Server(path) => {
                let mut command = Command::new(path);
                command.current_dir(&self.folder).stdin(Stdio::null());
                command
            }
        };
        command.args(&self.arguments).stdout(log.try_clone().expect("a log file")).stderr(log);
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{:?}: {error}", self.program)));
    }

    /// Its number, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().try_into().ok()?));
        kill_process(pid.expect("it runs"), signal).expect("the signal is sent");
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error: it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let status = self.exit_within(EXIT_WITHIN).await;
        status.unwrap_or_else(|| panic!("it does not end: {}", self.log()))
    }

    /// Waits until it has ended by itself, for so long; nothing, if it runs still.
    pub(crate) async fn exit_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("it runs");
        let ended = async {
            loop {
                if let Some(status) = child.try_wait().expect("the process can be asked") {
                    return status;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let status = tokio::time::timeout(limit, ended).await.ok()?;
        self.child = None;
        Some(status)
    }

    /// Fails when it has ended without being told to.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            self.child = None;
            panic!("{:?} in {} ended: {status}\n{}", self.program, self.folder.display(), self.log());
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn change_config(&self, change: impl Fn(&mut serde_json::Value)) {
        let text = fs::read_to_string(self.folder.join("config.yaml")).expect("a configuration");
        let mut config = serde_json::from_str(&text).expect("a configuration");
        change(&mut config);
        Self::write_config(&self.folder, &config);
    }

    pub(crate) fn write_config(folder: &Path, config: &serde_json::Value) {
        fs::create_dir_all(folder).expect("a folder for the process");
        let text = serde_json::to_string_pretty(config).expect("a configuration");
        // As a whole: somebody may be reading the one that is there.
        let draft = folder.join("config.draft");
        fs::write(&draft, text).expect("the configuration is written");
        fs::rename(draft, folder.join("config.yaml")).expect("the configuration is written");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server that the environment names, or one from `PATH`. `scripts/test` prepares them.
pub(crate) fn server(variable: &str, name: &str) -> Program {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/python/bin").join(name);
    let path = std::env::var_os(variable).map(PathBuf::from);
    Program::Server(path.or_else(|| ours.exists().then_some(ours)).unwrap_or_else(|| name.into()))
}
