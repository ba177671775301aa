//! As much of a Redis client as a judge needs: what a coordinator wrote is read without its code.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::judge::{Count, Counts};

/// The keys of the first partition under the usual prefix.
const KEYS: &str = "keyfleet:v1:{0}:";

/// A Redis at a port of this machine. Each question has a connection of its own.
#[derive(Debug, Clone, Copy)]
pub struct Redis {
    port: u16,
}

impl Redis {
    pub(super) fn at(port: u16) -> Self {
        Self { port }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// One command. Of the answer, every text in it, in order; an error of the server is an error.
    pub async fn ask(&self, command: &[&str]) -> io::Result<Vec<String>> {
        let mut wire = BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await?);
        let part = |part: &&str| format!("${}\r\n{part}", part.len());
        let parts: Vec<_> = command.iter().map(part).collect();
        let request = format!("*{}\r\n{}\r\n", command.len(), parts.join("\r\n"));
        wire.write_all(request.as_bytes()).await?;
        let (mut texts, mut missing) = (Vec::new(), 1_usize);
        while missing > 0 {
            missing -= 1;
            let mut line = String::new();
            wire.read_line(&mut line).await?;
            let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = || rest.parse().unwrap_or(0_usize);
            match kind {
                "*" => missing += length(),
                "$" if rest.starts_with('-') => texts.push(String::new()),
                "$" => {
                    let mut text = vec![0; length() + 2];
                    wire.read_exact(&mut text).await?;
                    text.truncate(length());
                    texts.push(String::from_utf8_lossy(&text).into_owned());
                }
                "-" => return Err(io::Error::other(rest.to_owned())),
                _ => texts.push(rest.to_owned()),
            }
        }
        Ok(texts)
    }

    /// Listens to everything that the server is told, from when this returns.
    pub async fn monitor(&self) -> io::Result<Monitor> {
        let mut wire = BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await?);
        wire.write_all(b"MONITOR\r\n").await?;
        let mut line = String::new();
        wire.read_line(&mut line).await?;
        let told = Arc::<Mutex<Vec<_>>>::default();
        let notes = told.clone();
        let task = tokio::spawn(async move {
            let mut line = String::new();
            while wire.read_line(&mut line).await.is_ok_and(|n| n > 0) {
                notes.lock().unwrap_or_else(PoisonError::into_inner).extend(command(&line));
                line.clear();
            }
        });
        Ok(Monitor { told, task: task.abort_handle() })
    }

    /// The epoch and the revision of the leader, and how many commits there were; zeros when nobody ever led.
    pub async fn position(&self) -> io::Result<[u64; 3]> {
        let fields = self.ask(&["HMGET", &format!("{KEYS}meta"), "epoch", "rev", "commit"]).await?;
        Ok([0, 1, 2].map(|at| fields.get(at).and_then(|text| text.parse().ok()).unwrap_or_default()))
    }

    /// The position in the stream of reports up to which all are applied.
    pub async fn cursor(&self) -> io::Result<u64> {
        let fields = self.ask(&["HGET", &format!("{KEYS}meta"), "cursor"]).await?;
        Ok(fields.first().and_then(|text| text.parse().ok()).unwrap_or_default())
    }

    /// What coordinators have counted, by key and model.
    pub async fn totals(&self) -> io::Result<Counts> {
        let fields = self.ask(&["HGETALL", &format!("{KEYS}totals")]).await?;
        let mut counts = BTreeMap::new();
        for pair in fields.chunks_exact(2) {
            let (key, model): (String, String) = serde_json::from_str(&pair[0])?;
            let value: Value = serde_json::from_str(&pair[1])?;
            let count = |name: &str| value[name].as_u64().unwrap_or_default();
            counts.insert((key, model), Count { answered: count("answered"), failed: count("failed") });
        }
        Ok(counts)
    }
}

/// Hears what a Redis is told, until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    told: Arc<Mutex<Vec<(u16, String)>>>,
    task: AbortHandle,
}

impl Monitor {
    /// Every command so far, with the port from which it came.
    pub fn told(&self) -> Vec<(u16, String)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `+TIME [DB HOST:PORT] "COMMAND" …`; what a script does in turn comes from nowhere.
fn command(line: &str) -> Option<(u16, String)> {
    let (from, command) = line.trim_end().split_once(" [")?.1.split_once("] ")?;
    Some((from.rsplit_once(':')?.1.parse().ok()?, command.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitored_command_says_where_it_came_from() {
        let told = command("+1764.5 [0 127.0.0.1:54321] \"GET\" \"a ] b\"\r\n");
        assert_eq!(told, Some((54_321, "\"GET\" \"a ] b\"".to_owned())));
        assert_eq!(command("+1764.5 [0 lua] \"GET\" \"a\"\r\n"), None);
    }
}
