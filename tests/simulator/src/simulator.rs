//! The handle to a running simulator.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::connection;
use crate::log::Received;
use crate::rule::Rule;
use crate::state::{State, Stats};
use crate::world::World;

/// A running simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    state: Arc<State>,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Simulator {
    /// Listens and serves in the current tokio runtime. A world that contradicts itself is `InvalidInput`.
    pub async fn start(world: World) -> io::Result<Self> {
        let wanted = world.listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let state = Arc::new(State::new(world)?);
        let listener = TcpListener::bind(wanted).await?;
        let address = listener.local_addr()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(connection::serve(Arc::clone(&state), listener, stop.clone(), tasks.clone()));
        Ok(Self { state, address, stop, tasks })
    }

    /// `http://127.0.0.1:PORT`, or with `https`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("{}://{}", self.state.scheme(), self.address)
    }

    /// The certificate to trust, as PEM, if the world has TLS.
    pub fn certificate(&self) -> Option<&str> {
        self.state.tls.as_ref().map(|tls| tls.certificate.as_str())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// When it started: the zero of [`Received::mono_us`].
    pub fn started(&self) -> Instant {
        self.state.started
    }

    /// Every request in the log, in order of arrival.
    pub fn log(&self) -> Vec<Received> {
        self.state.log.all()
    }

    /// Empties the log.
    pub fn clear_log(&self) {
        self.state.log.clear();
    }

    /// Waits until some request in the log fulfils the condition; whether it did so in time.
    pub async fn saw(&self, within: Duration, condition: impl Fn(&Received) -> bool) -> bool {
        self.until(within, |simulator| simulator.state.log.any(&condition)).await
    }

    /// Waits until a condition on the simulator holds, asked again after every change of the log and whenever a
    /// connection closes; whether it held in time.
    pub async fn until(&self, within: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let wait = async {
            loop {
                let changed = self.state.log.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if condition(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, wait).await.is_ok()
    }

    /// Adds a rule behind those that are there. Beyond ten thousand it is not added.
    pub fn add_rule(&self, rule: Rule) -> bool {
        self.state.rules.add(rule)
    }

    /// Removes every rule.
    pub fn clear_rules(&self) {
        self.state.rules.clear();
    }

    /// The virtual clock.
    pub fn clock(&self) -> Clock {
        self.state.clock.clone()
    }

    /// Replaces the world (all but `listen` and `tls`). Quota counters begin anew; log, clock, rules and files stay.
    pub fn set_world(&self, world: World) -> io::Result<()> {
        self.state.set_world(world)
    }

    /// The world as it is now.
    pub fn world(&self) -> World {
        self.state.pool().world.clone()
    }

    /// Totals and quota buckets.
    pub fn stats(&self) -> Stats {
        self.state.stats()
    }

    /// Stops listening, drops every connection, and waits until they are gone.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
