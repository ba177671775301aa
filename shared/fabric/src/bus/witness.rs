//! Who led last, written down apart from the store. A store that lost its newest writes may have lost a whole term,
//! and cannot tell; what was granted in that term would be granted again.

use async_trait::async_trait;
use keyfleet_core::trust::TermId;
use parking_lot::Mutex;

use super::Unreachable;

/// Remembers the last term, as long as the bus does.
#[async_trait]
pub trait Witness: Send + Sync + std::fmt::Debug {
    /// Writes a term down before its leader acts, unless one of the same or a later epoch was begun. The last one before
    /// it is returned; `None`: none is known.
    ///
    /// After an error it may have been written or not. A leader whose term was not written must not act.
    async fn begin(&self, term: &TermId) -> Result<Option<TermId>, Unreachable>;
}

/// The witness of one process.
#[derive(Debug, Default)]
pub struct LocalWitness(Mutex<Option<TermId>>);

#[async_trait]
impl Witness for LocalWitness {
    async fn begin(&self, term: &TermId) -> Result<Option<TermId>, Unreachable> {
        let mut last = self.0.lock();
        let before = last.clone();
        if before.as_ref().is_none_or(|before| before.epoch < term.epoch) {
            *last = Some(term.clone());
        }
        Ok(before)
    }
}
