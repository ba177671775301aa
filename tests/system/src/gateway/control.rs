//! What an operator does to a running gateway: signals, another configuration, another start.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;

use super::{Gateway, GatewayOptions, secrets, spawn};
use crate::eventually::eventually;
use crate::figures::Figures;

const EXIT_WITHIN: Duration = Duration::from_secs(20);

impl GatewayOptions {
    /// The configuration file, from the gateway's folder.
    pub(super) fn file(&self) -> &'static str {
        if self.mounted { "mount/config.yaml" } else { "config.yaml" }
    }
}

impl Gateway {
    /// Sends a signal: `TERM`, `HUP`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "{name} was not sent");
    }

    /// Waits until the process has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        eventually("the gateway ends", EXIT_WITHIN, || {
            let status = self.child.try_wait().expect("the process can be asked");
            async move { status }
        })
        .await
    }

    /// Replaces the configuration on disk, as a whole. The gateway is not told.
    pub fn write_config(&mut self, config: &Value) {
        crate::spill::watch(self.port, &secrets(config));
        self.secrets.extend(secrets(config));
        self.write_file(&text(config));
    }

    /// Replaces the file by any text.
    pub fn write_file(&self, text: &str) {
        write(self.folder.path(), &self.options, text);
    }

    /// Starts an ended gateway again, with the file, the folder and the port that it had.
    pub async fn restart(&mut self) {
        self.exit().await;
        self.child = spawn(&self.options, self.folder.path(), self.port);
        self.until_ready().await;
    }

    /// The sum of the figures of `/metrics` that have this name and at least these labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.operator().get("/metrics").await.ok()?.text;
        Figures::parse(&text).sum(name)
    }

    /// Waits until the log says this.
    pub async fn says(&self, text: &str) {
        eventually(&format!("the log says {text:?}"), EXIT_WITHIN, || {
            let said = self.logs().contains(text);
            async move { said.then_some(()) }
        })
        .await;
    }
}

pub(super) fn text(config: &Value) -> String {
    serde_json::to_string_pretty(config).expect("a configuration")
}

/// Puts the file in its place at once, so that nobody reads a half of it.
pub(super) fn write(folder: &Path, options: &GatewayOptions, text: &str) {
    if options.mounted {
        return swap(&folder.join("mount"), text).expect("the mounted configuration is changed");
    }
    let beside = folder.join("next-config.yaml");
    fs::write(&beside, text).expect("the configuration is written");
    fs::rename(&beside, folder.join(options.file())).expect("the configuration is in its place");
}

/// As a kubelet does: a folder of its own for each version, and one symlink that is replaced.
fn swap(mount: &Path, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(mount)?;
    let version = format!("..version-{}", fs::read_dir(mount)?.count());
    fs::create_dir(mount.join(&version))?;
    fs::write(mount.join(&version).join("config.yaml"), text)?;
    symlink(&version, mount.join("..data_tmp"))?;
    fs::rename(mount.join("..data_tmp"), mount.join("..data"))?;
    let file = mount.join("config.yaml");
    if file.is_symlink() { Ok(()) } else { symlink("..data/config.yaml", file) }
}
