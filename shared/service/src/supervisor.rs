//! What the service manager is told that started this process, where one did: that it serves, reads its configuration
//! again, ends, and every so often that it is not stuck. The protocol is systemd's: datagrams to `NOTIFY_SOCKET`.
//!
//! Everything here may be called always; without a manager it does nothing. A manager that does not read loses messages
//! rather than stop us.

mod link;

use std::sync::LazyLock;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::link::Link;

static LINK: LazyLock<Option<Link>> = LazyLock::new(Link::of_environment);

/// How often readiness is looked at before it is told.
const LOOK: Duration = Duration::from_millis(50);

/// Tells the manager as soon as requests are answered, and until then why they are not: `why` says that, or nothing when
/// they are. Returns when it is told, or at `stop`.
pub async fn tell_ready(why: impl Fn() -> Option<&'static str>, stop: CancellationToken) {
    let Some(link) = &*LINK else { return };
    let mut told = None;
    while !stop.is_cancelled() {
        let why = why();
        match why {
            None if link.ready() => return,
            Some(why) if told != Some(why) => link.waiting(why),
            _ => {}
        }
        told = why;
        tokio::time::sleep(LOOK).await;
    }
}

/// The configuration is being read again.
pub fn reloading() {
    if let Some(link) = &*LINK {
        link.reloading();
    }
}

/// It was read again, and is in force or not.
pub fn reloaded(in_force: bool) {
    if let Some(link) = &*LINK {
        link.reloaded(in_force);
    }
}

/// No new work begins.
pub fn stopping() {
    if let Some(link) = &*LINK {
        link.stopping();
    }
}

/// The end takes up to so long: the manager waits as long, whatever its own limit is.
pub fn ends_within(limit: Duration) {
    if let Some(link) = &*LINK {
        link.ends_within(limit);
    }
}

/// Shows that the runtime which polls this is not stuck, as long as it does. Every runtime has to have one.
pub async fn pulse() {
    if let Some(link) = &*LINK {
        link.pulse().await;
    }
}

/// Tells the manager so, if it wants to know, while every runtime with a [`pulse`] turns, this one included.
pub async fn watchdog() {
    if let Some(link) = &*LINK {
        link.watchdog().await;
    }
}
