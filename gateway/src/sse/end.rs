//! Whether an answer came to its end.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::keep_seam;

/// Looks for what ends an answer, also across chunks.
#[derive(Debug, Default)]
pub(super) struct EndWatch {
    of_interaction: bool,
    pub(super) seen: bool,
    tail: Vec<u8>,
}

static DONE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("data: [DONE]"));
/// What the names of all reasons end with, so that one search finds them all.
static REASON: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("eason\":"));
const REASONS: [&[u8]; 3] = [b"\"finish_r", b"\"finishR", b"\"blockR"];
/// The last event of an interaction is `interaction.complete`, or `interaction.completed` where it has steps.
static COMPLETE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("interaction.complete"));
const TAIL: usize = 24;

impl EndWatch {
    /// For an interaction.
    pub(super) fn of_interaction() -> Self {
        Self { of_interaction: true, ..Self::default() }
    }

    pub(super) fn look(&mut self, chunk: &[u8]) {
        if self.seen || chunk.is_empty() {
            return;
        }
        self.seen = self.is_end(chunk);
        if !self.tail.is_empty() {
            self.seen |= self.is_end(&[&self.tail, &chunk[..chunk.len().min(TAIL)]].concat());
        }
        keep_seam(&mut self.tail, chunk, TAIL);
    }

    fn is_end(&self, bytes: &[u8]) -> bool {
        let is_reason = |at: usize| {
            let value = bytes[at + REASON.needle().len()..].trim_ascii_start();
            REASONS.iter().any(|name| bytes[..at].ends_with(name)) && !value.starts_with(b"null")
        };
        // In a text that quotes it, the quote behind it is escaped.
        let is_complete = |at: usize| {
            let behind = &bytes[at + COMPLETE.needle().len()..];
            behind.strip_prefix(b"d").unwrap_or(behind).first() == Some(&b'"')
        };
        DONE.find(bytes).is_some()
            || if self.of_interaction {
                COMPLETE.find_iter(bytes).any(is_complete)
            } else {
                REASON.find_iter(bytes).any(is_reason)
            }
    }
}
