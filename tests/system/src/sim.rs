//! The simulated upstream of a scenario, and the configuration of a gateway in front of it.

use std::time::{Duration, Instant};

use keyfleet_simulator::{Received, Rule, Simulator, Stats, World};
use serde_json::{Value, json};

/// A simulated Gemini that stops when it is dropped.
#[derive(Debug)]
pub struct Sim(Simulator);

impl Sim {
    /// Starts with these projects, keys, limits and latencies.
    pub async fn start(world: World) -> Self {
        Self(Simulator::start(world).await.expect("a world without contradictions"))
    }

    /// Its origin, without a slash at the end.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// The certificate to trust, as PEM, of a world with TLS.
    pub fn certificate(&self) -> &str {
        self.0.certificate().expect("a world with TLS")
    }

    /// Moves its clock forward.
    pub fn advance_ms(&self, by: i64) {
        self.0.clock().advance_ms(by);
    }

    /// The secrets of its keys.
    pub fn secrets(&self) -> Vec<String> {
        self.0.world().secrets()
    }

    /// Replaces the faults.
    pub fn rules(&self, rules: Vec<Rule>) {
        self.0.clear_rules();
        for rule in rules {
            assert!(self.0.add_rule(rule), "too many rules");
        }
    }

    /// Changes projects, keys or answers while it runs; quotas begin anew.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.0.world();
        change(&mut world);
        self.0.set_world(world).expect("a world without contradictions");
    }

    /// Every request received since the start or the last [`Sim::forget`].
    pub fn log(&self) -> Vec<Received> {
        self.0.log()
    }

    /// The zero of [`Received::mono_us`].
    pub fn started(&self) -> Instant {
        self.0.started()
    }

    /// Waits until some request in the log fulfils the condition; whether it did so in time.
    pub async fn saw(&self, within: Duration, condition: impl Fn(&Received) -> bool) -> bool {
        self.0.saw(within, condition).await
    }

    /// Forgets the requests received.
    pub fn forget(&self) {
        self.0.clear_log();
    }

    /// Totals since the start.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// A gateway's configuration: one group with every key, each in its project, and the state file off.
    ///
    /// A gateway keeps to the limits that a 429 states, and it counts them by the minute, as Gemini does. Where this
    /// world's "minute" is shorter, it would use less than this world allows, so it does not learn them there.
    pub fn config(&self) -> Value {
        let world = self.0.world();
        let keys: Vec<_> = world
            .keys
            .into_iter()
            .map(|key| json!({"key": key.secret, "id": key.id, "project": key.project}))
            .collect();
        json!({
            "server": {"state_file": ""},
            "quota": {"learn_limits": world.window_ms == World::default().window_ms},
            "groups": [{
                "name": "pool",
                "api_keys": keys,
                "target_url": format!("{}/v1beta/openai/", self.url()),
            }],
        })
    }
}
