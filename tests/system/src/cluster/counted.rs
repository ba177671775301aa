//! What was counted, and by whom.

use std::io;
use std::time::{Duration, Instant};

use super::Cluster;
use super::judge::{self, Counts};

/// From the last request until everything about it is stored.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);
/// Gateways report more often than that.
const REPORTED_WITHIN: Duration = Duration::from_secs(2);

impl Cluster {
    /// What coordinators have counted.
    pub async fn totals(&self) -> io::Result<Counts> {
        self.redis().totals().await
    }

    /// Where NATS is.
    pub fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats.port)
    }

    /// What gateways have reported, read from the stream.
    pub async fn published(&self) -> io::Result<Counts> {
        judge::published(&self.nats_url()).await
    }

    /// What is stored, once that is what was reported, by key and counter, and nothing more comes; nothing if it does
    /// not become that.
    pub async fn counted(&self) -> Option<Counts> {
        let start = Instant::now();
        let mut last = None;
        while start.elapsed() < SETTLED_WITHIN {
            let now = self.totals().await.ok();
            if now.is_some() && now == last && self.published().await.ok() == now {
                return now;
            }
            last = now;
            tokio::time::sleep(REPORTED_WITHIN).await;
        }
        None
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
