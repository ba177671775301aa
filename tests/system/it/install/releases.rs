//! Releases as the workflow makes them, of the programs under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path as Name;
use axum::http::StatusCode;
use axum::routing::get;
use keyfleet_tests::program;
use tempfile::TempDir;

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
    /// Programs that are the same but for these bytes at their end, which the loader does not read.
    fn pack(end: &[u8]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let programs = ["gateway", "coordinator"];
        for name in programs {
            let command = program(name, folder.path());
            let file = folder.path().join(name);
            // Debug information is most of it.
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&file).arg(command.get_program());
            assert!(strip.status().expect("strip is there, with cc").success());
            let mut bytes = fs::read(&file).expect("the program");
            bytes.extend_from_slice(end);
            fs::write(&file, bytes).expect("it is written");
        }
        let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let name = format!("keyfleet-0.0.1-linux-{machine}.tar.gz");
        let archive = folder.path().join(&name);
        let mut tar = Command::new("tar");
        tar.args(["-I", "gzip -1", "-cf"]).arg(&archive).arg("-C").arg(folder.path()).args(programs);
        assert!(tar.status().expect("tar runs").success());
        let sums = Command::new("sha256sum").arg(&name).current_dir(folder.path()).output();
        fs::write(folder.path().join("SHA256SUMS"), sums.expect("sha256sum runs").stdout)
            .expect("it is written");
        Self { folder, archive }
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
