//! Watching a stream of events on its way through: the bytes pass as they are, but an error that the upstream puts
//! between them (as an event, array-wrapped, or as bare JSON) is caught, and whether the answer came to its end,
//! and its last usage, are noted. Nothing is parsed but errors.
//!
//! Whole events pass. The beginning of one waits for its rest, which no client could use either: if the upstream
//! breaks off, what follows is not glued to half an event.

mod end;
mod usage;

use bytes::{Bytes, BytesMut};
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};

use end::EndWatch;
pub(crate) use usage::{Usage, UsageWatch};

/// An event that is larger passes as it comes.
const MAX_HELD: usize = MAX_ERROR_BODY;

/// What of a chunk goes to the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// These bytes; the rest, if any, waits for the next chunk.
    Pass(Bytes),
    /// These bytes, and then there was an error.
    Error(Bytes, Box<ErrorBody>),
}

/// The state between chunks.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// The beginning of an event.
    held: BytesMut,
    /// The last bytes that passed are within a large event.
    within_event: bool,
    /// And they ended a line of it.
    line_ended: bool,
    end: EndWatch,
    pub(crate) usage: UsageWatch,
}

impl Scanner {
    /// For the events of an interaction, which end in their own way.
    pub(crate) fn of_interaction() -> Self {
        Self { end: EndWatch::of_interaction(), ..Self::default() }
    }

