//! From the start of a process to its first answer, and its memory then.

use std::io;

use keyfleet_simulator::AnswerSpec;

use crate::contender::Contender;
use crate::lab::Lab;
use crate::rounds::Rounds;
use crate::table::{Gate, Row};
use crate::upstream::Upstream;

const PROXIES: [Contender; 3] = [Contender::Nginx, Contender::Bare, Contender::Gateway];

pub(crate) async fn start(lab: &Lab) -> io::Result<Vec<Row>> {
    let upstream = Upstream::simulator(lab, AnswerSpec::default())?;
    let rounds = Rounds::measure(lab.scaled(11, 5), &PROXIES, async |contender| {
        let running = contender.start(lab, &upstream)?;
        let kib = u32::try_from(running.usage()?.rss_kib).unwrap_or(u32::MAX);
        Ok((running.took.as_secs_f64() * 1_000.0, f64::from(kib) / 1_024.0))
    })
    .await?;
    let (times, memory) = (rounds.medians(|(ms, _)| *ms), rounds.medians(|(_, mib)| *mib));
    let time_gate = Gate::at_most(times[&Contender::Gateway], 50.0, 20.0, 0, " ms");
    let memory_gate = Gate::at_most(memory[&Contender::Gateway], 25.0, 15.0, 0, " MiB");
    Ok(vec![
        Row::new("start to first answer, ms", times, 0).gated(time_gate),
        Row::new("memory then, MiB", memory, 0).gated(memory_gate),
    ])
}
