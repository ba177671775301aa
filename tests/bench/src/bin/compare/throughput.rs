//! S1, S2, S3: processor time per request, with as many requests at a time as keep everything busy.

use std::io;

use keyfleet_simulator::AnswerSpec;

use crate::contender::{Contender, Running};
use crate::lab::Lab;
use crate::rounds::Rounds;
use crate::table::{Gate, Row};
use crate::upstream::Upstream;

const CONNECTIONS: u32 = 64;
/// One in so many requests is sent before anything is measured.
const WARM_UP: u32 = 10;

struct Work {
    name: &'static str,
    body_bytes: u32,
    streams: bool,
    requests: u32,
    gate: f64,
    goal: f64,
}

/// What one contender did in one round.
struct Effort {
    micros_per_request: f64,
    requests_per_second: f64,
}

/// 1 KB in, a small plain answer out.
pub(crate) async fn s1(lab: &Lab) -> io::Result<Vec<Row>> {
    let requests = lab.scaled(30_000, 8_000);
    let name = "S1: 1 KB request, CPU per request, µs";
    let work = Work { name, body_bytes: 1_000, streams: false, requests, gate: 2.5, goal: 2.0 };
    let rounds = run(lab, &work).await?;
    let rates = rounds.medians(|effort| effort.requests_per_second);
    let fastest = rates.iter().filter(|(who, _)| **who != Contender::Direct).map(|(_, rate)| *rate);
    let headroom = rates[&Contender::Direct] / fastest.fold(0.0, f64::max);
    let rates =
        Row::new("S1: requests per second (direct ÷ fastest: is the upstream fast enough?)", rates, 0);
    Ok(vec![row(&work, &rounds), rates.gated(Gate::at_least(headroom, 1.2, 1.5, 1, "×"))])
}

/// 100 KB in, a small plain answer out.
pub(crate) async fn s2(lab: &Lab) -> io::Result<Vec<Row>> {
    let requests = lab.scaled(6_000, 1_500);
    let name = "S2: 100 KB request, CPU per request, µs";
    let work = Work { name, body_bytes: 100_000, streams: false, requests, gate: 2.2, goal: 1.6 };
    Ok(vec![row(&work, &run(lab, &work).await?)])
}

/// A hundred chunks back to back.
pub(crate) async fn s3(lab: &Lab) -> io::Result<Vec<Row>> {
    let requests = lab.scaled(4_000, 1_000);
    let name = "S3: SSE, 100 chunks back to back, CPU per stream, µs";
    let work = Work { name, body_bytes: 1_000, streams: true, requests, gate: 3.0, goal: 2.4 };
    Ok(vec![row(&work, &run(lab, &work).await?)])
}

fn row(work: &Work, rounds: &Rounds<Effort>) -> Row {
    let cost = |effort: &Effort| effort.micros_per_request;
    Row::new(work.name, rounds.medians(cost), 1).times_nginx(rounds.to_nginx(cost), work.gate, work.goal)
}

async fn run(lab: &Lab, work: &Work) -> io::Result<Rounds<Effort>> {
    // The last of the hundred says that the answer is complete.
    let upstream =
        Upstream::simulator(lab, AnswerSpec { chunks: 99, plain_bytes: 240, ..AnswerSpec::default() })?;
    Rounds::measure(lab.scaled(5, 3), &Contender::ALL, async |contender| {
        let effort = measure(lab, work, &contender.start(lab, &upstream)?).await?;
        eprintln!("{}: {contender} {:.1}", work.name, effort.micros_per_request);
        Ok(effort)
    })
    .await
}

async fn measure(lab: &Lab, work: &Work, running: &Running<'_>) -> io::Result<Effort> {
    running.load(lab, &plan(work, work.requests / WARM_UP)).await?;
    let before = running.usage()?.cpu;
    let report = running.load(lab, &plan(work, work.requests)).await?;
    let cpu = running.usage()?.cpu.saturating_sub(before);
    Ok(Effort {
        micros_per_request: cpu.as_secs_f64() * 1e6 / f64::from(report.ok),
        requests_per_second: report.rate(),
    })
}

fn plan(work: &Work, requests: u32) -> Vec<String> {
    let mut plan = vec!["closed".to_owned()];
    plan.extend([
        format!("--connections={CONNECTIONS}"),
        format!("--requests={requests}"),
        format!("--body-bytes={}", work.body_bytes),
    ]);
    plan.extend(work.streams.then(|| "--stream".to_owned()));
    plan
}
