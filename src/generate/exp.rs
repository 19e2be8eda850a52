//! e^x of many numbers at once, with the bits of the pinned [`libm::exp`].
//!
//! libm's way without its branches: the same operations in the same order on every number, which the
//! compiler turns into vectors. What it branches for is selected afterwards.

use crate::ops::cpu::simd::{Isa, vectorize};

const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
const P: [f64; 5] = [
    1.666_666_666_666_660_2e-1,
    -2.777_777_777_701_559_3e-3,
    6.613_756_321_437_934e-5,
    -1.653_390_220_546_525_2e-6,
    4.138_136_797_057_238_5e-8,
];
/// Below it results come near the smallest normal number.
const LOWEST: f64 = -708.0;

/// Each of `xs`, none above 0 or NaN, becomes its exponential.
pub fn exp_all(xs: &mut [f64]) {
    // A block stays in the first cache between the two passes.
    for xs in xs.chunks_mut(512) {
        let given: [f64; 512] = std::array::from_fn(|i| xs.get(i).copied().unwrap_or(0.0));
        vectorize!(Isa::widest(), |_| xs.iter_mut().for_each(|x| *x = exp(*x)));
        for (x, given) in xs.iter_mut().zip(given).filter(|(_, given)| *given <= LOWEST) {
            *x = libm::exp(given);
        }
    }
}

/// e^x for [`LOWEST`] < x <= 0.
#[inline(always)]
fn exp(x: f64) -> f64 {
    // The whole number at the lowest bits of a float: 2^52 + 2^51.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let high_word = (x.to_bits() >> 32) as u32 & 0x7fff_ffff;
    let doublings = (std::f64::consts::LOG2_E * x - 0.5).trunc();
    let doublings = if high_word >= 0x3ff0_a2b2 { doublings } else { -1.0 };
    let doublings = if high_word > 0x3fd6_2e42 { doublings } else { 0.0 };
    let (high, low) = (x - doublings * LN2_HIGH, doublings * LN2_LOW);
    let r = high - low;
    let rr = r * r;
    let c = r - rr * (P[0] + rr * (P[1] + rr * (P[2] + rr * (P[3] + rr * P[4]))));
    let y = 1.0 + (r * c / (2.0 - c) - low + high);
    let power = f64::from_bits(((doublings + SHIFT).to_bits().wrapping_add(1023)) << 52);
    if high_word > 0x3e30_0000 { y * power } else { 1.0 + x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    #[test]
    fn it_has_the_bits_of_libm() {
        let key = Key::new(1, "exp");
        let mut xs: Vec<f64> = (0..2_000_000)
            .map(|i| {
                let x = key.uniform(0, i);
                match i % 4 {
                    0 => -800.0 * x,
                    1 => -20.0 * x,
                    2 => -2.0 * x,
                    // Any exponent.
                    _ => -f64::from_bits(x.to_bits() - ((i / 4 % 1000) << 52)),
                }
            })
            .collect();
        // Where libm's branches part, and their neighbours.
        for edge in
            [0x3fd6_2e42u64, 0x3fd6_2e43, 0x3ff0_a2b1, 0x3ff0_a2b2, 0x3ff0_a2b3, 0x3e30_0000, 0x3e30_0001]
        {
            for bits in [edge << 32, (edge << 32) - 1, (edge << 32) + 1, (edge << 32) + 0xffff_ffff] {
                xs.push(-f64::from_bits(bits));
            }
        }
        xs.extend([0.0, -0.0, LOWEST, LOWEST.next_up(), -745.0, -746.0, f64::MIN, f64::NEG_INFINITY]);
        let want: Vec<u64> = xs.iter().map(|&x| libm::exp(x).to_bits()).collect();
        let mut got = xs.clone();
        exp_all(&mut got);
        for ((x, got), want) in xs.iter().zip(got).zip(want) {
            assert_eq!(got.to_bits(), want, "e^{x:e}");
        }
    }
}
