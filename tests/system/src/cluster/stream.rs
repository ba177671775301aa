//! What can become of NATS beyond its process: the stream of reports is emptied, deleted, or lost with its disk; and
//! what strangers say on our subjects.

use std::fs;
use std::io;

use serde_json::Value;

use super::judge::STREAM;
use super::{Cluster, Part};

impl Cluster {
    /// Asks `JetStream` about the stream of reports: `INFO`, `PURGE`, `DELETE`.
    pub async fn stream(&self, what: &str) -> io::Result<Value> {
        let client = self.nats().await?;
        let subject = format!("$JS.API.STREAM.{what}.{STREAM}");
        let answer = client.request(subject, "".into()).await.map_err(io::Error::other)?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        match answer.get("error") {
            Some(error) => Err(io::Error::other(error.to_string())),
            None => Ok(answer),
        }
    }

    /// Says something on a subject, and returns when the server has it.
    pub async fn say(&self, subject: &str, payload: &str) -> io::Result<()> {
        self.say_all(subject, [payload.to_owned()]).await
    }

    /// The same, with one thing after the other.
    pub async fn say_all(&self, subject: &str, payloads: impl IntoIterator<Item = String>) -> io::Result<()> {
        let client = self.nats().await?;
        for payload in payloads {
            client.publish(subject.to_owned(), payload.into()).await.map_err(io::Error::other)?;
        }
        client.flush().await.map_err(io::Error::other)
    }

    /// Everything that is said on a subject after this returns.
    pub async fn overhear(&self, subject: &str) -> io::Result<async_nats::Subscriber> {
        let client = self.nats().await?;
        let heard = client.subscribe(subject.to_owned()).await.map_err(io::Error::other)?;
        // An answer to what was sent later: the server has the subscription.
        client.request("$JS.API.INFO", "".into()).await.map_err(io::Error::other)?;
        Ok(heard)
    }

    /// NATS dies, and comes back with an empty disk.
    pub async fn lose_streams(&mut self) {
        self.kill(Part::Nats);
        fs::remove_dir_all(self.folder.path().join("nats").join("store")).expect("its disk is emptied");
        self.restart(Part::Nats).await;
    }

    async fn nats(&self) -> io::Result<async_nats::Client> {
        async_nats::connect(format!("nats://127.0.0.1:{}", self.nats.port)).await.map_err(io::Error::other)
    }
}
