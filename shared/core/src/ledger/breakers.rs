//! Breakers of models. Replicas open them by what they see and close them by what probes show; the coordinator keeps
//! what they found for all, and spaces the probes.

use std::time::Duration;

use super::{Ledger, Notes};
use crate::block::{self, Block};
use crate::message::Subject;
use crate::outcome::Cause;
use crate::time::Now;

/// A breaker whose probe nobody asked for in so long is forgotten: nobody asks for the model any more.
const UNASKED: Duration = Duration::from_mins(10);

impl Ledger {
    /// A replica's breaker opened, or a probe failed.
    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    pub(super) fn tripped(
        &mut self,
        subject: Subject,
        cause: Cause,
        recovery: Duration,
        (draw, probe): (u32, bool),
        at: Now,
        now: Now,
        notes: &mut Notes,
    ) {
        let level = self.next_level(&subject, probe, at);
        let window = block::tripped(recovery, level, draw);
        self.block(subject, Block::begin(cause, window, level, at.utc), probe, now, notes);
    }

    /// Closes breakers of models that nobody asks for.
    pub(super) fn forget_breakers(&mut self, now: Now, notes: &mut Notes) {
        let unasked = self.blocks.iter().filter(|(subject, block)| {
            let since = block.probe_at.unwrap_or(block.since);
            matches!(subject, Subject::Model(..)) && since.plus(UNASKED) <= now.utc
        });
        let unasked: Vec<_> = unasked.map(|(subject, _)| subject.clone()).collect();
        for subject in unasked {
            self.clear(&subject, now, notes);
        }
    }
}
