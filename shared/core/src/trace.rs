//! Which request something was done for, as its client names it: the W3C `traceparent`.
//!
//! Only what this parses is passed on or shown, and only in the form in which this writes it: nothing else that a
//! client may have put there gets into logs or headers.

use std::fmt;

/// The name of the header, of HTTP and of NATS.
pub const HEADER: &str = "traceparent";

/// The version that is written. Later ones may say more behind what is known.
const VERSION: &str = "00";
/// The length of all that is known.
const KNOWN: usize = 55;

/// One step of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// What all steps of a trace have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// One step among those of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

impl TraceParent {
    /// The first step of a trace of our own; `None` for a zero, which names nothing.
    pub const fn root(trace: u128, span: u64, sampled: bool) -> Option<Self> {
        if trace == 0 || span == 0 { None } else { Some(Self { trace, span, sampled }) }
    }

    /// The next step of the same trace; `None` for a zero.
    pub const fn child(self, span: u64, sampled: bool) -> Option<Self> {
        Self::root(self.trace, span, sampled)
    }

    /// Reads one; `None` if any part is not as the standard has it.
    pub fn parse(text: &str) -> Option<Self> {
        let (known, more) = text.split_at_checked(KNOWN)?;
        let mut parts = known.split('-');
        let mut hex = |digits| lower_hex(parts.next()?, digits);
        let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let span = u64::try_from(span).ok()?;
        let ends = more.is_empty() || version > 0 && more.starts_with('-');
        let valid = version != 0xff && trace != 0 && span != 0 && ends;
        valid.then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }

    /// The trace that it is part of.
    pub const fn trace_id(self) -> TraceId {
        TraceId(self.trace)
    }

    /// The step itself.
    pub const fn span_id(self) -> SpanId {
        SpanId(self.span)
    }

    /// Whether whoever took this step keeps it.
    pub const fn is_sampled(self) -> bool {
        self.sampled
    }
}

impl TraceId {
    /// As a number.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl SpanId {
    /// As a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// A number of exactly so many digits.
fn lower_hex(text: &str, digits: usize) -> Option<u128> {
    let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let valid = text.len() == digits && text.bytes().all(is_hex);
    valid.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn parse(text: &str) -> Option<TraceParent> {
        TraceParent::parse(text)
    }

    #[test]
    fn what_is_valid_is_written_as_it_was_read() {
        for flags in ["00", "01"] {
            let text = format!("00-{TRACE}-{SPAN}-{flags}");
            let read = parse(&text).unwrap();
            assert_eq!((read.to_string(), read.trace_id().to_string()), (text, TRACE.to_owned()));
            assert_eq!(read.is_sampled(), flags == "01");
        }
        let low = "00-0000000000000000000000000000000a-000000000000000b-01";
        assert_eq!(parse(low).unwrap().to_string(), low, "zeros in front are kept");
    }

    #[test]
    fn of_what_a_later_version_says_only_what_is_known_is_passed_on() {
        let known = parse(&format!("00-{TRACE}-{SPAN}-01"));
        assert_eq!(parse(&format!("00-{TRACE}-{SPAN}-ff")), known);
        assert_eq!(parse(&format!("01-{TRACE}-{SPAN}-01")), known);
        assert_eq!(parse(&format!("fe-{TRACE}-{SPAN}-03-\"more\"\n")), known);
    }

    #[test]
    fn the_next_step_is_of_the_same_trace() {
        let client = parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        let ours = client.child(0xb7, false).unwrap();
        assert_eq!(ours.to_string(), format!("00-{TRACE}-00000000000000b7-00"));
        assert_eq!((ours.span_id().to_string().as_str(), ours.is_sampled()), ("00000000000000b7", false));
        assert_eq!((client.child(0, true), TraceParent::root(0, 1, true)), (None, None));
    }

    #[test]
    fn everything_else_is_nothing() {
        let wrong = [
            String::new(),
            "-".repeat(KNOWN),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("00-{TRACE}-{SPAN}-010"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("01-{TRACE}-{SPAN}-01more"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!("00-{TRACE}{SPAN}--01"),
            format!("00-{}-a{SPAN}-01", &TRACE[1..]),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01\n"),
            format!("00-{TRACE}-{SPAN}-é"),
            format!("00-{TRACE}-{SPAN}-0é"),
        ];
        for text in wrong {
            assert_eq!(parse(&text), None, "{text:?}");
        }
    }
}
