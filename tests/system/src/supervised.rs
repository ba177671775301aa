//! A process as a service manager starts it: with a socket to tell how it is.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout_at};

use crate::eventually::eventually;

const EXIT_WITHIN: Duration = Duration::from_secs(20);

/// A running service. Dropping it kills the process.
#[derive(Debug)]
pub struct Supervised {
    child: Child,
    socket: UnixDatagram,
    folder: TempDir,
}

impl Supervised {
    /// Starts it with `NOTIFY_SOCKET`, under a watchdog of this patience.
    pub fn start(mut command: Command, patience: Duration) -> Self {
        let folder = TempDir::new().expect("a folder for the service");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket to be told on");
        let log = File::create(folder.path().join("log")).expect("a log file");
        command.env_remove("WATCHDOG_PID").env("WATCHDOG_USEC", patience.as_micros().to_string());
        command.env("NOTIFY_SOCKET", &path).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, socket, folder }
    }

    /// The next message that it sends, `None` if there is none within this time.
    pub async fn told(&self, within: Duration) -> Option<String> {
        let mut message = [0; 4_096];
        let received = timeout_at(Instant::now() + within, self.socket.recv(&mut message)).await.ok()?;
        let message = &message[..received.expect("a message")];
        Some(String::from_utf8(message.to_vec()).expect("text"))
    }

    /// Waits for a message with this line, past others; gives all of it.
    pub async fn tells(&self, line: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.told(left).await;
            let message = message.unwrap_or_else(|| panic!("it never said {line}:\n{}", self.log()));
            if message.lines().any(|told| told == line) {
                return message;
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().try_into().ok().and_then(Pid::from_raw).expect("its number");
        kill_process(pid, signal).expect("the signal is sent");
    }

    /// Waits until it has ended by itself.
    pub async fn exit(&mut self) -> ExitStatus {
        eventually("the service ends", EXIT_WITHIN, || {
            let status = self.child.try_wait().expect("the process can be asked");
            async move { status }
        })
        .await
    }

    /// Everything that it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            eprintln!("--- the log of the service\n{}", self.log());
        }
    }
}
