//! Watching a model's answer that comes as one streamed JSON array: where it stands when it stops.

/// The place in the array.
#[derive(Debug, Default)]
pub(crate) struct Array {
    depth: u32,
    /// The last byte that gave the text its structure.
    last: u8,
    in_string: bool,
    escaped: bool,
}

impl Array {
    /// Looks at bytes that pass.
    pub(crate) fn look(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            if self.in_string {
                if std::mem::take(&mut self.escaped) && !rest.is_empty() {
                    rest = &rest[1..];
                }
                let Some(at) = memchr::memchr2(b'"', b'\\', rest) else { return };
                self.escaped = rest[at] == b'\\';
                self.in_string = self.escaped;
                rest = &rest[at + 1..];
                if self.escaped && rest.is_empty() {
                    return;
                }
            } else {
                let of_interest = |b: &u8| matches!(b, b'"' | b'{' | b'[' | b'}' | b']' | b',');
                let Some(at) = rest.iter().position(of_interest) else { return };
                self.step(rest[at]);
                rest = &rest[at + 1..];
            }
        }
    }

    fn step(&mut self, byte: u8) {
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.last = byte;
    }

    /// The array has been closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.depth == 0 && self.last == b']'
    }

    /// Another element can follow.
    pub(crate) fn is_between_elements(&self) -> bool {
        self.depth == 1 && self.last == b'}'
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_known_however_it_is_cut() {
        let text = r#"[{"a":[{"b":"}]\\"},{"c":"\"}]"}]}
,
{"d":{}}]"#;
        // The ends of the two elements, in bytes; the second is followed by the bracket.
        let ends: Vec<_> = ["}]}", "{}}"].map(|end| text.rfind(end).unwrap() + 3).into();
        for size in 1..=text.len() {
            let mut array = Array::default();
            let mut at = 0;
            for piece in text.as_bytes().chunks(size) {
                array.look(piece);
                at += piece.len();
                let between = ends.contains(&at) || text[ends[0]..].starts_with('\n') && at == ends[0] + 1;
                assert_eq!(array.is_between_elements(), between, "{:?} in pieces of {size}", &text[..at]);
                assert_eq!(array.has_ended(), at == text.len(), "{:?} in pieces of {size}", &text[..at]);
            }
        }
    }
}
