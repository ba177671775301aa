//! Watching a stream of events on its way through: the bytes pass as they are, but an error that the upstream puts
//! between them (as an event, array-wrapped, or as bare JSON) is caught, and whether the answer came to its end,
//! and its last usage, are noted. Nothing is parsed but errors.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};
use memchr::memmem::{Finder, FinderRev};

/// What of a chunk goes to the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// These bytes; the rest, if any, waits for the next chunk.
    Pass(Bytes),
    /// These bytes, and then an error has begun: it is complete at the end of its event.
    Error(Bytes, Box<ErrorBody>),
}

/// The state between chunks.
#[derive(Debug)]
pub(crate) struct Scanner {
    held: BytesMut,
    at_line_start: bool,
    /// `held` is an error whose end has not been seen.
    in_error: bool,
    end: EndWatch,
    pub(crate) usage: UsageWatch,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            held: BytesMut::new(),
            at_line_start: true,
            in_error: false,
            end: EndWatch::default(),
            usage: UsageWatch::default(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Harmless,
    Error,
    TooShortToTell,
}

impl Scanner {
    /// Looks at a chunk.
    pub(crate) fn scan(&mut self, chunk: Bytes) -> Scanned {
        let chunk = if self.held.is_empty() {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        if self.in_error {
            return self.collect(Bytes::new(), &chunk);
        }
        let mut start = if self.at_line_start { Some(0) } else { next_line(&chunk, 0) };
        while let Some(at) = start.filter(|at| *at < chunk.len()) {
            match judge(&chunk[at..]) {
                Line::Harmless => start = next_line(&chunk, at),
                Line::Error => {
                    let error = chunk.slice(at..);
                    let before = self.note(chunk.slice(..at));
                    return self.collect(before, &error);
                }
                Line::TooShortToTell => {
                    self.held.extend_from_slice(&chunk[at..]);
                    self.at_line_start = true;
                    return Scanned::Pass(self.note(chunk.slice(..at)));
                }
            }
        }
        self.at_line_start = chunk.last() == Some(&b'\n');
        Scanned::Pass(self.note(chunk))
    }

    /// The stream has ended: what was held back, and whether it was an error.
    pub(crate) fn finish(&mut self) -> Scanned {
        let held = self.held.split().freeze();
        if self.in_error {
            self.in_error = false;
            return Scanned::Error(Bytes::new(), Box::new(error(&held)));
        }
        Scanned::Pass(self.note(held))
    }

    /// Whether the answer's own end was among what passed.
    pub(crate) fn saw_end(&self) -> bool {
        self.end.seen
    }

    fn note(&mut self, passed: Bytes) -> Bytes {
        self.end.look(&passed);
        self.usage.look(&passed);
        passed
    }

    /// Gathers an error until its event ends, or until it is larger than any error.
    fn collect(&mut self, before: Bytes, error_bytes: &[u8]) -> Scanned {
        let is_event = error_bytes.starts_with(b"data:");
        let ended =
            is_event && [b"\n\n".as_slice(), b"\r\n\r\n"].iter().any(|end| find(error_bytes, end).is_some());
        if ended || error_bytes.len() > MAX_ERROR_BODY {
            self.in_error = false;
            return Scanned::Error(before, Box::new(error(error_bytes)));
        }
        self.in_error = true;
        self.held.extend_from_slice(error_bytes);
        Scanned::Pass(before)
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, needle)
}

fn next_line(chunk: &[u8], from: usize) -> Option<usize> {
    Some(from + memchr::memchr(b'\n', &chunk[from..])? + 1)
}

/// The error in `data: {…}` (its first line) or in bare JSON.
fn error(bytes: &[u8]) -> ErrorBody {
    let json = match bytes.strip_prefix(b"data:") {
        Some(event) => event.split(|b| *b == b'\n').next().unwrap_or_default(),
        None => bytes,
    };
    ErrorBody::parse(json.trim_ascii())
}

/// What the beginning of a line says. Events of an answer begin with `data:`; JSON without it, and an event whose
/// first field is `error`, are errors.
fn judge(line: &[u8]) -> Line {
    let payload = match after(line, b"data:") {
        Ok(payload) => payload.trim_ascii_start(),
        Err(false) => return if matches!(line[0], b'{' | b'[') { Line::Error } else { Line::Harmless },
        Err(true) => return Line::TooShortToTell,
    };
    let mut rest = payload;
    for token in [b"[".as_slice(), b"{", b"\"error\""] {
        rest = rest.trim_ascii_start();
        match after(rest, token) {
            Ok(behind) => rest = behind,
            Err(true) if !line.contains(&b'\n') => return Line::TooShortToTell,
            Err(_) if token == b"[" => {} // not array-wrapped
            Err(_) => return Line::Harmless,
        }
    }
    Line::Error
}

/// What stands behind a token; `Err(true)` if the bytes end inside it.
fn after<'a>(bytes: &'a [u8], token: &[u8]) -> Result<&'a [u8], bool> {
    bytes.strip_prefix(token).ok_or_else(|| token.starts_with(bytes))
}

