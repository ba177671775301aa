//! What every bus promises, tried on each of them, and what only NATS can break.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario that cannot go on has failed"
)]

mod cluster;
mod login;
mod nats;
mod proxy;
mod scenarios;
mod server;
mod traces;
mod witness;
mod world;
