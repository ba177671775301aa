//! The socket of a manager, and what it was told last.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Tellings in the time after which a manager takes silence for a standstill: one that comes late, or is lost, is not
/// the end.
const TELLINGS: u32 = 4;
/// Beats of a runtime between two tellings.
const BEATS: u32 = 2;

/// What was told last: a message that comes out of turn would mislead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Stopping,
}

/// The way to a manager.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// After so much silence it takes us for stuck.
    patience: Option<Duration>,
    stage: Mutex<Stage>,
    /// One for each runtime: whether it has turned since it was last looked at.
    beats: Mutex<Vec<Arc<AtomicBool>>>,
}

impl Link {
    pub(super) fn of_environment() -> Option<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // It may be meant for the process that started us.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let patience = number("WATCHDOG_USEC").filter(|_| ours).map(Duration::from_micros);
        match Self::new(&name, patience) {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told anything: NOTIFY_SOCKET");
                None
            }
        }
    }

    fn new(name: &OsStr, patience: Option<Duration>) -> io::Result<Self> {
        let manager = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let patience = patience.filter(|patience| !patience.is_zero());
        Ok(Self { socket, manager, patience, stage: Mutex::new(Stage::Starting), beats: Mutex::default() })
    }

    fn tell(&self, message: &str) -> bool {
        let told = self.socket.send_to_addr(message.as_bytes(), &self.manager);
        if let Err(error) = &told {
            tracing::debug!(%error, told = message, "the service manager was not told");
        }
        told.is_ok()
    }

    pub(super) fn waiting(&self, why: &str) {
        if *self.stage.lock() == Stage::Starting {
            self.tell(&format!("STATUS=not ready: {why}"));
        }
    }

    pub(super) fn ready(&self) -> bool {
        let mut stage = self.stage.lock();
        if *stage == Stage::Starting && self.tell("READY=1\nSTATUS=serving") {
            *stage = Stage::Serving;
        }
        *stage != Stage::Starting
    }

    pub(super) fn reloading(&self) {
        let at = clock_gettime(ClockId::Monotonic);
        let micros = i128::from(at.tv_sec) * 1_000_000 + i128::from(at.tv_nsec) / 1_000;
        if *self.stage.lock() == Stage::Serving {
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reading the configuration"));
        }
    }

    pub(super) fn reloaded(&self, in_force: bool) {
        let status = if in_force {
            "serving"
        } else {
            "serving; the configuration on disk is NOT in force, see the log"
        };
        if *self.stage.lock() == Stage::Serving {
            self.tell(&format!("READY=1\nSTATUS={status}"));
        }
    }

    pub(super) fn stopping(&self) {
        *self.stage.lock() = Stage::Stopping;
        self.tell("STOPPING=1\nSTATUS=draining: requests that run may end");
    }

    pub(super) fn ends_within(&self, limit: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    }

    pub(super) async fn pulse(&self) {
        let Some(patience) = self.patience else { return };
        let beat = Arc::new(AtomicBool::new(true));
        self.beats.lock().push(beat.clone());
        let _registered = Registered { link: self, beat: beat.clone() };
        loop {
            sleep(patience / (TELLINGS * BEATS)).await;
            beat.store(true, Relaxed);
        }
    }

    pub(super) async fn watchdog(&self) {
        let Some(patience) = self.patience else { return };
        let mut ticks = interval(patience / TELLINGS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Every one is looked at, since looking begins its next turn.
            let (stuck, threads) = {
                let beats = self.beats.lock();
                (beats.iter().filter(|beat| !beat.swap(false, Relaxed)).count(), beats.len())
            };
            if stuck == 0 {
                tracing::debug!(threads, "every thread turns");
                self.tell("WATCHDOG=1");
            } else {
                tracing::warn!(
                    stuck,
                    "a thread does not turn: the service manager is not told that all is well"
                );
            }
        }
    }
}

