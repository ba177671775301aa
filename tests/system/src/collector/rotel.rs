//! The collector `rotel`, as published, which takes spans and metrics over gRPC and hands them on over HTTP.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{ARRIVES_WITHIN, Collector};
use crate::eventually::eventually;
use crate::gateway::free_port;

/// A running collector. Dropping it kills it.
#[derive(Debug)]
pub struct Rotel {
    child: Child,
    grpc: u16,
    /// With its log.
    folder: TempDir,
}

impl Rotel {
    /// Starts one in front of `next`.
    pub async fn start(next: &Collector) -> Self {
        let folder = TempDir::new().expect("a folder for the collector");
        let (grpc, http) = (free_port(), free_port());
        let log = fs::File::create(folder.path().join("log")).expect("a log file");
        let at = |port: u16| format!("127.0.0.1:{port}");
        let (pid_file, next) = (folder.path().join("pid").display().to_string(), next.url());
        let arguments = [
            ["--pid-file", &pid_file],
            ["--otlp-grpc-endpoint", &at(grpc)],
            ["--otlp-http-endpoint", &at(http)],
            ["--exporter", "otlp"],
            ["--otlp-exporter-endpoint", &next],
            ["--otlp-exporter-protocol", "http"],
            ["--batch-timeout", "100ms"],
        ];
        let child = Command::new(binary())
            .arg("start")
            .args(arguments.as_flattened())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("the collector starts");
        let mut rotel = Self { child, grpc, folder };
        eventually("the collector listens", ARRIVES_WITHIN, || {
            let ended = rotel.child.try_wait().expect("the process can be asked");
            assert!(ended.is_none(), "the collector ended: {}", rotel.log());
            let listens = TcpStream::connect((Ipv4Addr::LOCALHOST, grpc)).is_ok();
            async move { listens.then_some(()) }
        })
        .await;
        rotel
    }

    /// Where it takes them over gRPC.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    /// Stops it where it stands: it takes connections, as far as the system does that, and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the collector runs");
    }

    /// The port behind it.
    pub fn port(&self) -> u16 {
        self.grpc
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        // An error: it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the package has put it.
fn binary() -> PathBuf {
    let python = std::env::var("KEYFLEET_TEST_PYTHON");
    let python =
        python.expect("KEYFLEET_TEST_PYTHON is not set: run scripts/test, which prepares the collector");
    let code = "import pathlib, rotel; print(pathlib.Path(rotel.__file__).with_name('rotel-agent'))";
    let output = Command::new(python).args(["-c", code]).output().expect("python runs");
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(path.exists(), "rotel is missing: run scripts/test, which installs it");
    path
}
