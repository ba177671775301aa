//! How a term begins, and what keeps it alive.

use std::time::Duration;

use keyfleet_core::ledger::{Ledger, Saved, Term};
use keyfleet_core::message::Beat;
use keyfleet_core::owner::Partition;
use keyfleet_core::state::{Image, Meta};
use keyfleet_core::trust::{Found, Mark, TermId, Trust};
use keyfleet_fabric::bus::local::is_of_process;
use keyfleet_fabric::bus::{Position, Unreachable};
use keyfleet_fabric::store::{Claim, Lead, StoreError};
use keyfleet_service::clock;

use super::commit::Batch;
use super::{Driver, Reign};
use crate::alerts::Watch;
use crate::leadership::{RENEW, STOP_AFTER, Won};
use crate::status::Role;

/// How often gateways hear where the leader stands.
const BEAT: Duration = Duration::from_millis(250);

/// Why a term did not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBegun {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("NATS: {0}")]
    Bus(#[from] Unreachable),
    #[error("epoch {0} was used already: the store has lost a term")]
    EpochUsed(u64),
    #[error("the first commit was not written")]
    NotWritten,
}

impl<'d> Reign<'d> {
    /// Takes over what is stored, and writes down that it did: from then on nobody else can.
    pub(super) async fn begin(driver: &'d mut Driver, won: Won) -> Result<Self, NotBegun> {
        let store = driver.candidate.store.clone();
        let image = store.load().await?;
        let identity = store.identity().await?;
        let position = driver.bus.lead(&image.meta.stream, image.meta.cursor).await?;
        driver.doubt(&won, &image.meta, &identity).await?;
        if driver.suspect {
            tracing::warn!(
                "the store may have lost writes: no quota of a minute is granted until that cannot matter, for 70 seconds"
            );
        }
        let me = &driver.candidate.holder;
        let another = TermId::parse(&image.meta.author).filter(|author| author.holder != *me);
        // A process that is its own coordinator has nobody who could have led instead.
        let another = another.filter(|_| driver.post.address.is_some());
        let alerts = Watch::resume(&image, another.map(|author| author.epoch), clock::mono());
        alerts.leave(&driver.left);
        let (mut saved, unread) = Saved::read(&image);
        if unread > 0 {
            tracing::warn!(entries = unread, "some of the stored state cannot be read and is left out");
        }
        let old = driver.old.clone().filter(|_| image.entries.is_empty());
        let takes_over = old.is_some();
        if let Some(old) = old {
            saved = old;
        }
        let Image { meta, .. } = image;
        let now = clock::now();
        let epoch = won.meta.epoch;
        let term = Term {
            epoch,
            time: meta.time,
            blind_until: meta.blind_until,
            suspect: driver.suspect,
            partition: Partition::default(),
        };
        let began = if driver.suspect { 0 } else { saved.rev };
        let roster = crate::roster(&driver.config.borrow_and_update());
        let (ledger, mut first) = Ledger::new(roster, saved, term, now);
        let author = driver.candidate.term(epoch).to_string();
        let meta = Meta { epoch, leader: won.meta.leader, store: identity, author, ..follow(meta, position) };
        driver.candidate.above = epoch;
        let mut reign = Self {
            driver,
            ledger,
            meta,
            began,
            renewed: won.claimed,
            renew_at: now.mono,
            scan_at: now.mono,
            beat_at: now.mono,
            alerts,
            bus_down: false,
        };
        if takes_over {
            first.entries.extend(reign.ledger.all_entries(now));
        }
        let (at_work, lost) = (reign.ledger.holders(), reign.alerts.machine.lost());
        reign.driver.post.inherits(at_work, lost);
        // Of what it decides the first beat tells, which also says that decisions of earlier leaders hold.
        reign.commit(vec![first]).await.map_err(|()| NotBegun::NotWritten)?;
        reign.driver.suspect = false;
        reign.driver.old = None;
        reign.driver.post.note(|pulse| {
            pulse.takeovers += 1;
            pulse.epoch = reign.meta.epoch;
            pulse.role = Role::Leading;
        });
        tracing::info!(epoch = reign.meta.epoch, "leading");
        Ok(reign)
    }

