//! A load that does not wait for its answers.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::Answer;

/// Sends `per_second` requests a second for `length`, whatever becomes of them, and then waits for every answer.
/// A request without an answer ends the scenario.
pub async fn steady_load<F>(per_second: u64, length: Duration, send: impl FnMut() -> F) -> Vec<Answer>
where
    F: Future<Output = reqwest::Result<Answer>> + Send + 'static,
{
    let ((), answers) = load_during(per_second, tokio::time::sleep(length), send).await;
    answers.into_iter().map(|answer| answer.expect("an answer")).collect()
}

/// Sends `per_second` requests a second until something else has ended, and then waits for every answer: what the
/// other thing gave, and what became of each request.
pub async fn load_during<T, F>(
    per_second: u64,
    other: impl Future<Output = T>,
    mut send: impl FnMut() -> F,
) -> (T, Vec<reqwest::Result<Answer>>)
where
    F: Future<Output = reqwest::Result<Answer>> + Send + 'static,
{
    let mut other = std::pin::pin!(other);
    let mut ticks = interval(Duration::from_micros(1_000_000 / per_second.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    let result = loop {
        tokio::select! {
            result = other.as_mut() => break result,
            _ = ticks.tick() => running.spawn(send()),
        };
    };
    (result, running.join_all().await)
}
