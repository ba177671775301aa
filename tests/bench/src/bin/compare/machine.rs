//! How much of the machine the benchmark had for itself: figures from a machine that is busy otherwise are worth less.

use std::fs;
use std::io;

/// Processor time since the machine started, in ticks.
pub(crate) struct Time {
    all: u32,
    idle: u32,
    /// That of this process and of its descendants that have ended.
    own: u32,
}

impl Time {
    pub(crate) fn now() -> io::Result<Self> {
        let machine = fs::read_to_string("/proc/stat")?;
        let own = fs::read_to_string("/proc/self/stat")?;
        Self::parse(&machine, &own)
            .ok_or_else(|| io::Error::other("/proc/stat and /proc/self/stat: unknown form"))
    }

    fn parse(machine: &str, own: &str) -> Option<Self> {
        let ticks: Vec<u32> = machine
            .lines()
            .next()?
            .split_ascii_whitespace()
            .skip(1)
            .take(8)
            .map_while(|n| n.parse().ok())
            .collect();
        let own = own.get(own.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11).take(4);
        Some(Self {
            all: ticks.iter().sum(),
            idle: *ticks.get(3)? + *ticks.get(4)?,
            own: own.map_while(|n| n.parse::<u32>().ok()).sum(),
        })
    }

    /// Says what the figures are of.
    pub(crate) fn note_since(&self, began: &Self) -> String {
        let all = self.all.saturating_sub(began.all).max(1);
        let own = self.own.saturating_sub(began.own);
        let others = all.saturating_sub(self.idle.saturating_sub(began.idle)).saturating_sub(own);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        format!(
            "{cores} cores, load and upstream on the same machine; {:.0} % of its time went to other programs. Under \
             \"direct\" stands what the upstream does without a proxy.",
            100.0 * f64::from(others) / f64::from(all)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_idle_nor_ours_went_to_others() {
        let own = |ticks: u32| format!("7 (a b) S 1 1 1 0 -1 4194304 99 0 0 0 {ticks} 0 {ticks} 0 20 0 1");
        let began = Time::parse("cpu  100 0 100 800 0 0 0 0 0 0\n", &own(0)).unwrap();
        let ended = Time::parse("cpu  150 0 150 880 20 0 0 0 0 0\n", &own(25)).unwrap();
        let note = ended.note_since(&began);
        assert!(note.contains("; 25 % of its time went to other programs"), "{note}");
    }
}
