//! Process plumbing that is the same in every program: configuration, logs, reload, shutdown.
//!
//! [`config`] turns file, environment and arguments into domain types or into a list of every mistake; [`reload`] says
//! when to do so again, and [`follow`] does. [`logging`] writes events and one line per request. [`program`] frames
//! a process, and [`shutdown`] is how it ends: at once for a task that died or a second signal, in order for the first.
//! [`supervisor`] tells all that to whoever started the process.
//! [`connect`] opens what several processes share. [`exposition`] is how figures reach a scraper, [`telemetry`] sends
//! spans to a collector, if there is one.

pub mod client;
pub mod clock;
pub mod config;
pub mod connect;
pub mod exposition;
pub mod follow;
pub mod healthcheck;
pub mod logging;
pub mod policy;
pub mod program;
pub mod reach;
pub mod reload;
pub mod shutdown;
pub mod supervisor;
pub mod target;
pub mod telemetry;
