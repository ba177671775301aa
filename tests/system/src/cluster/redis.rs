//! As much of a Redis client as a judge needs: what a coordinator wrote is read without its code.

use std::collections::BTreeMap;
use std::io;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

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

    /// The epoch and the revision of the leader, and how many commits there were; zeros when nobody ever led.
    pub async fn position(&self) -> io::Result<[u64; 3]> {
        let fields = self.ask(&["HMGET", &format!("{KEYS}meta"), "epoch", "rev", "commit"]).await?;
        Ok([0, 1, 2].map(|at| fields.get(at).and_then(|text| text.parse().ok()).unwrap_or_default()))
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
