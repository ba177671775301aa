//! What goes wrong, and how often.

use std::time::Duration;

use keyfleet_core::quota::Terms;

use super::{Event, TERMS, WALL_OFF, World};

/// How the world misbehaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// The chance that a message is lost.
    loss: f64,
    /// The chance that it comes twice.
    twice: f64,
    /// Most messages take less than this, in ms.
    delay: u64,
    /// The chance that one takes up to `long_delay`.
    late: f64,
    long_delay: u64,
    /// The mean time between troubles of processes and store, in ms; 0: none.
    trouble_every: u64,
    /// The store may lose what was written last: less than so many writes.
    lost_writes: usize,
    /// Nothing else is in trouble than the store.
    store_only: bool,
    /// The chance that the witness writes a term and its answer is lost.
    pub(crate) unanswered: f64,
    /// How long it takes at most to connect to the upstream, in ms.
    pub(crate) connecting: u64,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        loss: 0.0,
        twice: 0.0,
        delay: 3,
        late: 0.0,
        long_delay: 0,
        trouble_every: 0,
        lost_writes: 0,
        store_only: false,
        unanswered: 0.0,
        connecting: 100,
    };
    pub(crate) const ALL: Self = Self {
        loss: 0.05,
        twice: 0.05,
        delay: 40,
        late: 0.02,
        long_delay: 2_000,
        trouble_every: 8_000,
        lost_writes: 0,
        store_only: false,
        unanswered: 0.0,
        connecting: 100,
    };
    /// Most answers come later than a lot lives; see [`Faults::terms`].
    pub(crate) const LONG_DELAYS: Self =
        Self { loss: 0.0, late: 0.5, long_delay: 15_000, trouble_every: 60_000, ..Self::ALL };
    pub(crate) const LOST_WRITES: Self = Self { lost_writes: 12, ..Self::ALL };
    /// The store may lose whole terms.
    pub(crate) const LOST_TERMS: Self = Self { lost_writes: 120, trouble_every: 3_000, ..Self::ALL };
    /// The same, and leaders are not told who led before them.
    pub(crate) const UNANSWERED: Self = Self { unanswered: 0.3, trouble_every: 8_000, ..Self::LOST_TERMS };
    /// The store is started anew again and again, and loses nothing.
    pub(crate) const RESTARTS: Self = Self { store_only: true, ..Self::ALL };

    /// Many permits are older than the jitter allows, and gateways stand still meanwhile.
    pub(crate) const SLOW_CONNECTIONS: Self = Self { connecting: 3_000, trouble_every: 3_000, ..Self::ALL };

    /// Where answers take long, gateways wait for them longer than a lot lives.
    pub(crate) fn terms(&self) -> Terms {
        let timeout = if self.long_delay > 10_000 { Duration::from_secs(30) } else { TERMS.timeout };
        Terms { timeout, ..TERMS }
    }

    /// How many writes the store may lose at most.
    pub(crate) fn lost_writes(&self) -> usize {
        self.lost_writes
    }
}

impl World {
    /// Sends a message between gateways and coordinators.
    pub(crate) fn transmit(&mut self, event: impl Fn() -> Event) {
        self.send_over(self.setup.faults, event);
    }

    /// Sends a message to or from the store. It fails as often, but is never as late.
    pub(crate) fn transmit_to_store(&mut self, event: impl Fn() -> Event) {
        let faults = self.setup.faults;
        self.send_over(
            Faults { late: faults.late.min(0.02), long_delay: faults.long_delay.min(2_000), ..faults },
            event,
        );
    }

    fn send_over(&mut self, faults: Faults, event: impl Fn() -> Event) {
        if self.rng.f64() < faults.loss {
            return;
        }
        let copies = if self.rng.f64() < faults.twice { 2 } else { 1 };
        for _ in 0..copies {
            let late = self.rng.f64() < faults.late;
            let most = if late { faults.long_delay } else { faults.delay };
            let delay = self.rng.u64(0..=most);
            self.after(delay, event());
        }
    }

    /// Something breaks, and the next thing will.
    pub(crate) fn trouble(&mut self) {
        let faults = self.setup.faults;
        if faults.trouble_every == 0 {
            return;
        }
        let pause = if self.rng.bool() { self.rng.u64(1..800) } else { self.rng.u64(800..30_000) };
        let gateway = self.rng.usize(0..self.gateways.len());
        let coordinator = self.rng.usize(0..self.coordinators.len());
        match if faults.store_only { 9 } else { self.rng.u32(0..9) } {
            0 => self.restart_gateway(gateway),
            1 => self.leave(gateway),
            2 => self.gateways[gateway].process.paused_until = self.now + pause,
            3 => self.restart_coordinator(coordinator),
            4 | 5 => self.coordinators[coordinator].process.paused_until = self.now + pause,
            6 => {
                let wall = self.rng.i64(-WALL_OFF..=WALL_OFF);
                self.coordinators[coordinator].process.wall = wall;
            }
            _ => {
                let lost = self.rng.usize(0..faults.lost_writes.max(1));
                let away = if self.rng.bool() { 0 } else { self.rng.u64(0..6_000) };
                self.store.fail_over(lost, self.now + away);
            }
        }
        let next = self.rng.u64(1..=2 * faults.trouble_every);
        self.after(next, Event::Trouble);
    }
}
