//! A closed loop: so many callers, each of which waits for its answer before it asks again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::connection::{Connection, Target};
use crate::tally::Tally;

pub(crate) async fn run(target: Target, requests: u32, connections: u32, ramp: Duration) -> Tally {
    let target = Arc::new(target);
    let begun = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (target, begun) = (target.clone(), begun.clone());
        let delay = ramp * number / connections;
        tasks.spawn(async move {
            sleep(delay).await;
            call(&target, &begun, requests).await
        });
    }
    Tally::of(requests).gather(tasks).await
}

/// One caller. It takes a request from what is left until nothing is.
async fn call(target: &Target, begun: &AtomicU32, requests: u32) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    while Instant::now() < target.deadline && begun.fetch_add(1, Relaxed) < requests {
        let mut open = match connection.take() {
            Some(open) => open,
            None => match Connection::open(target).await {
                Ok(open) => open,
                Err(why) => {
                    tally.failed(why);
                    continue;
                }
            },
        };
        connection = open.ask(target, &mut tally).await.then_some(open);
    }
    tally
}
