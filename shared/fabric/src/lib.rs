//! How gateways and the coordinator reach each other, and where the state that outlives them is kept.
//!
//! In one process, [`local`] carries messages through bounded channels and [`file`](mod@file) keeps the state in
//! one file. Messages are those of `keyfleet_core::message`, so nothing above this crate knows how they travel.

pub mod file;
pub mod local;
