//! The decisions of Keyfleet, pure and deterministic: time and randomness are arguments.

pub mod block;
pub mod error_body;
pub mod gate;
pub mod health;
pub mod id;
pub mod ledger;
pub mod message;
pub mod outcome;
pub mod retry;
pub mod select;
pub mod time;
