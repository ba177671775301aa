//! A Redis that need not be there yet.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fred::interfaces::ClientLike as _;
use keyfleet_core::message::Delta;
use keyfleet_core::state::{Commit, Image, Table};
use tokio::sync::watch;
use tokio::time::timeout;

use super::RedisStore;
use crate::store::{Claim, Lead, StateStore, StoreError};

/// For so long a call waits for the first connection: a process that starts beside its server need not fail once.
const WAIT: Duration = Duration::from_millis(500);

/// A [`RedisStore`] that somebody else connects; until then every call says, after a short wait, that it is not reachable.
#[derive(Debug)]
pub struct LateRedis(watch::Sender<Option<Arc<RedisStore>>>);

impl Default for LateRedis {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl LateRedis {
    /// It is connected.
    pub fn arrive(&self, store: RedisStore) {
        self.0.send_replace(Some(Arc::new(store)));
    }

    /// Whether there is a connection now. Asks nobody: a server that stands still is noticed by whoever needs it.
    pub fn is_connected(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|store| store.client.is_connected())
    }

    async fn arrived(&self) -> Result<Arc<RedisStore>, StoreError> {
        let mut store = self.0.subscribe();
        let arrived = timeout(WAIT, store.wait_for(Option::is_some)).await.ok();
        let arrived = arrived.and_then(|store| store.ok()?.clone());
        arrived.ok_or_else(|| StoreError::Unreachable("no connection since this process began".to_owned()))
    }
}

#[async_trait]
impl StateStore for LateRedis {
    async fn lead(&self, claim: &Claim) -> Result<Lead, StoreError> {
        self.arrived().await?.lead(claim).await
    }

    async fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        self.arrived().await?.commit(commit).await
    }

    async fn load(&self) -> Result<Image, StoreError> {
        self.arrived().await?.load().await
    }

    async fn since(&self, rev: u64) -> Result<Option<Vec<Delta>>, StoreError> {
        self.arrived().await?.since(rev).await
    }

    async fn identity(&self) -> Result<String, StoreError> {
        self.arrived().await?.identity().await
    }

    async fn get(&self, table: Table, key: &str) -> Result<Option<String>, StoreError> {
        self.arrived().await?.get(table, key).await
    }
}
