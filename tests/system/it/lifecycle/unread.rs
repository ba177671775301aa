//! A reader of the log that has stopped.

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, GatewayOptions, Sim};
use tokio::task::JoinSet;

use super::{MODEL, SOON};

/// In each round so many requests at once, and so many rounds before the gateway must have run out of room.
const AT_ONCE: usize = 50;
const ROUNDS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_no_request() {
    let sim = Sim::start(World::pool(2, 1)).await;
    let options = GatewayOptions { log: "debug".into(), unread: true, ..GatewayOptions::new(sim.config()) };
    let mut gateway = Gateway::start_with(options).await;
    let client = gateway.client();
    let dropped = async || gateway.metric("keyfleet_dropped_log_lines_total").await.expect("a figure");
    let mut rounds_after = 0;
    for _ in 0..ROUNDS {
        let mut requests: JoinSet<_> = (0..AT_ONCE).map(|_| client.chat(MODEL, false)).collect();
        while let Some(answer) = requests.join_next().await {
            assert_eq!(answer.expect("the request ends").expect("an answer").status, 200);
        }
        // It goes on answering when there is no room left.
        rounds_after += usize::from(dropped().await > 0.0);
        if rounds_after == 3 {
            break;
        }
    }
    assert_eq!(rounds_after, 3, "nothing is dropped: is the log read?");
    gateway.signal("TERM");
    let ended = tokio::time::timeout(SOON, gateway.exit()).await.expect("it does not wait for its reader");
    assert_eq!(ended.code(), Some(0));
}
