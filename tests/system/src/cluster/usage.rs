//! What processes use of the machine.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::{Cluster, Part};
use crate::client::Client;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Time on a processor.
    pub cpu: Duration,
    /// Resident memory now.
    pub rss_kib: u64,
}

/// Processor time of the whole machine since it started, in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    all: u32,
    idle: u32,
}

impl Machine {
    /// So far.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").expect("the machine's times");
        let first = text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1).take(8);
        let ticks: Vec<u32> = first.map_while(|n| n.parse().ok()).collect();
        Self { all: ticks.iter().sum(), idle: ticks.iter().skip(3).take(2).sum() }
    }

    /// The share of all processors that was busy since then.
    pub fn busy_since(before: Self) -> f64 {
        let now = Self::now();
        let all = now.all.saturating_sub(before.all).max(1);
        1.0 - f64::from(now.idle.saturating_sub(before.idle)) / f64::from(all)
    }
}

impl Cluster {
    /// What a process has used since it started; nothing while it does not run.
    pub fn usage(&self, part: Part) -> Usage {
        self.process(part).pid().map_or_else(Usage::default, usage)
    }

    /// The ports from which a process has connections now.
    pub fn ports(&self, part: Part) -> BTreeSet<u16> {
        self.process(part).pid().map(ports).unwrap_or_default()
    }

    /// What NATS tells of itself.
    pub async fn nats_figures(&self) -> Value {
        let client = Client::new(format!("http://127.0.0.1:{}", self.monitor));
        client.get("/varz").await.map(|answer| answer.json()).unwrap_or_default()
    }
}

fn usage(pid: u32) -> Usage {
    let nanos = |thread: fs::DirEntry| {
        // A thread that ends while we look has done what it did before.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or_default()
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Usage {
        cpu: Duration::from_nanos(threads.map(nanos).sum()),
        rss_kib: resident.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default(),
    }
}

/// The kernel names sockets by number: once among a process's files, and once in its table, with their ports.
fn ports(pid: u32) -> BTreeSet<u16> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: BTreeSet<String> = files
        .filter_map(|file| {
            let name = fs::read_link(file.path()).ok()?.to_str()?.to_owned();
            Some(name.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (address, socket) = (fields.get(1)?, fields.get(9)?);
        sockets.contains(*socket).then_some(())?;
        u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_belongs_to_who_opened_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("its address"));
        let port = client.as_ref().expect("a connection").local_addr().expect("its address").port();
        assert!(ports(std::process::id()).contains(&port));
        assert!(!ports(1).contains(&port));
    }

    #[test]
    fn a_process_that_works_uses_time_and_memory() {
        let before = usage(std::process::id());
        let until = std::time::Instant::now() + Duration::from_millis(50);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        let after = usage(std::process::id());
        assert!(after.cpu > before.cpu && after.rss_kib > 100, "{before:?}, {after:?}");
    }
}
