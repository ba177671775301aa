//! A second Redis that follows the first, and may take its place.

use std::time::Duration;

use super::process::{Process, server};
use super::{Cluster, Redis};
use crate::eventually::eventually;
use crate::gateway::free_port;

const SOON: Duration = Duration::from_secs(20);

/// A replica of the cluster's Redis. Dropping it kills it.
#[derive(Debug)]
pub struct RedisCopy {
    process: Process,
}

impl RedisCopy {
    /// What it holds.
    pub fn redis(&self) -> Redis {
        Redis::at(self.process.port)
    }

    /// It stops following: what is written from now on it never hears of.
    pub async fn promote(&self) {
        self.redis().ask(&["REPLICAOF", "NO", "ONE"]).await.expect("the copy obeys");
    }
}

impl Cluster {
    /// Starts a replica, and waits until it has everything.
    pub async fn copy_redis(&self) -> RedisCopy {
        let port = free_port();
        let first = self.redis.port.to_string();
        let arguments =
            ["--bind", "127.0.0.1", "--port", &port.to_string(), "--replicaof", "127.0.0.1", &first];
        let arguments = arguments.map(str::to_owned).to_vec();
        let folder = self.folder.path().join("redis-copy");
        let process = Process::start(server("KEYFLEET_TEST_REDIS", "redis-server"), arguments, folder, port);
        let copy = RedisCopy { process };
        eventually("the copy follows", SOON, || async {
            let here = self.redis().position().await.ok()?;
            (here[0] > 0 && copy.redis().position().await.ok()? == here).then_some(())
        })
        .await;
        copy
    }

    /// Every process that has links reaches the copy instead of Redis, once its connection is lost.
    pub fn lead_to_copy(&self, copy: &RedisCopy) {
        for member in self.coordinators.iter().chain(&self.gateways) {
            let [_, redis] = member.links.as_ref().expect("a cluster with links");
            redis.lead_to(copy.process.port);
        }
    }
}
