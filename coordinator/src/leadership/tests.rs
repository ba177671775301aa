use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use keyfleet_core::message::Delta;
use keyfleet_core::state::{Commit, Image, Table};
use keyfleet_fabric::store::memory::MemoryStore;
use keyfleet_service::follow::Reloads;
use tokio::sync::watch;

use super::*;

/// A store that can be out of reach, and that another server can answer for.
#[derive(Debug, Default)]
struct Distant {
    inner: MemoryStore,
    is_away: AtomicBool,
    is_another: AtomicBool,
}

#[async_trait]
impl StateStore for Distant {
    async fn lead(&self, claim: &Claim) -> Result<Lead, StoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Unreachable("no answer".to_owned()));
        }
        self.inner.lead(claim).await
    }

    async fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        self.inner.commit(commit).await
    }

    async fn load(&self) -> Result<Image, StoreError> {
        self.inner.load().await
    }

    async fn since(&self, rev: u64) -> Result<Option<Vec<Delta>>, StoreError> {
        self.inner.since(rev).await
    }

    async fn identity(&self) -> Result<String, StoreError> {
        Ok(if self.is_another.load(Ordering::Relaxed) { "another" } else { "the first" }.to_owned())
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<String>, StoreError> {
        self.inner.get(table, key).await
    }
}

/// How long a standby takes to lead, once the store is back and nobody leads.
async fn takes_over(is_another: bool) -> Duration {
    let store = Arc::new(Distant::default());
    let (_, reloads) = watch::channel(Reloads::new(clock::utc()));
    let (_, post) = crate::status::desk(None, reloads);
    let pulse = post.pulse();
    let (leader, mut standby) = (Candidate::new(store.clone(), &post), Candidate::new(store.clone(), &post));
    let claim =
        Claim { holder: leader.holder.clone(), ttl: Duration::from_mins(1), epoch: 0, above: 0, clock: None };
    let Lead::Mine(meta) = store.lead(&claim).await.unwrap() else { panic!("somebody leads") };
    let stop = CancellationToken::new();
    let mut seen = pulse.subscribe();
    let scene = async {
        seen.wait_for(|pulse| matches!(pulse.role, Role::Standby(_))).await.unwrap();
        store.is_away.store(true, Ordering::Relaxed);
        seen.wait_for(|pulse| !pulse.store_up).await.unwrap();
        store.is_another.store(is_another, Ordering::Relaxed);
        store.is_away.store(false, Ordering::Relaxed);
        let lead = store.inner.lead(&Claim { ttl: Duration::ZERO, epoch: meta.epoch, ..claim }).await;
        assert_eq!(lead, Ok(Lead::Nobody));
        Instant::now()
    };
    let (won, since) = tokio::join!(standby.win(&stop), scene);
    assert_eq!(won.expect("nobody stopped it").meta.epoch, meta.epoch + 1);
    since.elapsed()
}

#[tokio::test]
async fn the_last_leader_goes_first_where_another_server_answers() {
    let took = takes_over(true).await;
    assert!(took >= HEAD_START, "{took:?}");
}

#[tokio::test]
async fn a_standby_that_missed_some_answers_of_the_same_server_waits_for_nobody() {
    let took = takes_over(false).await;
    assert!(took < HEAD_START, "{took:?}");
}
