//! The contract of state stores, run against all of them, and what only one of them promises.

#[cfg(test)]
mod store {
    mod file;
    mod memory;
    mod model;
    mod redis;
    mod scenarios;
    mod server;
}
