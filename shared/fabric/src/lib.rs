//! How gateways and the coordinator reach each other ([`bus`]), and where the state is kept that outlives them
//! ([`store`]). Each has two worlds: one process with nothing installed, and many with NATS and Redis. The suites in
//! `tests` are the contract that both worlds keep.
//!
//! Messages are those of `keyfleet_core::message`, so nothing above this crate knows how they travel.

pub mod bus;
pub mod store;