    /// Renews the claim and tells gateways where the leader stands, each when it is time.
    pub(super) async fn keep_alive(&mut self) -> Result<(), ()> {
        let now = clock::mono();
        if now >= self.beat_at {
            self.beat_at = now.plus(BEAT);
            self.show();
            let beat = Beat { epoch: self.meta.epoch, rev: self.ledger.rev(), began: self.began };
            let beaten = self.driver.bus.beat(beat).await;
            self.bus_down = matches!(beaten, Err(Unreachable::Cut(_) | Unreachable::Silent));
            if let Err(error) = beaten {
                tracing::debug!(%error, "nobody hears where the leader stands");
            }
        }
        if now >= self.renew_at {
            self.renew().await?;
            self.recognise().await?;
        }
        Ok(())
    }

    /// A store that was started anew, or a copy that took its place, is taken over like any other: what begins a term
    /// finds out whether it lost something.
    async fn recognise(&mut self) -> Result<(), ()> {
        match self.driver.candidate.store.identity().await {
            Ok(identity) if identity != self.meta.store => {
                tracing::info!("another server answers for the store, or it was started anew");
                Err(())
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn renew(&mut self) -> Result<(), ()> {
        let now = clock::now();
        self.renew_at = now.mono.plus(RENEW);
        let clock = Some((self.ledger.time(now), now.utc));
        let claim = Claim { clock, ..self.driver.candidate.claim(self.meta.epoch) };
        let lead = self.driver.candidate.store.lead(&claim).await;
        self.driver.post.note(|pulse| pulse.store_up = lead.is_ok());
        match lead {
            Ok(Lead::Mine(_)) => self.renewed = now.mono,
            Ok(Lead::Theirs { epoch, .. }) => {
                self.driver.candidate.above = self.driver.candidate.above.max(epoch);
                tracing::warn!(epoch, "another leads");
                return Err(());
            }
            Ok(Lead::Nobody) => {
                tracing::warn!("the lead has lapsed");
                return Err(());
            }
            Err(error) => tracing::debug!(%error, "the lead could not be renewed"),
        }
        if clock::mono().since(self.renewed) > STOP_AFTER {
            tracing::warn!("the store does not answer: this coordinator stops leading");
            return Err(());
        }
        Ok(())
    }

    /// Reports go on elsewhere than after the last one that was taken, perhaps.
    pub(super) fn moved(&mut self, position: Position, batch: &mut Batch) {
        let cursor = batch.cursor.unwrap_or(self.meta.cursor);
        self.meta = follow(Meta { cursor, ..std::mem::take(&mut self.meta) }, position);
        batch.cursor = Some(self.meta.cursor);
    }
}

impl Driver {
    /// Writes the term down with the witness, and finds out whether the store has everything that was acknowledged.
    /// What it may lack is not forgotten before its consequence is stored.
    async fn doubt(&mut self, won: &Won, stored: &Meta, identity: &str) -> Result<(), NotBegun> {
        let term = self.candidate.term(won.meta.epoch);
        let before = self.witness.begin(&term).await?;
        let author = TermId::parse(&stored.author);
        let found = Found {
            term: &term,
            commit: stored.commit,
            author: author.as_ref(),
            same_server: stored.store == identity,
            before: before.as_ref(),
            judged: self.candidate.judged.as_ref(),
            known: self.candidate.known,
        };
        let trust = found.trust();
        self.suspect |= trust != Trust::Whole;
        if let Trust::EpochUsed(used) = trust {
            self.candidate.above = self.candidate.above.max(used);
            return Err(NotBegun::EpochUsed(used));
        }
        self.candidate.judged = Some(term);
        if trust == Trust::Whole {
            let epoch = author.map_or(0, |author| author.epoch);
            self.candidate.known = Mark { epoch, commit: stored.commit };
        }
        Ok(())
    }
}

/// Goes on in the stream of reports as it stands now.
fn follow(meta: Meta, position: Position) -> Meta {
    let cursor = resume(&meta, &position);
    Meta { cursor, stream: position.stream, ..meta }
}

/// Where reading goes on, and what is said if that is not where it ended.
pub(super) fn resume(meta: &Meta, position: &Position) -> u64 {
    let Position { stream, before, last } = position;
    if *stream != meta.stream {
        // That of a process ends with it.
        if !meta.stream.is_empty() && !is_of_process(&meta.stream) {
            tracing::warn!(stream, "the stream of reports was made anew: it is read from its beginning");
        }
        return *before;
    }
    if *before > meta.cursor {
        let removed = before - meta.cursor;
        tracing::warn!(removed, "reports were removed from the stream before they were applied");
    } else if *last < meta.cursor {
        tracing::warn!("the stream of reports has lost its end");
    }
    meta.cursor.min(*last).max(*before)
}
