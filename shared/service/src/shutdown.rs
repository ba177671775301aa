//! How a process ends.
//!
//! The first SIGTERM or SIGINT cancels the soft token: stop accepting, let work finish. The owner cancels the hard one
//! when its patience ends. A second signal ends the process at once, and so does a background task that dies: a
//! half-alive process is worse than one that its supervisor starts again.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::supervisor;

/// The exit code after a background task died (`EX_SOFTWARE` of sysexits).
pub const TASK_DIED: i32 = 70;

/// The tokens and the tasks of one process. Clones are handles to the same.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: TaskTracker,
}

/// How a critical task ended that should not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Returned,
    Panicked,
}

impl Shutdown {
    /// One that no signal reaches: for tests, and for servers inside another program.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that listens to SIGTERM and SIGINT. Call it once, inside the runtime.
    pub fn listen() -> io::Result<Self> {
        let shutdown = Self::default();
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(shutdown.clone().obey(signals));
        Ok(shutdown)
    }

    async fn obey(self, (mut terminate, mut interrupt): (Signal, Signal)) {
        let name = next(&mut terminate, &mut interrupt).await.0;
        tracing::info!(signal = name, "shutting down; a second signal ends the process at once");
        supervisor::stopping();
        self.inner.soft.cancel();
        let (name, code) = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "ending at once");
        end(code)
    }

    /// Cancelled when no new work may begin.
    pub fn soft(&self) -> &CancellationToken {
        &self.inner.soft
    }

    /// Cancelled by the owner when work that still runs must end.
    pub fn hard(&self) -> &CancellationToken {
        &self.inner.hard
    }

    /// Every task that must be over before the process is.
    pub fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// Runs a background task without which the process is of no use. If it panics, or returns before the shutdown
    /// began, the process ends with [`TASK_DIED`].
    pub fn spawn_critical<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_critical_until(&self.inner.soft, name, task)
    }

    /// As [`Shutdown::spawn_critical`], for a task that works on during the shutdown: it may return only after `stop`.
    pub fn spawn_critical_until<F>(
        &self,
        stop: &CancellationToken,
        name: &'static str,
        task: F,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = stop.clone();
        let task = tokio::spawn(task);
        self.inner.tasks.spawn(async move {
            if let Some(death) = outlived_by(task, &stop).await {
                tracing::error!(task = name, ?death, "a background task died; ending the process");
                end(TASK_DIED)
            }
        })
    }
}

/// Ends the process as soon as it has said why.
fn end(code: i32) -> ! {
    crate::logging::flush();
    std::process::exit(code)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", 143),
        _ = interrupt.recv() => ("SIGINT", 130),
    }
}

/// Waits for a task. A return after it was told to stop is how it should end; a panic never is.
async fn outlived_by(task: JoinHandle<()>, stop: &CancellationToken) -> Option<Death> {
    match task.await {
        Ok(()) if stop.is_cancelled() => None,
        Ok(()) => Some(Death::Returned),
        Err(error) if error.is_panic() => Some(Death::Panicked),
        // Nobody holds a handle to cancel it but the runtime, on its own end.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    use super::*;

    /// Set in the process that the tests start and that they send signals to.
    const CHILD: &str = "KEYFLEET_TEST_SHUTDOWN_CHILD";

    /// Not a test of its own: what the child process does.
    #[tokio::test]
    async fn child() {
        match std::env::var(CHILD).as_deref() {
            Ok("stubborn") => {
                let shutdown = Shutdown::listen().unwrap();
                println!("\nlistening");
                shutdown.soft().cancelled().await;
                println!("soft");
                shutdown.hard().cancelled().await;
            }
            Ok("dying") => {
                crate::logging::init(crate::logging::LogFormat::Json).unwrap();
                let shutdown = Shutdown::new();
                shutdown.spawn_critical("mortal", async {});
                shutdown.hard().cancelled().await;
            }
            Ok("dying while draining") => {
                crate::logging::init(crate::logging::LogFormat::Json).unwrap();
                let shutdown = Shutdown::new();
                shutdown.soft().cancel();
                shutdown.spawn_critical_until(shutdown.hard(), "mortal", async {});
                shutdown.hard().cancelled().await;
            }
            _ => {}
        }
    }

    fn start(what: &str) -> std::process::Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shutdown::tests::child", "--nocapture"])
            .env(CHILD, what)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn send(signal: &str, child: &std::process::Child) {
        let done = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    #[test]
    fn the_first_signal_is_soft_and_the_second_ends_at_once() {
        for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
            let mut child = start("stubborn");
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "listening"));
            send(signal, &child);
            assert!(lines.any(|line| line.unwrap() == "soft"));
            send(signal, &child);
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }

    #[test]
    fn a_critical_task_that_dies_takes_the_process_with_it() {
        for how in ["dying", "dying while draining"] {
            let mut child = start(how);
            let mut output = String::new();
            child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(TASK_DIED), "{how}");
            assert!(output.contains("a background task died"), "{how}: {output}");
        }
    }

    #[tokio::test]
    async fn a_task_may_return_only_after_the_shutdown_began() {
        let soft = CancellationToken::new();
        assert_eq!(outlived_by(tokio::spawn(async {}), &soft).await, Some(Death::Returned));
        soft.cancel();
        assert_eq!(outlived_by(tokio::spawn(async {}), &soft).await, None);
        assert_eq!(
            outlived_by(tokio::spawn(async { panic!("on purpose") }), &soft).await,
            Some(Death::Panicked)
        );
    }
}
