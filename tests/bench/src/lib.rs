//! The benchmark of Keyfleet: `scripts/bench`.
//!
//! - `compare` starts everything, runs the scenarios, prints the table and judges it by its gates.
//! - `load` sends requests and times the answers: one run, one report as JSON.
//! - `metronome` is the upstream of the scenario with many slow streams. Its chunks say when they left.
//! - `passthrough` is a bare proxy of axum and reqwest, to compare with.
//!
//! The upstream of all other scenarios is the simulator. What the programs tell each other stands here.

mod report;
mod stamp;

pub use report::{Percentiles, Report};
pub use stamp::{now_ns, stamp, stamps};

/// The model that every request asks for.
pub const MODEL: &str = "gemini-2.5-flash";

/// Where every request goes: the upstream and every proxy have it in the same place.
pub const PATH: &str = "/v1beta/openai/chat/completions";
