//! A load that does not wait for its answers.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::client::Answer;

/// Sends `per_second` requests a second for `length`, whatever becomes of them, and then waits for every answer.
/// A request without an answer ends the scenario.
pub async fn steady_load<F>(per_second: u64, length: Duration, mut send: impl FnMut() -> F) -> Vec<Answer>
where
    F: Future<Output = reqwest::Result<Answer>> + Send + 'static,
{
    let mut ticks = interval(Duration::from_micros(1_000_000 / per_second.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    let end = Instant::now() + length;
    while Instant::now() < end {
        ticks.tick().await;
        running.spawn(send());
    }
    let answers = running.join_all().await;
    answers.into_iter().map(|answer| answer.expect("an answer")).collect()
}
