//! What clients may send, in every form that they do, and what of it arrives upstream.

mod access;
mod bodies;
mod browsers;
mod egress;
mod groups;
mod headers;
mod https;
mod interactions;
mod operators;
mod paths;
mod prober;
mod reloads;
mod rewrites;
mod versions;

use std::time::Duration;

use keyfleet_simulator::Received;
use keyfleet_tests::{Answer, Gateway, Sim};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MODEL: &str = "gemini-2.5-flash";
/// Far more than anything here takes on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// The requests of clients: those of the prober list one model.
fn calls(sim: &Sim) -> Vec<Received> {
    let mut log = sim.log();
    log.retain(|request| !request.path_and_query.ends_with("models?pageSize=1"));
    log
}

fn chat() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Say something."}]})
}

fn contents() -> Value {
    json!({"contents": [{"role": "user", "parts": [{"text": "Say something."}]}]})
}

/// One request with these headers and no others of note.
async fn send(
    gateway: &Gateway,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let mut request = gateway.client().request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if !body.is_null() {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    keyfleet_tests::read(request).await.expect("an answer")
}

/// A connection on which anything can be written, for what HTTP clients do not do.
struct Wire(TcpStream);

impl Wire {
    async fn open(gateway: &Gateway) -> Self {
        let address = gateway.url().trim_start_matches("http://").to_owned();
        Self(TcpStream::connect(address).await.expect("a connection"))
    }

    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("it is written");
    }

    /// Reads until `end` has come or the peer has closed.
    async fn until(&mut self, end: &str) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        let reading = async {
            while !text.contains(end) {
                match self.0.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => text += &String::from_utf8_lossy(&buffer[..read]),
                }
            }
        };
        let ended = tokio::time::timeout(SOON, reading).await;
        assert!(ended.is_ok(), "{end:?} does not come: {text}");
        text
    }
}
