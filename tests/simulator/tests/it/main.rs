//! The simulator from outside: what a gateway sees of it, byte for byte.

#[cfg(test)]
mod auth;
#[cfg(test)]
mod client;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod generation;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod process;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod storage;
#[cfg(test)]
mod tls;