    /// Looks at a chunk.
    pub(crate) fn scan(&mut self, chunk: Bytes) -> Scanned {
        let chunk = if self.held.is_empty() {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        let blank = if self.within_event { blank_line(&chunk, self.line_ended) } else { 0 };
        let ended = events_end(&chunk).max(blank);
        if let Some(at) = self.find_error(&chunk[..ended], blank) {
            return self.error(&chunk, at, ended);
        }
        let rest = &chunk[ended..];
        if rest.len() <= MAX_HELD && !(self.within_event && ended == 0) {
            self.within_event = false;
            self.held.extend_from_slice(rest);
            return Scanned::Pass(self.note(chunk.slice(..ended)));
        }
        if !self.within_event && is_error(rest) {
            return self.error(&chunk, ended, chunk.len());
        }
        self.within_event = true;
        self.line_ended = chunk.last() == Some(&b'\n');
        Scanned::Pass(self.note(chunk))
    }

    /// The stream has ended: what was held back, and whether it was an error.
    pub(crate) fn finish(&mut self) -> Scanned {
        let held = self.held.split().freeze();
        if is_error(&held) {
            return Scanned::Error(Bytes::new(), Box::new(read_error(&held)));
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

    fn error(&mut self, chunk: &Bytes, at: usize, ended: usize) -> Scanned {
        let error = Box::new(read_error(&chunk[at..ended]));
        // The event may have lines before its data, such as its name.
        let event = match events_end(&chunk[..at]) {
            0 if self.within_event => at,
            end => end,
        };
        Scanned::Error(self.note(chunk.slice(..event)), error)
    }

    /// The first line of whole events that is an error.
    fn find_error(&self, events: &[u8], blank: usize) -> Option<usize> {
        let mut line = if self.within_event && blank == 0 { next_line(events, 0) } else { Some(blank) };
        while let Some(at) = line.filter(|at| *at < events.len()) {
            if is_error(&events[at..]) {
                return Some(at);
            }
            line = next_line(events, at);
        }
        None
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, needle)
}

fn next_line(bytes: &[u8], from: usize) -> Option<usize> {
    Some(from + memchr::memchr(b'\n', &bytes[from..])? + 1)
}

/// The length of the blank line at the start of bytes that follow a line break; 0 if there is none.
fn blank_line(bytes: &[u8], line_ended: bool) -> usize {
    match bytes {
        [b'\n', ..] if line_ended => 1,
        [b'\r', b'\n', ..] if line_ended => 2,
        _ => 0,
    }
}

/// The end of the last whole event: behind its blank line. Mostly that is the end of the bytes.
fn events_end(bytes: &[u8]) -> usize {
    let mut to = bytes.len();
    while let Some(at) = memchr::memrchr(b'\n', &bytes[..to]) {
        let before = bytes[..at].strip_suffix(b"\r").unwrap_or(&bytes[..at]);
        if before.last() == Some(&b'\n') {
            return at + 1;
        }
        to = at;
    }
    0
}

/// The error in `data: {…}` (its first line) or in bare JSON.
fn read_error(bytes: &[u8]) -> ErrorBody {
    let json = match bytes.strip_prefix(b"data:") {
        Some(event) => event.split(|b| *b == b'\n').next().unwrap_or_default(),
        None => bytes,
    };
    ErrorBody::parse(json.trim_ascii())
}

/// Whether a line begins an error. Lines of an answer begin with a field's name; JSON without one, and data whose
/// first field is `error`, are errors.
fn is_error(line: &[u8]) -> bool {
    let Some(data) = line.strip_prefix(b"data:") else {
        return matches!(line.first(), Some(b'{' | b'['));
    };
    let data = data.trim_ascii_start();
    is_error_object(data.strip_prefix(b"[").map_or(data, <[u8]>::trim_ascii_start))
}

/// Whether JSON is an object whose first field is `error`, or an interaction's event that has one.
pub(crate) fn is_error_object(json: &[u8]) -> bool {
    let Some(fields) = json.strip_prefix(b"{") else { return false };
    let first = fields.trim_ascii_start();
    // One look is enough for an answer of the other surfaces.
    first.starts_with(b"\"e")
        && (first.starts_with(b"\"error\"") || first.starts_with(b"\"event_") && is_error_event(json))
}

/// Whether the event of an interaction is an error: its type may stand before it. Cold, so that it costs the other
/// streams nothing.
#[cold]
fn is_error_event(json: &[u8]) -> bool {
    let line = &json[..memchr::memchr(b'\n', json).unwrap_or(json.len())];
    find(line, b"\"error\"").is_some() && ErrorBody::parse(line).is_error()
}

/// Keeps the end of a piece that is cut within a line, so that what stands across the cut is found. No name that is
/// looked for goes across a line break.
fn keep_seam(seam: &mut Vec<u8>, chunk: &[u8], len: usize) {
    if chunk.ends_with(b"\n") {
        seam.clear();
        return;
    }
    if chunk.len() >= len {
        seam.clear();
    }
    seam.extend_from_slice(&chunk[chunk.len().saturating_sub(len)..]);
    seam.drain(..seam.len().saturating_sub(len));
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
    fn the_error_of_an_interaction_is_caught_with_its_name() {
        let first = "event: interaction.created\ndata: {\"event_type\":\"interaction.created\",\"interaction\":{\"error\":1}}\n\n";
        for error in [
            "data: {\"event_type\":\"error\",\"error\":{\"code\":\"unavailable\"}}\n\n",
            "data: {\"event_id\":\"e\",\"event_type\":\"error\", \"error\" : {\"code\":\"unavailable\"}}\r\n\r\n",
            "data: {\"error\":{\"code\":\"unavailable\"},\"event_type\":\"error\"}\n\n",
        ] {
            let text = format!("{first}event: error\n{error}");
            for size in 1..=text.len() {
                let (passed, found, _) = feed(&text, size);
                assert_eq!(passed, first, "in pieces of {size}");
                assert_eq!(found.map(|error| error.status).as_deref(), Some("unavailable"), "{error}");
            }
        }
    }

    #[test]
    fn the_usage_of_an_interaction_is_seen_however_it_is_cut() {
        let usage = "\"usage\":{\"input_tokens_by_modality\":[{\"modality\":\"text\",\"tokens\":9}],\"total_input_tokens\":9,\"total_output_tokens\":5,\"total_thought_tokens\":4,\"total_tokens\":18}";
        let begun = "data: {\"event_type\":\"step.delta\",\"delta\":{\"text\":\"\\\"usage\\\": {\"}}\n\n";
        let text = format!(
            "{begun}data: {{\"event_type\":\"interaction.completed\",\"interaction\":{{{usage}}}}}\n\n"
        );
        for size in 1..=text.len() {
            let read = feed(&text, size).2.usage.read();
            assert_eq!(read, Some(Usage { input: 9, output: 9 }), "in pieces of {size}");
        }
    }

    #[test]
    fn an_interaction_ends_with_its_last_event() {
        let event = |kind: &str| format!("data: {{\"event_type\":\"{kind}\"}}\n\n");
        let ended = |text: &str| {
            let mut scanner = Scanner::of_interaction();
            for piece in text.as_bytes().chunks(5) {
                scanner.scan(Bytes::copy_from_slice(piece));
            }
            scanner.saw_end()
        };
        for end in [event("interaction.complete"), event("interaction.completed"), "data: [DONE]\n\n".into()]
        {
            assert!(ended(&end), "{end}");
        }
        let quoted = event("content.delta\",\"text\":\"\\\"interaction.complete\\\"");
        for middle in [event("interaction.created"), quoted, event("finishReason\":\"STOP")] {
            assert!(!ended(&middle), "{middle}");
        }
    }

    #[test]
    fn half_an_event_waits_for_its_rest() {
        let mut scanner = Scanner::default();
        let half = scanner.scan(Bytes::from(format!("{FIRST}data: {{\"candi")));
        assert_eq!(half, Scanned::Pass(Bytes::from(FIRST)));
        let rest = scanner.scan(Bytes::from_static(b"dates\":[]}\r\n\r\n"));
        assert_eq!(rest, Scanned::Pass(Bytes::from(FIRST)));
    }

    #[test]
    fn a_large_event_passes_as_it_comes_and_does_not_hide_an_error_behind_it() {
        let mut scanner = Scanner::default();
        let mut passed = 0;
        for chunk in ["data: {\"image\":\"", &"x".repeat(50_000), &"{".repeat(50_000), "\"}\n", "\n"] {
            match scanner.scan(Bytes::copy_from_slice(chunk.as_bytes())) {
                Scanned::Pass(bytes) => passed += bytes.len(),
                Scanned::Error(..) => panic!("that is no error"),
            }
            assert!(scanner.held.len() <= MAX_HELD);
        }
        assert_eq!(passed, 100_020);
        assert!(matches!(scanner.scan(Bytes::from_static(b"data: {\"error\":{}}\n\n")), Scanned::Error(..)));
    }

    #[test]
    fn names_are_found_across_every_cut() {
        let text = r#"{"finishReason":"STOP","usageMetadata":{"promptTokenCount":3}}"#;
        for size in 1..text.len() {
            let (mut end, mut usage) = (EndWatch::default(), UsageWatch::default());
            for piece in text.as_bytes().chunks(size) {
                end.look(piece);
                usage.look(piece);
            }
            assert!(end.seen, "in pieces of {size}");
            assert_eq!(usage.read(), Some(Usage { input: 3, output: 0 }), "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_error_is_cut_off() {
        let mut scanner = Scanner::default();
        let mut seen = false;
        for _ in 0..100 {
            seen |= matches!(scanner.scan(Bytes::from(vec![b'{'; 1024])), Scanned::Error(..));
            assert!(scanner.held.len() <= MAX_HELD);
        }
        assert!(seen);
    }
}
