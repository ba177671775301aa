//! S4: two thousand streams at once, each with a chunk every tenth of a second.

use std::io;
use std::time::Duration;

use keyfleet_bench::Report;
use tokio::time::{MissedTickBehavior, interval};

use crate::contender::{Contender, Running};
use crate::lab::Lab;
use crate::rounds::Rounds;
use crate::table::{Gate, Row};
use crate::upstream::Upstream;

const STREAMS: u32 = 2_000;
const GAP_MS: u32 = 100;
/// The streams begin over so many gaps, so that connecting is no avalanche.
const RAMP_GAPS: u32 = 10;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What one contender did in one round.
struct Effort {
    micros_per_chunk: f64,
    delay_ms: f64,
    kib_per_stream: f64,
    failed: f64,
}

pub(crate) async fn s4(lab: &Lab) -> io::Result<Vec<Row>> {
    let upstream = Upstream::metronome(lab, lab.scaled(80, 30), GAP_MS)?;
    let rounds = Rounds::measure(lab.scaled(3, 1), &Contender::ALL, async |contender| {
        let effort = measure(lab, &contender.start(lab, &upstream)?).await?;
        eprintln!("S4: {contender} {:.1} µs, {:.2} ms", effort.micros_per_chunk, effort.delay_ms);
        Ok(effort)
    })
    .await?;

    let cpu = |effort: &Effort| effort.micros_per_chunk;
    let cpu_row = Row::new("S4: 2,000 streams, CPU per chunk, µs", rounds.medians(cpu), 1);
    let delays = rounds.medians(|effort| effort.delay_ms);
    let beyond_nginx = delays[&Contender::Gateway] - delays[&Contender::Nginx];
    let delay_gate = Gate::at_most(beyond_nginx, 0.10, 0.05, 2, " ms");
    let mut memory = rounds.medians(|effort| effort.kib_per_stream);
    memory.remove(&Contender::Direct);
    let memory_gate = Gate::at_most(memory[&Contender::Gateway], 80.0, 60.0, 0, " KiB");
    let failed = rounds.worst(|effort| effort.failed);
    let failed_gate = Gate::at_most(failed[&Contender::Gateway], 0.0, 0.0, 0, "");
    Ok(vec![
        cpu_row.times_nginx(rounds.to_nginx(cpu), 1.4, 1.25),
        Row::new("S4: delay of a chunk, p50, ms (gate: beyond nginx)", delays, 2).gated(delay_gate),
        Row::new("S4: memory per stream, KiB", memory, 0).gated(memory_gate),
        Row::new("S4: failed streams", failed, 0).gated(failed_gate),
    ])
}

async fn measure(lab: &Lab, running: &Running<'_>) -> io::Result<Effort> {
    let before = running.usage()?;
    let (report, peak_kib) = load_and_watch(lab, running).await?;
    let cpu = running.usage()?.cpu.saturating_sub(before.cpu);
    let grown = u32::try_from(peak_kib.saturating_sub(before.rss_kib)).unwrap_or(u32::MAX);
    Ok(Effort {
        micros_per_chunk: cpu.as_secs_f64() * 1e6 / f64::from(report.chunks.max(1)),
        delay_ms: report.chunk_delay_ms.p50,
        kib_per_stream: f64::from(grown) / f64::from(STREAMS),
        failed: f64::from(report.failed()),
    })
}

/// The load's report, and the most memory that was used meanwhile.
async fn load_and_watch(lab: &Lab, running: &Running<'_>) -> io::Result<(Report, u64)> {
    let plan = [
        "closed".to_owned(),
        "--stream".to_owned(),
        format!("--connections={STREAMS}"),
        format!("--requests={STREAMS}"),
        format!("--ramp-ms={}", RAMP_GAPS * GAP_MS),
    ];
    let mut load = std::pin::pin!(running.try_load(lab, &plan));
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut peak = 0;
    loop {
        tokio::select! {
            report = &mut load => return Ok((report?, peak)),
            _ = looks.tick() => peak = peak.max(running.usage()?.rss_kib),
        }
    }
}
