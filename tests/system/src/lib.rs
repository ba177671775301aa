//! The whole product as its users meet it: gateway processes, simulated Geminis and official clients.
//!
//! The scenarios live in `it/`, in one test binary; this library is what they are told in. A gateway is the real binary
//! with a real configuration file in a folder of its own, the upstream is `keyfleet_simulator` in this process, and the
//! clients of the SDK matrix are the published packages, driven through `tests/sdk`. Run them with `scripts/test`, which
//! prepares those clients and builds the binary; without that a scenario fails and says so.
//!
//! A harness fails by panicking, with what it knows: that ends the scenario and stands in its output.
#![expect(clippy::panic, clippy::expect_used, reason = "a scenario that cannot go on fails")]

mod client;
mod cluster;
mod collector;
mod eventually;
mod figures;
mod fullest;
mod gateway;
pub mod helm;
mod kube;
mod load;
mod node;
mod sdk;
mod sim;
mod sink;
mod spill;
mod supervised;
mod times;
pub mod trial;

pub use client::{Answer, Client, read};
pub use cluster::balancer::Balancer;
pub use cluster::chaos::{self, Chaos};
pub use cluster::copy::RedisCopy;
pub use cluster::crowd::{Crowd, Front, Sample, Tally, Wish};
pub use cluster::judge::{self, Count, Counts};
pub use cluster::link::Link;
pub use cluster::redis::{Monitor, Redis};
pub use cluster::usage::{Machine, Usage};
pub use cluster::{Cluster, ClusterOptions, Part};
pub use collector::{Collector, Door, Rotel, Span};
pub use eventually::eventually;
pub use figures::Figures;
pub use fullest::{Use, uses};
pub use gateway::{Ended, Gateway, GatewayOptions, Program, binary, free_port, program};
pub use kube::api::ApiServer;
pub use kube::autoscaler::Autoscaler;
pub use kube::deployment::Deployment;
pub use kube::helm::{Helm, Said};
pub use kube::pod::{PodSpec, Probe};
pub use load::{load_during, steady_load};
pub use node::Node;
pub use sdk::{Call, Report, Retries, Sdk, SdkClient, gemini_cli};
pub use sim::Sim;
pub use sink::{Message, Sink};
pub use supervised::Supervised;
pub use times::Times;
