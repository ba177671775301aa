//! What one attempt drew, from drawing it until the upstream has told what it was worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};

use keyfleet_core::quota::Dimension;
use keyfleet_core::quota::holder::{Drawn, Purse};
use keyfleet_core::time::Mono;
use parking_lot::Mutex;

use super::JITTER;

/// What one attempt drew, if anything counts it. When the last clone is dropped, what was not sent is given back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spend(Option<Arc<Drawing>>);

#[derive(Debug)]
struct Drawing {
    parts: Mutex<Parts>,
    sent: AtomicBool,
    lapsed: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) drawn: [Option<(Arc<Purse>, Drawn)>; Dimension::ALL.len()],
    pub(super) at: Mono,
}

impl Spend {
    pub(super) fn new(parts: Parts) -> Self {
        let counts = parts.drawn.iter().any(Option::is_some);
        Self(counts.then(|| {
            let (sent, lapsed) = (AtomicBool::new(false), AtomicBool::new(false));
            Arc::new(Drawing { parts: Mutex::new(parts), sent, lapsed })
        }))
    }

    /// Whether anything counts this attempt.
    pub(crate) fn counts(&self) -> bool {
        self.0.is_some()
    }

    /// To be asked at the last moment before the request is on its way; from then on the permits are spent. A permit
    /// that was drawn too long ago is drawn anew, so that the book never thinks it used earlier than the upstream does.
    /// False if that fails: the request must not be sent.
    pub(crate) fn board(&self, now: Mono) -> bool {
        let Some(drawing) = &self.0 else { return true };
        if drawing.sent.load(Acquire) {
            return true;
        }
        let mut parts = drawing.parts.lock();
        let fresh = now.since(parts.at) < JITTER;
        let may_go = (fresh && parts.drawn.iter().flatten().all(|(_, drawn)| drawn.is_live(now)))
            || parts.draw_anew(now);
        if may_go {
            drawing.sent.store(true, Release);
        } else {
            drawing.lapsed.store(true, Release);
        }
        may_go
    }

    /// Whether [`Spend::board`] has said no.
    pub(crate) fn lapsed(&self) -> bool {
        self.0.as_ref().is_some_and(|drawing| drawing.lapsed.load(Acquire))
    }

    /// The upstream has told how many input tokens it counted.
    pub(crate) fn settle(&self, input_tokens: u64) {
        let Some(drawing) = &self.0 else { return };
        let tokens = Dimension::ALL.iter().position(|dimension| *dimension == Dimension::Tpm);
        if let Some((purse, drawn)) = tokens.and_then(|place| drawing.parts.lock().drawn[place].take()) {
            drawn.settle(input_tokens, &purse);
        }
    }
}

impl Parts {
    pub(super) fn give_back(&mut self) {
        for (_, drawn) in self.drawn.iter_mut().filter_map(Option::take) {
            drawn.give_back();
        }
    }

    fn draw_anew(&mut self, now: Mono) -> bool {
        for part in &mut self.drawn {
            let Some((purse, drawn)) = part.take() else { continue };
            let n = drawn.permits();
            drawn.give_back();
            match purse.draw(n, now) {
                Ok(drawn) => *part = Some((purse, drawn)),
                Err(_) => return false,
            }
        }
        self.at = now;
        true
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        if !*self.sent.get_mut() {
            self.parts.get_mut().give_back();
        }
    }
}
