//! What the process uses of its machine, under the names that every Prometheus client has for it.
//!
//! Linux tells it in a few files; a crate for seven figures would read the same ones. Elsewhere nothing is told.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;

use super::{Sheet, Written};

/// One moment's figures; what cannot be read is left out.
#[derive(Debug, Default)]
pub(super) struct Process {
    cpu_seconds: Option<f64>,
    start_time: Option<f64>,
    threads: Option<u64>,
    resident: Option<u64>,
    virtual_memory: Option<u64>,
    open_files: Option<u64>,
    most_files: Option<u64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let file = |name: &str| fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
        let entries = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
        Self {
            // One of them is the folder's own.
            open_files: entries.map(|entries| entries.saturating_sub(1)),
            ..Self::of(&file("self/stat"), &file("self/status"), &file("self/limits"), &file("stat"))
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "times since 1970 in ticks have 38 bits")]
    fn of(stat: &str, status: &str, limits: &str, machine: &str) -> Self {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        // The program's name, in brackets, may hold anything.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_ascii_whitespace().collect());
        // The first of them is the third of the manual's.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second;
        let booted = figure(machine, "btime");
        let kib = |name| figure(status, name).map(|kib| kib * 1_024);
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| seconds(user + system)),
            start_time: booted.zip(field(22)).map(|(booted, ticks)| booted as f64 + seconds(ticks)),
            threads: figure(status, "Threads:"),
            resident: kib("VmRSS:"),
            virtual_memory: kib("VmSize:"),
            open_files: None,
            most_files: figure(limits, "Max open files"),
        }
    }
}

/// The number behind a name at a line's beginning.
fn figure(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder) -> Written {
        let mut sheet = Sheet::new(encoder);
        if let Some(seconds) = self.cpu_seconds {
            let help = "Time on processors, of the system's too";
            sheet.one("process_cpu_seconds", help, &ConstCounter::new(seconds))?;
        }
        if let Some(seconds) = self.start_time {
            sheet.fraction("process_start_time_seconds", "When it started, as Unix time", seconds)?;
        }
        for (name, help, value) in [
            ("process_threads", "Threads", self.threads),
            ("process_resident_memory_bytes", "Memory that it occupies", self.resident),
            ("process_virtual_memory_bytes", "Memory that it has reserved", self.virtual_memory),
            ("process_open_fds", "Open files and sockets", self.open_files),
            ("process_max_fds", "The most files and sockets that it may open", self.most_files),
        ] {
            if let Some(value) = value {
                sheet.gauge(name, help, value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_files() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 2 0 0 0 150 50 0 0 20 0 3 0 1000 4096 1";
        let status = "Name:\tx\nVmSize:\t    4 kB\nVmRSS:\t    2 kB\nThreads:\t3\n";
        let limits = "Limit   Soft Limit   Hard Limit   Units\nMax open files   1024   4096   files\n";
        let process = Process::of(stat, status, limits, "cpu 1 2\nbtime 1700000000\n");
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(ticks, 100, "as everywhere");
        assert_eq!((process.cpu_seconds, process.start_time), (Some(2.0), Some(1_700_000_010.0)));
        assert_eq!((process.resident, process.virtual_memory), (Some(2_048), Some(4_096)));
        assert_eq!((process.threads, process.most_files), (Some(3), Some(1_024)));
    }

    #[test]
    fn of_this_process_all_is_known() {
        let process = Process::read();
        assert!(process.cpu_seconds.is_some() && process.start_time > Some(1_600_000_000.0), "{process:?}");
        assert!(process.open_files > Some(2) && process.most_files >= process.open_files, "{process:?}");
        assert!(
            process.resident > Some(100_000) && process.virtual_memory >= process.resident,
            "{process:?}"
        );
        assert!(process.threads >= Some(1));
        let unknown = Process::of("", "", "", "");
        assert!(unknown.cpu_seconds.is_none() && unknown.resident.is_none());
    }
}
