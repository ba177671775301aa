//! What an operator does to a gateway, and what its clients notice of it.

mod commands;
mod drain;
mod memory;
mod reload;
mod state;
mod unread;
mod waiting;

use std::collections::HashSet;
use std::time::Duration;

use keyfleet_simulator::Latency;
use keyfleet_tests::{Gateway, Sim};
use serde_json::{Value, json};

const MODEL: &str = "gemini-2.5-flash";
/// Far more than anything here takes on an idle machine.
const SOON: Duration = Duration::from_secs(15);
/// Slow enough to act while it runs.
const SLOW: Latency = Latency::Fixed { ttft_ms: 5, gap_ms: 100 };

/// The simulator's configuration with only these keys of it.
fn with_keys(sim: &Sim, ids: &[&str]) -> Value {
    let mut config = sim.config();
    let keys = config["groups"][0]["api_keys"].as_array_mut().expect("a list of keys");
    keys.retain(|key| ids.iter().any(|id| key["id"] == *id));
    config
}

/// The keys that model calls have used since the log was emptied. The prober's calls do not count.
fn keys_used(sim: &Sim) -> HashSet<String> {
    let log = sim.log().into_iter().filter(|request| request.method == "POST");
    log.filter_map(|request| request.key_id).collect()
}

fn chat(stream: bool) -> Value {
    json!({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Say something."}]})
}

/// A stream that has begun.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(gateway: &Gateway, path: &str, body: &Value) -> Self {
        let request = gateway.client().request(reqwest::Method::POST, path).bearer_auth("placeholder");
        let response = request.body(body.to_string()).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let mut stream = Self { response, text: String::new() };
        stream.next().await;
        stream
    }

    async fn next(&mut self) -> bool {
        let chunk = self.response.chunk().await.expect("the body ends as it should");
        self.text += &String::from_utf8_lossy(chunk.as_deref().unwrap_or_default());
        chunk.is_some()
    }

    /// Everything up to its proper end.
    async fn rest(mut self) -> String {
        while self.next().await {}
        self.text
    }
}
