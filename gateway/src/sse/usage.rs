//! Tokens of an answer, read from what passes.

use std::sync::LazyLock;

use memchr::memmem::{Finder, FinderRev};

use super::keep_seam;

/// Keeps the last usage that passed: the upstream's figures are running totals.
#[derive(Debug, Default)]
pub(crate) struct UsageWatch {
    last: Vec<u8>,
    /// The last one may go on in the next chunk.
    open: bool,
    /// The end of the last chunk, where the name of the next one may have begun.
    seam: Vec<u8>,
}

/// Tokens of one answer, as the upstream counts them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

static USAGE: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new("\"usage"));
/// What the native and the compat surface and interactions call their figures: the input, and what makes up the output.
static FIGURES: LazyLock<[Vec<Finder<'static>>; 3]> = LazyLock::new(|| {
    [
        ["\"promptTokenCount\":", "\"candidatesTokenCount\":", "\"thoughtsTokenCount\":"].as_slice(),
        &["\"prompt_tokens\":", "\"completion_tokens\":"],
        &["\"total_input_tokens\":", "\"total_output_tokens\":", "\"total_thought_tokens\":"],
    ]
    .map(|names| names.iter().map(|name| Finder::new(*name)).collect())
});
/// A usage object is shorter than this.
const MAX_USAGE: usize = 2_048;
/// The length of the longest name, with its quotes and colon.
const SEAM: usize = 16;

/// Where the last usage begins. Inside an answer's text the quotes are escaped, so few of these are not real ones.
fn last_usage(bytes: &[u8]) -> Option<usize> {
    let mut to = bytes.len();
    for _ in 0..8 {
        let at = USAGE.rfind(&bytes[..to])?;
        let names = [b"\"usage\":".as_slice(), b"\"usageMetadata\":"];
        if names.iter().any(|name| bytes[at..].starts_with(name)) {
            return Some(at);
        }
        to = at;
    }
    None
}

impl UsageWatch {
    pub(crate) fn look(&mut self, chunk: &[u8]) {
        if let Some(at) = last_usage(chunk) {
            self.keep(&chunk[at..]);
        } else if let Some(usage) = self.usage_across(chunk) {
            self.keep(&usage);
        } else if self.open {
            let room = MAX_USAGE - self.last.len();
            self.last.extend_from_slice(&chunk[..chunk.len().min(room)]);
            self.open = self.last.len() < MAX_USAGE;
        }
        keep_seam(&mut self.seam, chunk, SEAM);
    }

    /// A usage whose name began in the last piece.
    fn usage_across(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        if self.seam.is_empty() {
            return None;
        }
        let mut across = [&self.seam, &chunk[..chunk.len().min(MAX_USAGE)]].concat();
        let at = last_usage(&across).filter(|at| *at < self.seam.len())?;
        across.drain(..at);
        Some(across)
    }

    fn keep(&mut self, usage: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(&usage[..usage.len().min(MAX_USAGE)]);
        self.open = usage.len() < MAX_USAGE;
    }

    /// The last usage.
    pub(crate) fn read(&self) -> Option<Usage> {
        FIGURES.iter().find_map(|names| {
            let mut figures = names.iter().map(|name| self.figure(name));
            let input = figures.next()??;
            Some(Usage { input, output: figures.flatten().sum() })
        })
    }

    fn figure(&self, name: &Finder<'_>) -> Option<u64> {
        let at = name.find(&self.last)? + name.needle().len();
        let rest = self.last[at..].trim_ascii_start();
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
    }
}
