//! What an answer tells of itself: which model made it, its id, and why it ended. Read on its way out, and only where the
//! trace is kept.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::skim::{skim, unescaped};

/// What is longer is cut, in bytes.
const LONGEST: usize = 128;
/// The most reasons of one answer.
const REASONS: usize = 8;

static REASON: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("eason\":"));
const NAMES: [&[u8]; 2] = [b"\"finish_r", b"\"finishR"];

/// What one answer has told so far.
#[derive(Debug, Default)]
pub(super) struct Told {
    has_begun: bool,
    pub(super) model: Option<String>,
    pub(super) id: Option<String>,
    /// Each once, in the upstream's words.
    pub(super) reasons: Vec<String>,
}

impl Told {
    /// Looks at a piece: whole events, or a part of plain bytes. A reason that is cut by its end is not found.
    pub(super) fn look(&mut self, piece: &[u8]) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.begin(piece);
        }
        for at in REASON.find_iter(piece) {
            // In a text that quotes it, the quote behind the name is escaped.
            if NAMES.iter().any(|name| piece[..at].ends_with(name)) {
                self.ended(&piece[at + REASON.needle().len()..]);
            }
        }
    }

    fn begin(&mut self, piece: &[u8]) {
        let Some(at) = memchr::memchr(b'{', piece) else { return };
        let object = &piece[at..];
        let head = skim(object);
        let text = |range: Option<Range<usize>>| {
            let mut text = String::from_utf8(unescaped(&object[range?]).into_owned()).ok()?;
            text.truncate(text.floor_char_boundary(LONGEST));
            Some(text)
        };
        self.model = text(head.model.or(head.model_version));
        self.id = text(head.id.or(head.response_id));
    }

    fn ended(&mut self, behind: &[u8]) {
        let Some(value) = behind.trim_ascii_start().strip_prefix(b"\"") else { return };
        let value = &value[..value.len().min(LONGEST)];
        let Some(reason) = memchr::memchr(b'"', value).and_then(|end| str::from_utf8(&value[..end]).ok())
        else {
            return;
        };
        // A model may write what it likes into the arguments of a call; a reason is a word.
        let is_word = reason.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if is_word && self.reasons.len() < REASONS && !self.reasons.iter().any(|known| known == reason) {
            self.reasons.push(reason.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pieces: &[&str]) -> (Option<String>, Option<String>, Vec<String>) {
        let mut told = Told::default();
        for piece in pieces {
            told.look(piece.as_bytes());
        }
        (told.model, told.id, told.reasons)
    }

    fn expected(model: &str, id: &str, reasons: &[&str]) -> (Option<String>, Option<String>, Vec<String>) {
        let reasons = reasons.iter().map(|reason| (*reason).to_owned()).collect();
        (Some(model.to_owned()), Some(id.to_owned()), reasons)
    }

    #[test]
    fn answers_of_each_surface_and_form_tell_who_made_them_and_why_they_ended() {
        let compat = "{\"choices\":[{\"message\":{\"tool_calls\":[{\"id\":\"call\",\"model\":1}]},\
                      \"finish_reason\":\"tool_calls\"},{\"finish_reason\": \"stop\"}],\"id\":\"a\",\"model\":\"m\"}";
        assert_eq!(told(&[compat]), expected("m", "a", &["tool_calls", "stop"]));
        let native = |reason| {
            format!(
                "{{\"candidates\":[{{\"index\":0{reason}}}],\"modelVersion\":\"m-1\",\"responseId\":\"b\"}}"
            )
        };
        let (open, last) = (native(""), native(",\"finishReason\": \"MAX_TOKENS\""));
        let events = [open.as_str(), &last, &last].map(|json| format!("data: {json}\r\n\r\n"));
        let events = [events[0].as_str(), &events[1], &events[2]];
        assert_eq!(told(&events), expected("m-1", "b", &["MAX_TOKENS"]));
        assert_eq!(
            told(&[&format!("[{open}"), &format!(",\r\n{last}]")]),
            expected("m-1", "b", &["MAX_TOKENS"])
        );
    }

    #[test]
    fn what_a_model_writes_is_none_of_it() {
        let quoted = "{\"text\":\"{\\\"id\\\":\\\"x\\\",\\\"finishReason\\\":\\\"STOP\\\"}\"}";
        let argument = "{\"args\":{\"finish_reason\":\"a whole sentence\",\"finishReason\":null}}";
        let long = format!("{{\"finishReason\":\"{}\"}}", "X".repeat(2 * LONGEST));
        for text in [quoted, argument, &long, "{\"finishReason\":\"STO", "{", "", "PNG"] {
            assert_eq!(told(&[text]), (None, None, Vec::new()), "{text}");
        }
        let long = told(&[&format!("{{\"id\":\"{}\"}}", "x".repeat(2 * LONGEST))]).1;
        assert_eq!(long.map(|id| id.len()), Some(LONGEST));
    }
}
