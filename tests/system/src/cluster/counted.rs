//! What was counted, and by whom.

use std::io;
use std::time::{Duration, Instant};

use super::Cluster;
use super::judge::{self, Counts};
use crate::eventually::eventually;

/// From the last request until everything about it is stored.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

impl Cluster {
    /// What coordinators have counted.
    pub async fn totals(&self) -> io::Result<Counts> {
        self.redis().totals().await
    }

    /// What gateways have reported, read from the stream.
    pub async fn published(&self) -> io::Result<Counts> {
        judge::published(&format!("nats://127.0.0.1:{}", self.nats.port)).await
    }

    /// Waits until every report is in the totals, and returns those.
    pub async fn settled(&self) -> Counts {
        eventually("what was reported is counted", SETTLED_WITHIN, || async {
            let totals = self.totals().await.ok()?;
            (self.published().await.ok()? == totals).then_some(totals)
        })
        .await
    }

    /// Waits until the totals are what the simulator saw.
    pub async fn settled_as_seen(&self) {
        let start = Instant::now();
        loop {
            let (seen, totals) = (judge::seen(&self.sim.log()), self.totals().await.unwrap_or_default());
            if seen == totals {
                return;
            }
            assert!(
                start.elapsed() < SETTLED_WITHIN,
                "the simulator saw\n{seen:?}\ncounted are\n{totals:?}\nreported are\n{:?}",
                self.published().await
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