/// Looks for what ends an answer, also across chunks.
#[derive(Debug, Default)]
struct EndWatch {
    seen: bool,
    tail: Vec<u8>,
}

static ENDS: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
    ["data: [DONE]", "\"finish_reason\":", "\"finishReason\":", "\"blockReason\":"].map(Finder::new)
});
const TAIL: usize = 24;

impl EndWatch {
    fn look(&mut self, chunk: &[u8]) {
        if self.seen || chunk.is_empty() {
            return;
        }
        let seam_end = chunk.len().min(TAIL);
        self.tail.extend_from_slice(&chunk[..seam_end]);
        self.seen = is_end(&self.tail) || is_end(chunk);
        let keep = if chunk.len() >= TAIL {
            &chunk[chunk.len() - TAIL..]
        } else {
            &self.tail[self.tail.len().saturating_sub(TAIL)..]
        };
        self.tail = keep.to_vec();
    }
}

fn is_end(bytes: &[u8]) -> bool {
    ENDS.iter().any(|end| {
        let null = |at: usize| bytes[at + end.needle().len()..].trim_ascii_start().starts_with(b"null");
        end.find_iter(bytes).any(|at| !null(at))
    })
}

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
        } else {
            let across = [&self.seam, &chunk[..chunk.len().min(MAX_USAGE)]].concat();
            match last_usage(&across).filter(|at| *at < self.seam.len()) {
                Some(at) => self.keep(&across[at..]),
                None if self.open => {
                    let room = MAX_USAGE - self.last.len();
                    self.last.extend_from_slice(&chunk[..chunk.len().min(room)]);
                    self.open = self.last.len() < MAX_USAGE;
                }
                None => {}
            }
        }
        self.seam.extend_from_slice(&chunk[chunk.len().saturating_sub(SEAM)..]);
        self.seam.drain(..self.seam.len().saturating_sub(SEAM));
    }

    fn keep(&mut self, usage: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(&usage[..usage.len().min(MAX_USAGE)]);
        self.open = usage.len() < MAX_USAGE;
    }

    /// The last usage.
    pub(crate) fn read(&self) -> Option<Usage> {
        let number = |name: &str| -> Option<u64> {
            let at = find(&self.last, name.as_bytes())? + name.len();
            let rest = self.last[at..].trim_ascii_start();
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
        };
        let native = number("\"promptTokenCount\":").map(|input| {
            let output = number("\"candidatesTokenCount\":").unwrap_or_default();
            Usage { input, output: output + number("\"thoughtsTokenCount\":").unwrap_or_default() }
        });
        native.or_else(|| {
            let input = number("\"prompt_tokens\":")?;
            Some(Usage { input, output: number("\"completion_tokens\":").unwrap_or_default() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a {\\\"error\\\": b\"}}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"completion_tokens\":7,\"prompt_tokens\":5}}\n\ndata: [DONE]\n\n";
    const NATIVE: &str = "data: {\"candidates\": [{\"content\": {}}]}\r\n\r\ndata: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":3,\"candidatesTokenCount\":2,\"thoughtsTokenCount\":4}}\r\n\r\n";
    const FIRST: &str = "data: {\"candidates\":[]}\r\n\r\n";

    /// Feeds `text` in pieces of `size`; what passed, the error, and the scanner.
    fn feed(text: &str, size: usize) -> (String, Option<ErrorBody>, Scanner) {
        let mut scanner = Scanner::default();
        let mut passed = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            match scanner.scan(Bytes::copy_from_slice(piece)) {
                Scanned::Pass(bytes) => passed.extend_from_slice(&bytes),
                Scanned::Error(bytes, error) => {
                    passed.extend_from_slice(&bytes);
                    return (String::from_utf8(passed).unwrap(), Some(*error), scanner);
                }
            }
        }
        match scanner.finish() {
            Scanned::Pass(bytes) => passed.extend_from_slice(&bytes),
            Scanned::Error(_, error) => return (String::from_utf8(passed).unwrap(), Some(*error), scanner),
        }
        (String::from_utf8(passed).unwrap(), None, scanner)
    }

    #[test]
    fn an_answer_passes_unchanged_however_it_is_cut() {
        for text in [COMPAT, NATIVE, ": ping\n\nevent: x\ndata: y\n\n", "data: no newline at the end"] {
            for size in 1..=text.len() {
                let (passed, error, _) = feed(text, size);
                assert_eq!((passed.as_str(), error), (text, None), "in pieces of {size}");
            }
        }
    }

    #[test]
    fn the_end_and_the_usage_are_seen_however_it_is_cut() {
        for size in 1..=COMPAT.len().max(NATIVE.len()) {
            let compat = feed(COMPAT, size).2;
            assert!(compat.saw_end());
            assert_eq!(compat.usage.read(), Some(Usage { input: 5, output: 7 }), "in pieces of {size}");
            let native = feed(NATIVE, size).2;
            assert!(native.saw_end());
            assert_eq!(native.usage.read(), Some(Usage { input: 3, output: 6 }), "in pieces of {size}");
        }
        assert!(!feed(FIRST, 100).2.saw_end());
        assert!(!feed("data: {\"choices\":[{\"finish_reason\": null}]}\n\n", 100).2.saw_end());
        assert!(!feed("data: {\"text\":\"\\\"finishReason\\\": \"}\n\n", 100).2.saw_end());
    }

    #[test]
    fn every_form_of_an_error_is_caught_however_it_is_cut() {
        let json = "{\"error\":{\"code\":503,\"message\":\"busy\",\"status\":\"UNAVAILABLE\"}}";
        let pretty = "{\n  \"error\": {\n    \"code\": 503,\n    \"message\": \"busy\",\n    \"status\": \"UNAVAILABLE\"\n  }\n}\n";
        for form in [
            format!("data: {json}\r\n\r\n"),
            format!("data: [{json}]\n\n"),
            format!("data:{json}\n\n"),
            "data: [ { \"error\" : {\"message\":\"busy\",\"status\":\"UNAVAILABLE\"} } ]\n\n".to_string(),
            pretty.to_owned(),
            format!("[{pretty}]"),
        ] {
            let text = format!("{FIRST}{form}");
            for size in 1..=text.len() {
                let (passed, error, _) = feed(&text, size);
                assert_eq!(passed, FIRST, "in pieces of {size}");
                assert_eq!(
                    error.map(|e| e.status).as_deref(),
                    Some("UNAVAILABLE"),
                    "{form} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn an_endless_error_is_cut_off() {
        let mut scanner = Scanner::default();
        let mut seen = false;
        for _ in 0..100 {
            seen |= matches!(scanner.scan(Bytes::from(vec![b'{'; 1024])), Scanned::Error(..));
            assert!(scanner.held.len() <= MAX_ERROR_BODY + 1024);
        }
        assert!(seen);
    }
}
