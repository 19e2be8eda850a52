//! Counter-based random numbers: every number is a pure function of a key and a counter.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Nothing
//! here holds state, so threads, devices and resumes cannot disturb the numbers.

use sha2::{Digest, Sha256};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// A stream of random numbers: the seed of the experiment and what the numbers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub [u32; 2]);

impl Key {
    /// The key of a purpose under a seed: the first eight bytes of
    /// `SHA256("runner/rng/v1" ‖ seed as u64 LE ‖ purpose)`.
    pub fn new(seed: u64, purpose: &str) -> Key {
        let hash = Sha256::new()
            .chain_update(b"runner/rng/v1")
            .chain_update(seed.to_le_bytes())
            .chain_update(purpose.as_bytes())
            .finalize();
        let word = |i: usize| u32::from_le_bytes([hash[i], hash[i + 1], hash[i + 2], hash[i + 3]]);
        Key([word(0), word(4)])
    }

    /// Four random words for one counter.
    #[inline(always)]
    pub fn block(self, mut counter: [u32; 4]) -> [u32; 4] {
        let mut key = self.0;
        for _ in 0..10 {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
            counter = [
                (b >> 32) as u32 ^ counter[1] ^ key[0],
                b as u32,
                (a >> 32) as u32 ^ counter[3] ^ key[1],
                a as u32,
            ];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        counter
    }

    /// Four random words for a pair of indices.
    #[inline(always)]
    pub fn block_at(self, high: u64, low: u64) -> [u32; 4] {
        self.block([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32])
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn uniform(self, high: u64, low: u64) -> f64 {
        let [a, b, ..] = self.block_at(high, low);
        unit(a, b)
    }

    /// Two numbers in [0, 1), of which the first is [`Key::uniform`].
    #[inline(always)]
    pub fn uniforms(self, high: u64, low: u64) -> [f64; 2] {
        let [a, b, c, d] = self.block_at(high, low);
        [unit(a, b), unit(c, d)]
    }

    /// A standard normal number (Box and Muller 1958, with the pinned `libm`).
    pub fn normal(self, high: u64, low: u64) -> f64 {
        let [a, b] = self.uniforms(high, low);
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - a));
        radius * libm::cos(2.0 * std::f64::consts::PI * b)
    }
}

#[inline(always)]
fn unit(high: u32, low: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(Key([0; 2]).block([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            Key([u32::MAX; 2]).block([u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            Key([0xa409_3822, 0x299f_31d0]).block([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normals_have_mean_zero_and_unit_variance() {
        let key = Key::new(7, "test");
        let xs: Vec<f64> = (0..20_000).map(|i| key.normal(0, i)).collect();
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        let var = xs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / xs.len() as f64;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((var - 1.0).abs() < 0.05, "variance {var}");
    }
}
