//! What a successful generation says, before it is put in the words of a surface.

use bytes::{Bytes, BytesMut};

use crate::chance::{Chance, MIXED};
use crate::tools::ToolCall;
use crate::world::AnswerSpec;

const WORDS: &str = "the quick gateway turns a pool of keys into one steady endpoint and every answer of this simulator \
                     is made of the same few words again and again so that bytes can be compared without a model ";

/// Tokens that thinking costs, in the total but not in the completion.
pub(crate) const THOUGHT_TOKENS: u64 = 25;
pub(crate) const THOUGHT: &str = "**Weighing the request**\n\nI read it, and I know what to say.";

/// The texts of one world, escaped for JSON once.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) chunks: Vec<Piece>,
    pub(crate) plain: Piece,
    pub(crate) thinking: bool,
    pub(crate) parallel_tools: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// The same inside JSON quotes.
    pub(crate) escaped: String,
    pub(crate) tokens: u64,
}

impl Piece {
    fn new(text: String, tokens: u64) -> Self {
        let quoted = serde_json::to_string(&text).unwrap_or_default();
        let escaped = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned();
        Self { text, escaped, tokens }
    }
}

impl Script {
    pub(crate) fn new(spec: &AnswerSpec, seed: u64) -> Self {
        let count = spec.chunks.max(1);
        let per_chunk = usize::try_from(spec.tokens_per_chunk).unwrap_or(0).saturating_mul(4);
        let size = if spec.chunk_bytes == 0 { per_chunk } else { spec.chunk_bytes };
        let mut chance = Chance::new(seed, 0);
        let texts: Vec<String> = if spec.text.is_empty() {
            (0..count).map(|_| words(size, usize::try_from(chance.below(64)).unwrap_or(0))).collect()
        } else {
            split(&spec.text, count)
        };
        let plain = if spec.plain_bytes == 0 { texts.concat() } else { words(spec.plain_bytes, 0) };
        let chunks = texts.into_iter().map(|text| Piece::new(text, spec.tokens_per_chunk)).collect();
        let tokens = spec.tokens_per_chunk.saturating_mul(count as u64);
        let plain = Piece::new(plain, tokens);
        Self { chunks, plain, thinking: spec.thinking, parallel_tools: spec.parallel_tools }
    }
}

fn words(bytes: usize, skip: usize) -> String {
    WORDS.bytes().cycle().skip(skip).take(bytes).map(char::from).collect()
}

/// Splits a text into `count` parts of about the same number of characters.
fn split(text: &str, count: usize) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let size = characters.len().div_ceil(count).max(1);
    characters.chunks(size).map(|part| part.iter().collect()).collect()
}

/// One generation to be rendered.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) script: &'a Script,
    pub(crate) model: &'a str,
    pub(crate) prompt_tokens: u64,
    /// Those that come from a cache, on top of what the request holds.
    pub(crate) cached_tokens: u64,
    pub(crate) calls: &'a [ToolCall],
    pub(crate) include_thoughts: bool,
    pub(crate) id: String,
    pub(crate) created_s: i64,
    pub(crate) usage: bool,
    /// No candidate at all, as for a prompt that was blocked.
    pub(crate) empty: bool,
    /// Nothing but Google's word for why it ended.
    pub(crate) blank: Option<&'a str>,
    pub(crate) chance: Chance,
}

impl Turn<'_> {
    pub(crate) fn usage(&self, completion: u64) -> Usage {
        let thoughts = if self.script.thinking { THOUGHT_TOKENS } else { 0 };
        let cached = self.cached_tokens;
        Usage { prompt: self.prompt_tokens + cached, cached, completion, thoughts }
    }

    pub(crate) fn shows_thoughts(&self) -> bool {
        self.include_thoughts && self.script.thinking
    }

    pub(crate) fn call_id(&mut self) -> String {
        self.chance.id(8, MIXED)
    }

    /// Tokens of a whole answer.
    pub(crate) fn completion_tokens(&self) -> u64 {
        let calls = self.calls.len() as u64;
        if calls > 0 { calls * CALL_TOKENS } else { self.script.plain.tokens }
    }
}

/// Tokens of one function call.
pub(crate) const CALL_TOKENS: u64 = 12;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// With those of the cache.
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) completion: u64,
    pub(crate) thoughts: u64,
}

impl Usage {
    pub(crate) fn total(self) -> u64 {
        self.prompt + self.completion + self.thoughts
    }
}

/// An answer in the bytes of its surface.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) content_type: &'static str,
    /// One write of the upstream each.
    pub(crate) frames: Vec<Bytes>,
    /// What closes a stream; empty if nothing does.
    pub(crate) end: Bytes,
    pub(crate) streamed: bool,
}

impl Rendered {
    pub(crate) fn whole(content_type: &'static str, body: Bytes) -> Self {
        Self { content_type, frames: vec![body], end: Bytes::new(), streamed: false }
    }

    pub(crate) fn event_stream(frames: Vec<Bytes>, end: &'static [u8]) -> Self {
        Self { content_type: "text/event-stream", frames, end: Bytes::from_static(end), streamed: true }
    }
}

/// Collects frames in one allocation.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) buffer: BytesMut,
    pub(crate) done: Vec<Bytes>,
}

impl Frames {
    pub(crate) fn new(count: usize, bytes: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(bytes), done: Vec::with_capacity(count) }
    }

    pub(crate) fn push(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn cut(&mut self) {
        self.done.push(self.buffer.split().freeze());
    }
}
