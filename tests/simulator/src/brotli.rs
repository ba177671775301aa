//! The Brotli format (RFC 7932) with nothing compressed: what a reader has to decode, without a compressor.

/// The most bytes of one stored block: sixteen bits hold its length less one.
const BLOCK: usize = 65_536;
/// An empty last block.
const END: u8 = 0b11;

/// Writes a Brotli stream piece by piece; each piece can be read as soon as it is there.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    begun: bool,
}

impl Encoder {
    pub(crate) fn write(&mut self, data: &[u8], last: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len() + 8);
        for block in data.chunks(BLOCK) {
            // From the lowest bit on: not the last block (0), a length of four nibbles (00), the length less one,
            // stored (1). The first block has the window's size before it (0: 64 KiB). What is left of the last
            // byte is nothing.
            let length = u32::try_from(block.len() - 1).unwrap_or(0);
            let header = (length << 3 | 1 << 19) << u32::from(!self.begun);
            self.begun = true;
            let [low, middle, high, _] = header.to_le_bytes();
            out.extend_from_slice(&[low, middle, high]);
            out.extend_from_slice(block);
        }
        if last {
            out.push(if self.begun { END } else { END << 1 });
        }
        out
    }
}
