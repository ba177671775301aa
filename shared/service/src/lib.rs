//! Process plumbing that is the same in every program: configuration, logs, reload, shutdown.
//!
//! [`config`] turns file, environment and arguments into domain types or into a list of every mistake; [`reload`] says
//! when to do so again, and [`follow`] does. [`logging`] writes events and one line per request. [`shutdown`] is how a
//! process ends: at once for a task that died or a second signal, in order for the first one.

pub mod client;
pub mod clock;
pub mod config;
pub mod connect;
pub mod follow;
pub mod healthcheck;
pub mod logging;
pub mod policy;
pub mod reload;
pub mod shutdown;
pub mod target;
