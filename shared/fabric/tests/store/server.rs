//! A real Redis for the tests of one binary.

use keyfleet_fabric::store::redis::{RedisStore, Settings};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends the server when the test does, however it does: its standard input is closed then.
const SHELL: &str = r#"program="$1"; shift; "$program" "$@" >&2 & echo $!; read -r _; kill -9 $!; wait"#;

/// A child process that is killed on drop.
pub(crate) struct Server {
    pub(crate) port: u16,
    pid: Pid,
    shell: Child,
}

impl Server {
    /// Starts one that keeps nothing on disk; `more` goes to its command line.
    pub(crate) fn start(more: &[&str]) -> Self {
        Self::start_at(free_port(), more)
    }

    pub(crate) fn start_at(port: u16, more: &[&str]) -> Self {
        let number = port.to_string();
        let mut arguments = vec!["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"];
        arguments.extend(["--daemonize", "no", "--loglevel", "warning"]);
        if !more.contains(&"--tls-port") {
            arguments.extend(["--port", &number]);
        }
        arguments.extend(more);
        let server = Self::spawn(port, &arguments);
        server.wait();
        server
    }

    /// Starts a sentinel, which keeps its configuration in `file`.
    pub(crate) fn sentinel(file: &Path) -> Self {
        let port = free_port();
        let file = file.to_str().expect("a path that is text");
        let number = port.to_string();
        let server = Self::spawn(port, &[file, "--sentinel", "--port", &number]);
        server.wait();
        server
    }

    fn spawn(port: u16, arguments: &[&str]) -> Self {
        let folder = std::env::temp_dir();
        let mut shell = Command::new("sh")
            .args(["-c", SHELL, "sh", "redis-server"])
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let pid = line.trim().parse().ok().and_then(Pid::from_raw).expect("a process id");
        Self { port, pid, shell }
    }

    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(
                Instant::now() < until,
                "redis-server does not answer; if it is not installed: apt-get install redis-server"
            );
            thread::yield_now();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its answer to one command, as it is on the wire. A server that changes its role cuts connections.
    pub(crate) fn ask(&self, command: &str) -> String {
        (0..5).find_map(|_| self.try_ask(command).ok()).expect("an answer")
    }

    fn try_ask(&self, command: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        read_value(&mut BufReader::new(stream), &mut answer)?;
        String::from_utf8(answer).map_err(io::Error::other)
    }

    pub(crate) fn pause(&self) {
        kill_process(self.pid, Signal::STOP).expect("a process");
    }

    pub(crate) fn resume(&self) {
        kill_process(self.pid, Signal::CONT).expect("a process");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

fn read_value(stream: &mut impl BufRead, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    answer.extend(line.bytes());
    let number = line.get(1..).and_then(|rest| rest.trim_end().parse::<u64>().ok()).unwrap_or(0);
    match line.as_bytes().first() {
        Some(b'$') => drop(stream.take(number + 2).read_to_end(answer)?),
        Some(b'*') => (0..number).try_for_each(|_| read_value(stream, answer))?,
        _ => {}
    }
    Ok(())
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

/// The server that tests share which do not harm it.
pub(crate) fn shared() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    share(&SHARED, || Server::start(&[]))
}

/// A cluster of one server.
pub(crate) fn cluster() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    share(&SHARED, || {
        let port = free_port();
        let (bus, file) = (free_port().to_string(), format!("keyfleet-test-{port}.conf"));
        let server = Server::start_at(
            port,
            &[
                ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"],
                ["--cluster-port", &bus, "--cluster-config-file", &file],
            ]
            .concat(),
        );
        assert!(server.ask("CLUSTER ADDSLOTSRANGE 0 16383").starts_with("+OK"));
        let until = Instant::now() + PATIENCE;
        while !server.ask("CLUSTER INFO").contains("cluster_state:ok") {
            assert!(Instant::now() < until, "the cluster does not form");
        }
        drop(std::fs::remove_file(std::env::temp_dir().join(file)));
        server
    })
}

fn share(place: &Mutex<Weak<Server>>, start: impl FnOnce() -> Server) -> Arc<Server> {
    let mut place = place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    place.upgrade().unwrap_or_else(|| {
        let server = Arc::new(start());
        *place = Arc::downgrade(&server);
        server
    })
}

/// Settings with a prefix that no other test uses.
pub(crate) fn settings(url: impl Into<String>) -> Settings {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut settings = Settings::new(url);
    settings.prefix = format!("test:{}", NEXT.fetch_add(1, Ordering::Relaxed));
    // The machine may be busy with other tests.
    settings.timeout = Duration::from_secs(5);
    settings
}

pub(crate) async fn connect(settings: &Settings) -> RedisStore {
    RedisStore::connect(settings).await.expect("a Redis that can be used")
}
