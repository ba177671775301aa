//! Watching a model's answer that comes as one streamed JSON array, as `sse` watches events: whole elements pass as
//! they are, an error among them is caught, and wherever the upstream stops, the array can be closed in good order.

use bytes::{Bytes, BytesMut};
use keyfleet_core::error_body::{ErrorBody, MAX_ERROR_BODY};

use crate::sse::{Scanned, is_error_object};

/// An element that is larger passes as it comes.
const MAX_HELD: usize = MAX_ERROR_BODY;

/// The state between chunks.
#[derive(Debug, Default)]
pub(crate) struct Array {
    /// What stands behind the last whole element: the beginning of the next one.
    held: BytesMut,
    passed: Passed,
    place: Place,
}

/// How far the array has gone out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Passed {
    #[default]
    Nothing,
    /// Up to the end of an element.
    Elements,
    /// Into a large element.
    Half,
    /// Up to the closing bracket.
    All,
}

impl Array {
    /// Looks at a chunk.
    pub(crate) fn scan(&mut self, chunk: Bytes) -> Scanned {
        let mut at = self.held.len();
        let chunk = if at == 0 {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        let mut whole = 0;
        while let Some(step) = self.place.step(&chunk, at) {
            at = step.end;
            let Some(begin) = step.ended_element else { continue };
            if self.passed != Passed::Half && is_error_object(&chunk[begin..at]) {
                return Scanned::Error(chunk.slice(..whole), Box::new(ErrorBody::parse(&chunk[begin..at])));
            }
            self.passed = Passed::Elements;
            whole = at;
        }
        if self.place.is_outside() {
            self.passed = Passed::All;
            return Scanned::Pass(chunk);
        }
        if self.passed != Passed::Half && chunk.len() - whole <= MAX_HELD {
            self.place.forget(whole);
            self.held.extend_from_slice(&chunk[whole..]);
            return Scanned::Pass(chunk.slice(..whole));
        }
        let begin = self.place.element.map_or(chunk.len(), |(begin, _)| begin);
        if self.passed != Passed::Half && is_error_object(&chunk[begin..]) {
            return Scanned::Error(chunk.slice(..whole), Box::default());
        }
        self.passed = Passed::Half;
        self.place.forget(chunk.len());
        Scanned::Pass(chunk)
    }

    /// The array has been closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.passed == Passed::All && self.held.is_empty()
    }

    /// What joins one more element to what has gone out; `None` where none can follow.
    pub(crate) fn joint(&self) -> Option<&'static str> {
        match self.passed {
            Passed::Nothing => Some("["),
            Passed::Elements => Some(","),
            Passed::Half | Passed::All => None,
        }
    }
}

/// The length of the first whole element, with what stands before it.
pub(crate) fn element_len(bytes: &[u8]) -> Option<usize> {
    let mut place = Place::default();
    let mut at = 0;
    while let Some(step) = place.step(bytes, at) {
        at = step.end;
        if step.ended_element.is_some() {
            return Some(at);
        }
    }
    None
}

/// An element without the bracket or comma before it.
pub(crate) fn element(bytes: &[u8]) -> &[u8] {
    let begin = bytes.iter().position(|b| !b.is_ascii_whitespace() && !matches!(b, b'[' | b',' | b']'));
    begin.map_or(&[], |begin| &bytes[begin..])
}

/// A place in the text.
#[derive(Debug, Default)]
struct Place {
    depth: u32,
    /// Where the current element began, and the depth around it.
    element: Option<(usize, u32)>,
    in_string: bool,
    escaped: bool,
    began: bool,
}

/// A bracket or brace that was passed.
struct Step {
    end: usize,
    /// It ended the element that began here.
    ended_element: Option<usize>,
}

impl Place {
    /// Goes behind the next bracket or brace.
    fn step(&mut self, bytes: &[u8], from: usize) -> Option<Step> {
        let at = self.find(bytes, from)?;
        self.began = true;
        if let opening @ (b'{' | b'[') = bytes[at] {
            if opening == b'{' && self.element.is_none() {
                self.element = Some((at, self.depth));
            }
            self.depth += 1;
            return Some(Step { end: at + 1, ended_element: None });
        }
        self.depth = self.depth.saturating_sub(1);
        let ended = self.element.take_if(|(_, around)| *around == self.depth);
        Some(Step { end: at + 1, ended_element: ended.map(|(begin, _)| begin) })
    }

    /// The next bracket or brace that is not within a string.
    fn find(&mut self, bytes: &[u8], mut at: usize) -> Option<usize> {
        loop {
            if self.in_string {
                if self.escaped && at < bytes.len() {
                    self.escaped = false;
                    at += 1;
                }
                at += memchr::memchr2(b'"', b'\\', &bytes[at..])?;
                self.escaped = bytes[at] == b'\\';
                self.in_string = self.escaped;
                at += 1;
            } else {
                let of_interest = |b: &u8| matches!(b, b'"' | b'{' | b'[' | b'}' | b']');
                at += bytes[at..].iter().position(of_interest)?;
                if bytes[at] != b'"' {
                    return Some(at);
                }
                self.in_string = true;
                at += 1;
            }
        }
    }

