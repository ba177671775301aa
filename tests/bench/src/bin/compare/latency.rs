//! What a proxy adds to the time to an answer when there is little to do: 200 requests per second.

use std::io;

use keyfleet_simulator::AnswerSpec;

use crate::contender::Contender;
use crate::lab::Lab;
use crate::rounds::Rounds;
use crate::table::Row;
use crate::upstream::Upstream;

const RATE: u32 = 200;
/// Nginx adds some tenths of a millisecond; less than this is noise, and no unit to measure in.
const LEAST_MS: f64 = 0.02;
/// Many short rounds: the figure of a process depends on the processors on which its threads and those of the load come
/// to rest, more than on how long it is watched.
const ROUNDS: usize = 16;

pub(crate) async fn latency(lab: &Lab) -> io::Result<Vec<Row>> {
    let upstream = Upstream::simulator(lab, AnswerSpec::default())?;
    let requests = RATE * 2;
    let plan =
        |requests: u32| ["open".to_owned(), format!("--rate={RATE}"), format!("--requests={requests}")];
    let rounds = Rounds::measure(lab.scaled(ROUNDS, 3), &Contender::ALL, async |contender| {
        let running = contender.start(lab, &upstream)?;
        running.load(lab, &plan(RATE / 4)).await?;
        let latency = running.load(lab, &plan(requests)).await?.latency_ms;
        eprintln!("latency: {contender} p50 {:.3} ms, p99 {:.3} ms", latency.p50, latency.p99);
        Ok(latency)
    })
    .await?;

    let p50 = rounds.medians_beyond_direct(|latency| latency.p50);
    let p99 = rounds.medians_beyond_direct(|latency| latency.p99);
    let ratio = p50[&Contender::Gateway] / p50[&Contender::Nginx].max(LEAST_MS);
    Ok(vec![
        Row::new("added latency at 200 requests per second, p50, ms", p50, 3).times_nginx(ratio, 2.0, 1.5),
        Row::new("added latency at 200 requests per second, p99, ms", p99, 3),
    ])
}
