//! Scenarios of the whole product. See the library of this package for what they are told in.
#![expect(clippy::expect_used, reason = "a scenario that cannot go on fails")]

mod aborted;
mod chart;
mod cluster;
mod compose;
mod heartbeat;
mod install;
mod kube;
mod lifecycle;
mod metrics;
mod outcomes;
mod quota;
mod readme;
mod resources;
mod sdk_matrix;
mod secrets;
mod smoke;
mod storm;
mod streams;
mod supervised;
mod surface;
mod traces;
