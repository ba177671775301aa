//! The decisions of Keyfleet, pure and deterministic: time and randomness are arguments, and a lint forbids clocks,
//! environment and I/O. Whatever went wrong can be replayed from what went in.
//!
//! What an upstream answer leads to, in order:
//!
//! 1. [`error_body`] reads it, in every form in which the upstream sends errors.
//! 2. [`outcome`] says what it means: whose state it concerns ([`outcome::Scope`]), why ([`outcome::Cause`]), and
//!    whether the request may try again ([`outcome::Retry`]).
//! 3. [`block`] says for how long the scope is left alone, [`gate`] is how a thread that chooses a key sees that, and
//!    [`health`] is what is left of it in a key's score.
//! 4. [`retry`] says what this request does next, and [`select`] which key it does it with.
//! 5. [`ledger`] is the coordinator's view: it folds what replicas report ([`message`]) into decisions for all of them.
//!
//! [`owner`] says which part of the state a scope belongs to, if it is divided.
//!
//! [`alert`] says what people are told of all that, and when.
//!
//! [`trace`] is how a request is recognised in what it led to.
//!
//! [`trust`] says whether a leader may believe what an earlier one stored.
//!
//! State stands at the unit to which the upstream counts it: quota at a project and model, credentials at a key,
//! overload at a model, throttling of an address at the way out, a bad request at nobody.

pub mod alert;
pub mod block;
pub mod error_body;
pub mod gate;
pub mod health;
pub mod id;
pub mod latency;
pub mod ledger;
pub mod message;
pub mod outcome;
pub mod owner;
pub mod quota;
pub mod retry;
pub mod select;
pub mod state;
pub mod time;
pub mod trace;
pub mod trust;
