//! How the coordinator's prober looks at keys.

use std::collections::HashSet;

use keyfleet_simulator::World;
use keyfleet_tests::{Gateway, Sim, eventually};

use super::SOON;

const KEYS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_share_a_connection() {
    let sim = Sim::start(World::pool(KEYS, 1)).await;
    let _gateway = Gateway::start(sim.config()).await;
    let looks = eventually("every key is looked at", SOON, || {
        let log = sim.log();
        let ended = log.iter().filter(|request| request.done).count() == KEYS;
        async move { ended.then_some(log) }
    })
    .await;
    let connections: HashSet<_> = looks.iter().map(|look| look.conn).collect();
    assert_eq!(connections.len(), 1, "{looks:#?}");
}
