//! A process that the benchmark has started, what its tree consumes, and its end.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use memchr::memchr_iter;
use rustix::param::page_size;
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(3);

/// A running process. Dropping it asks it to end, and ends it if it does not.
pub(crate) struct Process {
    child: Child,
    lines: Arc<AtomicU64>,
}

/// What a process and its descendants have consumed so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Resident memory.
    pub(crate) rss_kib: u64,
}

impl Process {
    /// Starts a program without any environment. What it prints is read and counted by lines.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child =
            command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", command.get_program().display()))
            })?;
        let lines = Arc::default();
        if let Some(stdout) = child.stdout.take() {
            drain(stdout, Arc::clone(&lines));
        }
        Ok(Self { child, lines })
    }

    /// Lines that it has printed so far.
    pub(crate) fn lines(&self) -> u64 {
        self.lines.load(Relaxed)
    }

    /// What its tree has consumed so far.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let tree = tree(Pid::from_child(&self.child))?;
        let cpu = tree.iter().map(Entry::cpu).sum::<io::Result<Duration>>()?;
        Ok(Usage { cpu, rss_kib: tree.iter().map(Entry::rss_kib).sum() })
    }

    fn has_ended(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let descendants = tree(Pid::from_child(&self.child)).unwrap_or_default();
        let ask = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if ask.is_ok() && self.has_ended(PATIENCE) {
            return;
        }
        // Youngest first, so that no parent replaces a child.
        for entry in descendants.iter().rev() {
            let _ = kill_process(entry.pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Reads what a process prints until it ends, so that it never waits for us.
fn drain(stdout: ChildStdout, lines: Arc<AtomicU64>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        while let Ok(bytes) = reader.fill_buf() {
            let (read, ended) = (bytes.len(), memchr_iter(b'\n', bytes).count());
            if read == 0 {
                return;
            }
            lines.fetch_add(ended as u64, Relaxed);
            reader.consume(read);
        }
    });
}

/// A line of the process table.
#[derive(Debug)]
struct Entry {
    pid: Pid,
    parent: Option<Pid>,
    pages: u64,
}

impl Entry {
    fn read(pid: Pid) -> io::Result<Self> {
        let mut text = String::new();
        fs::File::open(format!("/proc/{pid}/stat"))?.read_to_string(&mut text)?;
        Self::parse(pid, &text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {text}")))
    }

    /// The name of the program, in parentheses, can hold anything; fields are counted behind it.
    fn parse(pid: Pid, text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let parent = Pid::from_raw(fields.get(1)?.parse().ok()?);
        Some(Self { pid, parent, pages: number(21)? })
    }

    /// The time on a processor of all its threads, which the scheduler counts in nanoseconds; user and system time
    /// are the same in ticks of ten milliseconds.
    fn cpu(&self) -> io::Result<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread that ends while we look has done what it did before.
            let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(Duration::from_nanos(nanos))
    }

    fn rss_kib(&self) -> u64 {
        self.pages * (page_size() as u64) / 1024
    }
}

/// A process and its descendants, parents first.
fn tree(root: Pid) -> io::Result<Vec<Entry>> {
    let mut others = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
        // One that ends while we look is none of ours.
        others.extend(pid.filter(|pid| *pid != root).and_then(|pid| Entry::read(pid).ok()));
    }
    let mut found = vec![Entry::read(root)?];
    let mut seen = 0;
    while let Some(parent) = found.get(seen).map(|entry| entry.pid) {
        found.extend(others.extract_if(.., |entry| entry.parent == Some(parent)));
        seen += 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted_with_its_descendants_and_ends_with_them() {
        let process =
            Process::start(Command::new("/bin/sh").args(["-c", "sleep 60 & echo ready; wait"])).unwrap();
        while process.lines() == 0 {
            thread::yield_now();
        }
        let tree = tree(Pid::from_child(&process.child)).unwrap();
        assert_eq!(tree.len(), 2);
        assert_eq!(tree[1].parent, Some(tree[0].pid));
        let usage = process.usage().unwrap();
        assert!(usage.rss_kib > tree[0].rss_kib() && usage.cpu > tree[0].cpu().unwrap());
        drop(process);
        assert!(Entry::read(tree[0].pid).is_err());
        let _ = kill_process(tree[1].pid, Signal::KILL);
    }

    #[test]
    fn the_name_of_a_program_can_hold_anything() {
        let fields = "S 7 1 1 0 -1 4194304 99 0 0 0 11 31 0 0 20 0 1 0 4 3133440 360 1844";
        let entry = Entry::parse(Pid::INIT, &format!("1 (a) b)) {fields}")).unwrap();
        assert_eq!((entry.parent, entry.pages), (Pid::from_raw(7), 360));
    }
}
