//! What stands behind the proxies: the simulator without latency, or the metronome.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::Command;

use keyfleet_simulator::{AnswerSpec, Latency, Limit, Stats, World};

use crate::lab::{Lab, free_address};
use crate::process::Process;
use crate::wire;

/// Keys of the pool, each of a project of its own.
const KEYS: usize = 12;

/// A running upstream.
pub(crate) struct Upstream {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// The keys that it takes.
    pub(crate) keys: Vec<String>,
}

impl Upstream {
    /// As fast as it can, without a log and without limits.
    pub(crate) fn simulator(lab: &Lab, answer: AnswerSpec) -> io::Result<Self> {
        Self::simulate(lab, World { answer, latency: Latency::Zero, ..World::pool(KEYS, 1) })
    }

    /// So many projects with one key each, and so many requests per window and project.
    pub(crate) fn limited(lab: &Lab, projects: u32, rpm: u32, window_ms: u32) -> io::Result<Self> {
        let world = World::pool(projects as usize, 1).limited(&Limit::rpm(rpm.into()));
        Self::simulate(lab, World { window_ms: window_ms.into(), ..world })
    }

    fn simulate(lab: &Lab, world: World) -> io::Result<Self> {
        let world = World { log: false, ..world };
        let file = lab.file("world.json");
        fs::write(&file, serde_json::to_string(&world)?)?;
        let mut command = lab.program("simulator");
        command.arg("--world").arg(file);
        Self::start(command, world.secrets())
    }

    /// Streams of `chunks` events, one every `gap_ms`.
    pub(crate) fn metronome(lab: &Lab, chunks: u32, gap_ms: u32) -> io::Result<Self> {
        let mut command = lab.program("metronome");
        command.args(["--chunks", &chunks.to_string(), "--gap-ms", &gap_ms.to_string()]);
        Self::start(command, World::pool(KEYS, 1).secrets())
    }

    fn start(mut command: Command, keys: Vec<String>) -> io::Result<Self> {
        let address = free_address()?;
        let process = Process::start(command.args(["--listen", &address.to_string()]))?;
        wire::until_listening(address)?;
        Ok(Self { process, address, keys })
    }

    /// The simulator's totals.
    pub(crate) fn stats(&self) -> io::Result<Stats> {
        Ok(serde_json::from_slice(&wire::get(self.address, "/__sim/stats")?)?)
    }
}
