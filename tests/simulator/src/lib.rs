//! A faithful Gemini: the upstream of Keyfleet's tests, demos and benchmarks, and the oracle of the tests.
//!
//! It serves both surfaces of the Gemini API as a gateway can observe them: authentication, framing, quota of projects
//! and models on a virtual clock, every known error body, files, caches, batches and other long-running work that belong
//! to projects, and faults by rule.
//! It generates nothing: answers are the same words again and again, and a prompt has a token for every four bytes of
//! the request's body.
//!
//! ```no_run
//! use keyfleet_simulator::{Action, Family, Limit, Rule, Simulator, World};
//!
//! # async fn example() -> std::io::Result<()> {
//! // Three projects with two keys each, ten requests per minute and model.
//! let gemini = Simulator::start(World::pool(3, 2).limited(&Limit::rpm(10))).await?;
//! gemini.add_rule(Rule::family(Family::Overloaded).model("gemini-2.5-pro").times(3));
//! gemini.add_rule(Rule::new(Action::StallMidStream { after_chunks: 2, ms: None }).key("k4"));
//! let base = format!("{}/v1beta/openai/", gemini.url());
//!
//! // … send requests to `base` with one of `World::secrets` …
//!
//! gemini.clock().advance_ms(60_000);
//! assert!(gemini.log().iter().all(|request| request.credentials.len() == 1));
//! assert!(gemini.stats().bucket("p1", "gemini-2.5-pro").max_requests_in_window <= 10);
//! gemini.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! The same controls are served over HTTP under `/__sim/`: `GET health`, `GET`/`PUT world`, `POST`/`DELETE rules`,
//! `GET`/`DELETE log`, `GET`/`POST clock` (`{"advance_ms": …}` or `{"now": …}`), `GET stats`.

mod answer;
mod ask;
mod auth;
mod batches;
mod brotli;
mod call;
mod chance;
mod clock;
mod compat;
mod connection;
mod control;
mod deadline;
mod embed;
mod entries;
mod errors;
mod exchange;
mod exhausted;
mod family;
mod faults;
mod files;
mod interactions;
mod jobs;
mod log;
mod models;
mod native;
mod operations;
mod pace;
mod pages;
mod pool;
mod quota;
mod reply;
mod resources;
mod route;
mod rule;
mod rules;
mod search;
mod simulator;
mod spend;
mod state;
mod store;
mod tls;
mod tools;
mod tuned;
mod videos;
mod world;

pub use auth::Credential;
pub use clock::Clock;
pub use family::Family;
pub use files::FileSpec;
pub use jobs::JobSpec;
pub use log::Received;
pub use quota::BucketStats;
pub use route::Surface;
pub use rule::{Action, Match, Nth, Rule};
pub use simulator::Simulator;
pub use state::Stats;
pub use world::{
    AnswerSpec, AuthSpec, Key, KeyState, Latency, Limit, Model, Project, ProjectState, QuotaMode, QuotaSpec,
    World,
};
