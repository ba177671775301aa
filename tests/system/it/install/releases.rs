//! Releases as the workflow makes them, of the programs under test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path as Name;
use axum::http::StatusCode;
use axum::routing::get;
use keyfleet_tests::program;
use tempfile::TempDir;

use super::SCRIPTS;

/// An archive, and the checksums beside it.
pub(crate) struct Release {
    folder: TempDir,
    archive: PathBuf,
}

/// One release for all scenarios: packing takes seconds.
pub(crate) fn released() -> &'static Release {
    static RELEASE: LazyLock<Release> = LazyLock::new(|| Release::pack(b""));
    &RELEASE
}

impl Release {
    /// What the workflow packs, of programs that are the same but for these bytes at their end, which the loader does not
    /// read.
    fn pack(end: &[u8]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let built = folder.path().join("target/release");
        fs::create_dir_all(&built).expect("a folder");
        for name in ["gateway", "coordinator"] {
            let command = program(name, folder.path());
            let file = built.join(name);
            // Debug information is most of it.
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&file).arg(command.get_program());
            assert!(strip.status().expect("strip is there, with cc").success());
            let mut bytes = fs::read(&file).expect("the program");
            bytes.extend_from_slice(end);
            fs::write(&file, bytes).expect("it is written");
        }
        // Nothing is installed of it.
        fs::write(built.join("simulator"), "").expect("it is written");
        for name in ["scripts", "LICENSE", "README.md"] {
            symlink(format!("{SCRIPTS}/../{name}"), folder.path().join(name)).expect("a link");
        }
        let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let name = format!("keyfleet-0.0.1-linux-{machine}");
        let publish = step("Publish");
        let (sums, _) = publish.split_once("options=").expect("the command that publishes");
        for commands in [step("Pack").as_str(), sums] {
            let mut bash = Command::new("bash");
            // As fast as it can be.
            bash.args(["-e", "-o", "pipefail", "-c", commands]).env("NAME", &name).env("GZIP", "-1");
            let output = bash.current_dir(folder.path()).output().expect("bash runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let archive = folder.path().join(format!("{name}.tar.gz"));
        Self { folder, archive }
    }

    /// Unpacks it, into a folder of its own.
    pub(crate) fn unpacked(&self) -> TempDir {
        let folder = TempDir::new().expect("a folder");
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&self.archive).args(["--strip-components", "1", "-C"]).arg(folder.path());
        assert!(tar.status().expect("tar runs").success());
        folder
    }

    /// Another version.
    pub(crate) fn newer() -> Self {
        Self::pack(b"newer")
    }

    /// Another copy, to be spoiled.
    pub(crate) fn copy(&self) -> Self {
        let folder = TempDir::new().expect("a folder");
        let archive = folder.path().join(self.archive.file_name().expect("a name"));
        fs::copy(&self.archive, &archive).expect("a copy");
        fs::copy(self.sums(), folder.path().join("SHA256SUMS")).expect("a copy");
        Self { folder, archive }
    }

    pub(crate) fn archive(&self) -> &str {
        self.archive.to_str().expect("a path that is text")
    }

    pub(crate) fn sums(&self) -> PathBuf {
        self.folder.path().join("SHA256SUMS")
    }

    /// Offers it for download, as version 0.0.1; gives the URL before `/v0.0.1/`.
    pub(crate) async fn serve(&self) -> String {
        let folder = self.folder.path().to_owned();
        let file = move |Name(name): Name<String>| {
            let file = fs::read(folder.join(Path::new(&name).file_name().unwrap_or_default()));
            std::future::ready(file.map_err(|_| StatusCode::NOT_FOUND))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let routes = Router::new().route("/v0.0.1/{name}", get(file));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        format!("http://{address}")
    }
}

/// The commands of a step of the workflow that makes releases.
fn step(name: &str) -> String {
    let workflow = fs::read_to_string(format!("{SCRIPTS}/../.github/workflows/release.yml"));
    let workflow = workflow.expect("the workflow");
    let (_, step) = workflow.split_once(&format!("- name: {name}\n")).expect("the step");
    let (_, commands) = step.split_once("run: |\n").expect("its commands");
    let commands = commands.lines().map_while(|line| line.strip_prefix("          "));
    commands.collect::<Vec<_>>().join("\n")
}
