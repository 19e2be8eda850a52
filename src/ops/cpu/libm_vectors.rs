//! Functions of the pinned [`libm`] on many numbers at once, with its bits.
//!
//! libm's way without its branches: the same operations in the same order on every number, which the
//! compiler turns into vectors. What libm branches for is selected afterwards, and the few numbers that take
//! another way altogether are given to libm itself.

use super::simd::{Isa, vectorize};
use crate::rng::Key;

/// Numbers of a block, which stays in the first cache.
const BLOCK: usize = 256;

const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Below it results of [`exp`] come near the smallest normal number.
const LOWEST: f64 = -708.0;

/// Each of `xs`, none above 0 or NaN, becomes its exponential.
pub fn exp_all(xs: &mut [f64]) {
    for xs in xs.chunks_mut(BLOCK) {
        let given: [f64; BLOCK] = std::array::from_fn(|i| xs.get(i).copied().unwrap_or(0.0));
        vectorize!(Isa::widest(), |_| xs.iter_mut().for_each(|x| *x = exp(*x)));
        for (x, given) in xs.iter_mut().zip(given).filter(|(_, given)| *given <= LOWEST) {
            *x = libm::exp(given);
        }
    }
}

/// e^x for [`LOWEST`] < x <= 0.
#[inline(always)]
fn exp(x: f64) -> f64 {
    const P: [f64; 5] = [
        1.666_666_666_666_660_2e-1,
        -2.777_777_777_701_559_3e-3,
        6.613_756_321_437_934e-5,
        -1.653_390_220_546_525_2e-6,
        4.138_136_797_057_238_5e-8,
    ];
    // Added to a whole number, it leaves that number in the lowest bits.
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

/// `out[i]` becomes [`Key::normal`] at the counter (`high`, `first` + i), times `scale`, rounded to a float.
pub fn normals(key: Key, high: u64, first: u64, scale: f64, out: &mut [f32]) {
    let (mut radii, mut angles) = ([0.0; BLOCK], [0.0; BLOCK]);
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let first = first + (block * BLOCK) as u64;
        let (radii, angles) = (&mut radii[..out.len()], &mut angles[..out.len()]);
        vectorize!(Isa::widest(), |_| {
            for (i, (radius, angle)) in radii.iter_mut().zip(&mut *angles).enumerate() {
                let [radius_unit, angle_unit] = key.uniforms(high, first + i as u64);
                *radius = (-2.0 * log(1.0 - radius_unit)).sqrt();
                *angle = 2.0 * std::f64::consts::PI * angle_unit;
            }
            for ((out, radius), angle) in out.iter_mut().zip(&*radii).zip(&*angles) {
                *out = (scale * (radius * cos(*angle))) as f32;
            }
        });
        for ((out, radius), angle) in out.iter_mut().zip(&*radii).zip(&*angles) {
            if near_a_multiple(*angle) {
                *out = (scale * (radius * libm::cos(*angle))) as f32;
            }
        }
    }
}

/// The natural logarithm for 2^-1022 <= x <= 1.
#[inline(always)]
fn log(x: f64) -> f64 {
    const L: [f64; 7] = [
        6.666_666_666_666_735e-1,
        3.999_999_999_940_942e-1,
        2.857_142_874_366_239e-1,
        2.222_219_843_214_978_4e-1,
        1.818_357_216_161_805e-1,
        1.531_383_769_920_937_3e-1,
        1.479_819_860_511_658_6e-1,
    ];
    // Into [sqrt(2)/2, sqrt(2)].
    let high_word = ((x.to_bits() >> 32) as u32).wrapping_add(0x3ff0_0000 - 0x3fe6_a09e);
    let doublings = f64::from((high_word >> 20) as i32 - 0x3ff);
    let high_word = (high_word & 0x000f_ffff) + 0x3fe6_a09e;
    let x = f64::from_bits(u64::from(high_word) << 32 | x.to_bits() & 0xffff_ffff);

    let f = x - 1.0;
    let half_square = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let odd = w * (L[1] + w * (L[3] + w * L[5]));
    let even = z * (L[0] + w * (L[2] + w * (L[4] + w * L[6])));
    let r = even + odd;
    s * (half_square + r) + doublings * LN2_LOW - half_square + f + doublings * LN2_HIGH
}

/// Whether libm reduces `x` of [0, 2π) by another way than [`cos`], as it does beside multiples of π/2.
fn near_a_multiple(x: f64) -> bool {
    matches!((x.to_bits() >> 32) as u32, 0x3ff9_21fb | 0x4009_21fb | 0x4012_d97c | 0x4019_21fb)
}