    /// The first bytes are gone.
    fn forget(&mut self, len: usize) {
        self.element = self.element.map(|(begin, around)| (begin.saturating_sub(len), around));
    }

    /// Behind the end of what had begun.
    fn is_outside(&self) -> bool {
        self.began && self.depth == 0 && !self.in_string
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"[{"a":[{"b":"}]\\"},{"c":"\"}] {\"error\":{}}"}]}"#;
    const SECOND: &str = "\n,\r\n{\"d\":{\"error\":{}}}";

    /// Feeds `text` in pieces of `size`; what passed, the error, and the array.
    fn feed(text: &str, size: usize) -> (String, Option<ErrorBody>, Array) {
        let mut array = Array::default();
        let mut passed = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            match array.scan(Bytes::copy_from_slice(piece)) {
                Scanned::Pass(bytes) => passed.extend_from_slice(&bytes),
                Scanned::Error(bytes, error) => {
                    passed.extend_from_slice(&bytes);
                    return (String::from_utf8(passed).unwrap(), Some(*error), array);
                }
            }
        }
        (String::from_utf8(passed).unwrap(), None, array)
    }

    #[test]
    fn an_answer_passes_unchanged_however_it_is_cut() {
        for text in [format!("{FIRST}{SECOND}]\n"), "[]".into(), "{\"candidates\":[{}]}\n".into()] {
            for size in 1..=text.len() {
                let (passed, error, array) = feed(&text, size);
                assert_eq!((passed.as_str(), error), (text.as_str(), None), "in pieces of {size}");
                assert!(array.has_ended(), "{text:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn wherever_it_stops_it_can_be_closed() {
        let text = format!("{FIRST}{SECOND}");
        for len in 0..=text.len() {
            for size in [1, 7, text.len()] {
                let (passed, _, array) = feed(&text[..len], size);
                assert!(!array.has_ended(), "{:?} in pieces of {size}", &text[..len]);
                let closed = format!("{passed}{}{{}}]", array.joint().unwrap());
                let list: Vec<serde_json::Value> = serde_json::from_str(&closed).unwrap();
                let elements = 1 + usize::from(len >= FIRST.len()) + usize::from(len >= text.len());
                assert_eq!(list.len(), elements, "{closed}");
            }
        }
    }

    #[test]
    fn every_form_of_an_error_is_caught_however_it_is_cut() {
        let json = "{\n  \"error\": {\"code\":503,\"message\":\"busy }]\",\"status\":\"UNAVAILABLE\"}\n}";
        for form in [format!(",\r\n{json}\r\n]"), format!("\n{json}\n"), format!("[{json}]")] {
            let text = format!("{FIRST}{form}");
            for size in 1..=text.len() {
                let (passed, error, array) = feed(&text, size);
                assert_eq!(passed, FIRST, "{form} in pieces of {size}");
                let status = error.map(|error| error.status);
                assert_eq!(status.as_deref(), Some("UNAVAILABLE"), "{form} in pieces of {size}");
                assert_eq!(array.joint(), Some(","));
            }
        }
    }

    #[test]
    fn a_large_element_passes_as_it_comes_and_does_not_hide_an_error_behind_it() {
        let mut array = Array::default();
        let mut passed = 0;
        for chunk in ["[{\"image\":\"", &"x".repeat(50_000), &"{".repeat(50_000), "\"", "}"] {
            match array.scan(Bytes::copy_from_slice(chunk.as_bytes())) {
                Scanned::Pass(bytes) => passed += bytes.len(),
                Scanned::Error(..) => panic!("that is no error"),
            }
            assert!(array.held.len() <= MAX_HELD);
            let within = passed > 0 && chunk != "}";
            assert_eq!(array.joint().is_none(), within, "behind {passed} bytes");
        }
        assert_eq!(passed, 100_013);
        let error = array.scan(Bytes::from_static(b",{\"error\":{}}"));
        assert!(matches!(error, Scanned::Error(before, _) if before.is_empty()));
    }

    #[test]
    fn an_endless_error_is_cut_off() {
        let mut array = Array::default();
        array.scan(Bytes::from_static(b"[{},{\"error\":{\"message\":\""));
        let mut seen = false;
        for _ in 0..100 {
            seen |= matches!(array.scan(Bytes::from(vec![b'x'; 1024])), Scanned::Error(..));
            assert!(array.held.len() <= MAX_HELD);
        }
        assert!(seen);
    }

    #[test]
    fn the_first_element_is_found() {
        for (text, first) in [("[{\"a\":{}}\n,{}]", "{\"a\":{}}"), ("{\"b\":1} ", "{\"b\":1}")] {
            let len = element_len(text.as_bytes()).unwrap();
            assert_eq!(element(&text.as_bytes()[..len]), first.as_bytes());
        }
        for text in ["", "[", "[]", "[{\"a\":\"}", " ]"] {
            assert_eq!(element_len(text.as_bytes()), None, "{text}");
        }
    }
}
