//! Embeddings of both surfaces: vectors that depend on the text alone.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::json;

use crate::answer::Rendered;
use crate::ask::EmbedAsk;
use crate::chance::Chance;

const JSON: &str = "application/json; charset=UTF-8";
/// The longest vector that a request can ask for.
const MAX_DIMENSIONS: usize = 4_096;

pub(crate) fn compat(ask: &EmbedAsk, model: &str, dimensions: usize) -> Rendered {
    let mut text = String::from("{\"object\":\"list\",\"data\":[");
    for (at, input) in ask.inputs.iter().enumerate() {
        let vector = vector(input, ask.dimensions.unwrap_or(dimensions));
        let embedding = if ask.base64 {
            json!(base64(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
        } else {
            json!(vector)
        };
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(text, "{comma}{{\"object\":\"embedding\",\"index\":{at},\"embedding\":{embedding}}}");
    }
    let _ = write!(text, "],\"model\":\"{model}\"}}");
    Rendered::whole(JSON, Bytes::from(text))
}

pub(crate) fn native(ask: &EmbedAsk, dimensions: usize, batch: bool) -> Rendered {
    let values = |input: &String| json!({"values": vector(input, ask.dimensions.unwrap_or(dimensions))});
    let all: Vec<_> = ask.inputs.iter().map(values).collect();
    let body = if batch { json!({"embeddings": all}) } else { json!({"embedding": all.first()}) };
    let text = serde_json::to_string_pretty(&body).unwrap_or_default();
    Rendered::whole(JSON, Bytes::from(text + "\n"))
}

fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let seed = text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let mut chance = Chance::new(seed, 0);
    // Sixteenths are exact in binary, so that decimal and base64 forms are the same numbers.
    let mut draw = || {
        let step = u16::try_from(chance.below(65)).unwrap_or(0);
        (f32::from(step) - 32.0) / 512.0
    };
    (0..dimensions.clamp(1, MAX_DIMENSIONS)).map(|_| draw()).collect()
}

/// Standard base64 with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let six = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap_or(0);
            out.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    out
}