/// The cosine for 0 <= x < 2π, not beside a multiple of π/2.
#[inline(always)]
fn cos(x: f64) -> f64 {
    // π/2 in two parts.
    const HALF_PI: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_REST: f64 = 6.077_100_506_506_192e-11;
    const C: [f64; 6] = [
        4.166_666_666_666_66e-2,
        -1.388_888_888_887_411e-3,
        2.480_158_728_947_673e-5,
        -2.755_731_435_139_066_3e-7,
        2.087_572_321_298_175e-9,
        -1.135_964_755_778_819_5e-11,
    ];
    const S: [f64; 6] = [
        -1.666_666_666_666_663_2e-1,
        8.333_333_333_322_49e-3,
        -1.984_126_982_985_795e-4,
        2.755_731_370_707_006_8e-6,
        -2.505_076_025_340_686_3e-8,
        1.589_690_995_211_55e-10,
    ];
    let high_word = (x.to_bits() >> 32) as u32;
    let quarter = if high_word > 0x3fe9_21fb { 1.0 } else { 0.0 };
    let quarter = if high_word > 0x4002_d97c { 2.0 } else { quarter };
    let quarter = if high_word > 0x400f_6a7a { 3.0 } else { quarter };
    let quarter = if high_word > 0x4015_fdbc { 4.0 } else { quarter };
    let z = x - quarter * HALF_PI;
    let rest = quarter * HALF_PI_REST;
    let y = z - rest;
    let low = (z - y) - rest;

    let z = y * y;
    let w = z * z;
    let r = z * (C[0] + z * (C[1] + z * C[2])) + w * w * (C[3] + z * (C[4] + z * C[5]));
    let half = 0.5 * z;
    let one_less = 1.0 - half;
    let cosine = one_less + (((1.0 - one_less) - half) + (z * r - y * low));

    let r = S[1] + z * (S[2] + z * S[3]) + z * w * (S[4] + z * S[5]);
    let v = z * y;
    let sine = y - ((z * (0.5 * low - v * r) - low) - v * S[0]);

    let turned = if quarter == 1.0 { -sine } else { cosine };
    let turned = if quarter == 2.0 { -cosine } else { turned };
    if quarter == 3.0 { sine } else { turned }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_have_the_bits_of_libm() {
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

    #[test]
    fn logarithms_and_cosines_have_the_bits_of_libm() {
        let key = Key::new(2, "log and cos");
        for i in 0..2_000_000 {
            let x = key.uniform(0, i);
            let small = f64::from_bits(x.to_bits().saturating_sub((i % 53) << 52));
            for x in [1.0 - x, small.max(f64::MIN_POSITIVE)] {
                assert_eq!(log(x).to_bits(), libm::log(x).to_bits(), "ln {x:e}");
            }
            // Beside each multiple of π/8, and anywhere.
            let near = (i % 17) as f64 * std::f64::consts::FRAC_PI_8;
            let near =
                f64::from_bits((near.to_bits() ^ (key.block_at(1, i)[0] >> (i % 31)) as u64) & !(1 << 63));
            for x in [2.0 * std::f64::consts::PI * x, near.min(std::f64::consts::TAU)] {
                if !near_a_multiple(x) {
                    assert_eq!(cos(x).to_bits(), libm::cos(x).to_bits(), "cos {x:e}");
                }
            }
        }
        for x in [1.0, 1.0f64.next_down(), 0.5, 2f64.powi(-53)] {
            assert_eq!(log(x).to_bits(), libm::log(x).to_bits(), "ln {x:e}");
        }
        for edge in
            [0x3fe9_21fbu64, 0x3fe9_21fc, 0x4002_d97c, 0x4002_d97d, 0x400f_6a7a, 0x400f_6a7b, 0x4015_fdbc]
        {
            for x in [edge << 32, (edge << 32) - 1, (edge << 32) + 0xffff_ffff].map(f64::from_bits) {
                assert_eq!(cos(x).to_bits(), libm::cos(x).to_bits(), "cos {x:e}");
            }
        }
    }

    #[test]
    fn normal_numbers_by_vectors_are_those_one_by_one() {
        let key = Key::new(3, "init");
        let (high, first, scale) = (u64::from(u32::MAX) + 7, u64::from(u32::MAX) - 1000, 0.02);
        let mut got = vec![0.0; 300_001];
        normals(key, high, first, scale, &mut got);
        for (i, got) in got.iter().enumerate() {
            let want = (scale * key.normal(high, first + i as u64)) as f32;
            assert_eq!(got.to_bits(), want.to_bits(), "number {i}");
        }
    }
}
