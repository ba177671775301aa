//! How much of its quota a pool gets: ten keys of 20 requests per five seconds, 60 requests per second for ten
//! seconds. 400 answers are possible. Whoever has one key, like the other contenders, has nothing to compare.

use std::io;

use crate::contender::Contender;
use crate::lab::Lab;
use crate::table::{Gate, Row};
use crate::upstream::Upstream;

const PROJECTS: u32 = 10;
const PER_WINDOW: u32 = 20;
const WINDOW_SECS: u32 = 5;
const WINDOWS: u32 = 2;
const RATE: u32 = 60;

pub(crate) async fn quota(lab: &Lab) -> io::Result<Vec<Row>> {
    let upstream = Upstream::limited(lab, PROJECTS, PER_WINDOW, WINDOW_SECS * 1_000)?;
    let running = Contender::Gateway.start(lab, &upstream)?;
    let requests = RATE * WINDOW_SECS * WINDOWS;
    let plan = ["open".to_owned(), format!("--rate={RATE}"), format!("--requests={requests}")];
    let report = running.try_load(lab, &plan).await?;
    let wasted = u32::try_from(upstream.stats()?.rejected_429).unwrap_or(u32::MAX);
    eprintln!("quota: {} answers, {wasted} wasted, failures {:?}", report.ok, report.failures);
    // The answer that showed that the gateway runs came out of the same quota.
    let (answers, wasted) = (f64::from(report.ok + 1), f64::from(wasted));
    let percent = 100.0 * answers / f64::from(PROJECTS * PER_WINDOW * WINDOWS);
    let wasted_limit = f64::from(PROJECTS * WINDOWS);
    let of_gateway = |figure: f64| [(Contender::Gateway, figure)].into();
    Ok(vec![
        Row::new("quota: answers of 400 possible", of_gateway(answers), 0)
            .gated(Gate::at_least(percent, 95.0, 99.0, 1, " %")),
        Row::new("quota: wasted 429s", of_gateway(wasted), 0).gated(Gate::at_most(
            wasted,
            wasted_limit,
            0.0,
            0,
            "",
        )),
    ])
}
