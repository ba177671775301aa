//! Seeded randomness: the same seed and the same draw number give the same value, in any order of arrival.

/// A small generator (`SplitMix64`), made anew for each request from the world's seed and the request's number.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly in `0..bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.bits()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Evenly in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        let top = u32::try_from(self.bits() >> 32).unwrap_or(0);
        f64::from(top) / (f64::from(u32::MAX) + 1.0)
    }

    /// Log-normal with the given median.
    pub(crate) fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }

    /// An opaque id of `len` characters.
    pub(crate) fn id(&mut self, len: usize, alphabet: &[u8; 32]) -> String {
        let mut text = String::with_capacity(len);
        let mut bits = 0;
        for place in 0..len {
            if place % 12 == 0 {
                bits = self.bits();
            }
            text.push(char::from(alphabet[usize::try_from(bits & 31).unwrap_or(0)]));
            bits >>= 5;
        }
        text
    }
}

/// Characters of response and tool call ids.
pub(crate) const MIXED: &[u8; 32] = b"ABCDEHKMQRTVXabcdefhkmqrtvx23456";
/// Characters of resource ids.
pub(crate) const LOWER: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
