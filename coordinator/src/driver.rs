//! Between the ledger and the world: messages in, effects out. No decisions here.

use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::ledger::{Effect, Event, Ledger};
use keyfleet_core::time::Mono;
use keyfleet_fabric::file::StateFile;
use keyfleet_fabric::local::{CoordinatorEnd, Request};
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::probe::{Prober, Verdict, Verdicts};

/// Changes are written together: a burst of blocks is one write.
const SAVE_DELAY: Duration = Duration::from_millis(500);

pub(crate) struct Driver {
    config: watch::Receiver<Arc<Config>>,
    gateways: CoordinatorEnd,
    state: StateFile,
    prober: Prober,
    ledger: Ledger,
    save_at: Mono,
    scan_at: Mono,
}

impl Driver {
    pub(crate) fn new(
        config: watch::Receiver<Arc<Config>>,
        gateways: CoordinatorEnd,
        state: StateFile,
        prober: Prober,
    ) -> Self {
        let roster = crate::roster(&config.borrow());
        let ledger = Ledger::new(roster, state.load(), clock::now());
        Self { config, gateways, state, prober, ledger, save_at: Mono::FOREVER, scan_at: clock::mono() }
    }

    pub(crate) async fn run(mut self, mut probes: Verdicts, shutdown: CancellationToken) {
        loop {
            let wake = self.ledger.next_timeout().min(self.save_at).min(self.scan_at);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                request = self.gateways.next() => match request {
                    Some(request) => self.request(request),
                    None => break,
                },
                Some(verdict) = probes.recv() => self.verdict(verdict),
                changed = self.config.changed() => match changed {
                    Ok(()) => {
                        let roster = crate::roster(&self.config.borrow_and_update());
                        self.feed(Event::Roster(roster));
                    }
                    Err(_) => break,
                },
                () = tokio::time::sleep_until(clock::instant(wake)) => self.timers().await,
            }
        }
        while let Some(request) = self.gateways.try_next() {
            self.request(request);
        }
        self.save().await;
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Report(report) => self.feed(Event::Report(report)),
            Request::Recheck(key) => self.feed(Event::Recheck(key)),
            Request::Snapshot(reply) => {
                // The asker may have gone; then nobody needs it.
                let _ = reply.send(self.ledger.snapshot(clock::now()));
            }
        }
    }

    fn verdict(&mut self, Verdict { key, outcome, draw }: Verdict) {
        self.feed(Event::Probed { key, outcome, draw });
    }

    async fn timers(&mut self) {
        let now = clock::mono();
        if now >= self.scan_at {
            let interval = self.config.borrow().monitoring.health_check_interval;
            self.scan_at = now.plus(interval);
            self.feed(Event::Scan);
        }
        if now >= self.ledger.next_timeout() {
            self.feed(Event::Tick);
        }
        if now >= self.save_at {
            self.save().await;
        }
    }

    fn feed(&mut self, event: Event) {
        let now = clock::now();
        for effect in self.ledger.apply(event, now) {
            match effect {
                Effect::Publish(delta) => self.gateways.publish(delta),
                Effect::Save => self.save_at = self.save_at.min(now.mono.plus(SAVE_DELAY)),
                Effect::Probe(key) => self.prober.ask(key),
            }
        }
    }

    /// Messages wait meanwhile, but requests do not: this is not their thread.
    async fn save(&mut self) {
        self.save_at = Mono::FOREVER;
        let (state, saved) = (self.state.clone(), self.ledger.save(clock::now()));
        let done = tokio::task::spawn_blocking(move || state.save(&saved)).await;
        if let Err(error) = done.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
            tracing::warn!(%error, "the state file cannot be written: blocks and scores would not survive a restart");
            self.save_at = clock::mono().plus(Duration::from_secs(30));
        }
    }
}
