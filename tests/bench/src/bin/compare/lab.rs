//! Where everything is: the programs, a folder for their files, free ports, and the load tool.

use std::ffi::OsStr;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keyfleet_bench::Report;
use tempfile::TempDir;

/// The surroundings of every measurement.
pub(crate) struct Lab {
    programs: PathBuf,
    folder: TempDir,
    /// Rounds and requests are fewer, figures rougher.
    pub(crate) quick: bool,
}

impl Lab {
    /// With the programs that were built along with this one.
    pub(crate) fn new(quick: bool) -> io::Result<Self> {
        let this = std::env::current_exe()?;
        let programs = this.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { programs, folder: tempfile::tempdir()?, quick })
    }

    /// The full number, or the one for a quick look.
    pub(crate) fn scaled<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub(crate) fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(name))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the load tool to its end.
    pub(crate) async fn load<S: AsRef<OsStr>>(
        &self,
        to: SocketAddr,
        bearer: &str,
        plan: impl IntoIterator<Item = S>,
    ) -> io::Result<Report> {
        let mut command = tokio::process::Command::new(self.programs.join("load"));
        command.args(plan).args(["--to", &to.to_string(), "--bearer", bearer]);
        let ended = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
        if !ended.status.success() {
            return Err(io::Error::other(format!("load: {}", ended.status)));
        }
        Ok(serde_json::from_slice(&ended.stdout)?)
    }
}

/// An address of this machine on which nothing listens.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
