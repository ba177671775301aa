//! Whether what this process depends on answers: NATS, and Redis or the state file. Said in the log when it changes,
//! with what follows from it, and readable at any time.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// What is back sooner is not worth a line.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// What answers; `None`: this process has nothing of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// NATS.
    pub bus: Option<bool>,
    /// Redis, or the state file.
    pub store: Option<bool>,
}

/// One thing that may be away.
pub struct Dependency {
    /// Said when it is away: what is wrong, and what follows.
    pub away: String,
    /// Said when it is back.
    pub back: String,
    /// Whether it answers now.
    pub is_up: Box<dyn Fn() -> bool + Send>,
}

/// Looks from now on, until `stop`.
pub fn watch(
    bus: Option<Dependency>,
    store: Option<Dependency>,
    stop: CancellationToken,
) -> watch::Receiver<Reach> {
    let (tell, reach) = watch::channel(Reach { bus: look(bus.as_ref()), store: look(store.as_ref()) });
    tokio::spawn(async move {
        let (mut of_bus, mut of_store) = (Outage::default(), Outage::default());
        while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
            let bus = bus.as_ref().map(|bus| of_bus.look(bus));
            let store = store.as_ref().map(|store| of_store.look(store));
            tell.send_replace(Reach { bus, store });
        }
    });
    reach
}

fn look(dependency: Option<&Dependency>) -> Option<bool> {
    dependency.map(|dependency| (dependency.is_up)())
}

#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    said: bool,
}

impl Outage {
    fn look(&mut self, dependency: &Dependency) -> bool {
        let up = (dependency.is_up)();
        if up {
            if std::mem::take(&mut self.said) {
                tracing::info!("{}", dependency.back);
            }
            self.since = None;
            return true;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.said && since.elapsed() >= SAY_AFTER {
            self.said = true;
            tracing::warn!("{}", dependency.away);
        }
        false
    }
}