/// A runtime that ends is not stuck.
struct Registered<'a> {
    link: &'a Link,
    beat: Arc<AtomicBool>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.link.beats.lock().retain(|beat| !Arc::ptr_eq(beat, &self.beat));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tempfile::TempDir;

    use super::*;

    /// Far longer than between two tellings of the tests.
    const LONG: Duration = Duration::from_secs(10);
    const PATIENCE: Duration = Duration::from_millis(200);

    fn manager(patience: Option<Duration>) -> (TempDir, UnixDatagram, Link) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let link = Link::new(path.as_os_str(), patience).unwrap();
        (folder, socket, link)
    }

    fn next(socket: &UnixDatagram, within: Duration) -> Option<String> {
        let mut message = [0; 256];
        socket.set_read_timeout(Some(within)).unwrap();
        let length = socket.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    fn nothing(socket: &UnixDatagram) -> bool {
        next(socket, Duration::from_millis(1)).is_none()
    }

    #[test]
    fn only_what_is_in_turn_is_told() {
        let (_folder, socket, link) = manager(None);
        link.reloading();
        link.reloaded(true);
        assert!(nothing(&socket), "it does not serve yet");
        link.waiting("for a test");
        assert_eq!(next(&socket, LONG).unwrap(), "STATUS=not ready: for a test");
        assert!(link.ready() && link.ready());
        assert_eq!(next(&socket, LONG).unwrap(), "READY=1\nSTATUS=serving");
        link.reloading();
        let message = next(&socket, LONG).unwrap();
        assert!(message.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{message}");
        link.reloaded(false);
        let message = next(&socket, LONG).unwrap();
        assert!(message.starts_with("READY=1\n") && message.contains("NOT in force"), "{message}");
        link.stopping();
        assert!(next(&socket, LONG).unwrap().starts_with("STOPPING=1\n"));
        link.ready();
        link.waiting("for nothing");
        link.reloading();
        link.reloaded(true);
        assert!(nothing(&socket), "it serves no more");
        link.ends_within(Duration::from_secs(2));
        assert_eq!(next(&socket, LONG).unwrap(), "EXTEND_TIMEOUT_USEC=2000000");
    }

    #[test]
    fn one_that_was_not_reached_is_told_again() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let link = Link::new(path.as_os_str(), None).unwrap();
        assert!(!link.ready());
        let _socket = UnixDatagram::bind(&path).unwrap();
        assert!(link.ready());
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("keyfleet-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        assert!(Link::new(OsStr::new(&format!("@{name}")), None).unwrap().ready());
        assert!(next(&socket, LONG).is_some());
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_runtime_that_stands_still_is_noticed_and_one_that_ended_is_not() {
        let (_folder, socket, link) = manager(Some(PATIENCE));
        let (stand, stood) = tokio::sync::oneshot::channel::<()>();
        let (block, blocked) = mpsc::channel::<()>();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let link: &'static Link = Box::leak(Box::new(link));
        std::thread::spawn(move || runtime().block_on(link.watchdog()));
        let worker = std::thread::spawn(move || {
            runtime().block_on(async {
                tokio::spawn(link.pulse());
                let _ = stood.await;
                // As a worker does that waits for a lock for ever.
                let _ = blocked.recv_timeout(LONG * 2);
                let _ = ended.await;
            });
        });
        for _ in 0..TELLINGS {
            assert_eq!(next(&socket, LONG).as_deref(), Some("WATCHDOG=1"));
        }
        stand.send(()).unwrap();
        let silence = std::time::Instant::now();
        while next(&socket, PATIENCE * 2).is_some() {
            assert!(silence.elapsed() < LONG, "the standstill is not noticed");
        }
        block.send(()).unwrap();
        assert_eq!(next(&socket, LONG).as_deref(), Some("WATCHDOG=1"), "it turns again");
        end.send(()).unwrap();
        worker.join().unwrap();
        assert_eq!(next(&socket, LONG).as_deref(), Some("WATCHDOG=1"), "others go on");
        assert!(link.beats.lock().is_empty());
    }
}
