//! Hopper's tensor core: bf16 products with fp32 sums, as `wgmma` makes them.
//!
//! A sum runs over k in chunks of 16, ascending. For one chunk and one element of the result:
//!
//! 1. Each product is exact: significands of eight bits multiplied, exponents added and not normalised. A
//!    subnormal factor has no hidden bit and exponent -126. A product that is zero takes no part.
//! 2. The largest exponent among the products and the sum so far (24 bits, subnormals at -126) is found.
//! 3. All are shifted to that exponent with 25 fraction bits; what falls off is cut off, towards zero. They
//!    are then added exactly.
//! 4. The sum is normalised and cut off to 24 bits, towards zero, at no exponent below -126; zero, also by
//!    cutting off, is +0.
//!
//! NaN, and infinity times zero or beside the other infinity, gives NaN; other infinities stay; a sum of
//! 2^128 or more is infinite. How k is tiled, pipelined or which library asks does not matter as long as a
//! sum is one such chain. Measured on an H100; published models agree (MMA-Sim, arXiv 2511.10909; arXiv
//! 2512.07004).
//!
//! [`chunk`] is that text in integers. [`multiply`] is the same in vectors: products and cut-offs are exact
//! in floats while the largest exponent is between -100 and 120, and [`chunk`] does the rest.

use half::bf16;
use rayon::prelude::*;

use super::scalar::{kept, wide};
use crate::ops::cpu::engine::Engine;
use crate::ops::cpu::simd::vectorize;

/// Terms that are added at once.
pub const CHUNK: usize = 16;
/// Columns of a panel of the right factor: a whole number of vectors, whatever the CPU.
const LANES: usize = 16;
/// Fraction bits of what is added.
const FRACTION: i32 = 25;
/// The exponent of nothing.
const NOTHING: i32 = -100_000;
/// Exponents between which products and cut-offs are exact in floats.
const FAST: std::ops::RangeInclusive<i32> = -100..=120;
/// Rows that a thread works on at once.
const BAND: usize = 64;

/// Sign, significand as an integer and exponent of its lowest bit's `places` doublings.
fn parts(bits: u32, mantissa_bits: u32, exponent_bits: u32) -> (bool, i64, i32) {
    let negative = bits >> (mantissa_bits + exponent_bits) != 0;
    let mantissa = i64::from(bits & ((1 << mantissa_bits) - 1));
    let exponent = (bits >> mantissa_bits & ((1 << exponent_bits) - 1)) as i32;
    match exponent {
        0 => (negative, mantissa, -126),
        _ => (negative, mantissa | 1 << mantissa_bits, exponent - 127),
    }
}

/// One chunk of a sum.
pub fn chunk(sum: f32, a: &[bf16; CHUNK], b: &[bf16; CHUNK]) -> f32 {
    let products = || a.iter().zip(b).map(|(a, b)| (wide(*a), wide(*b)));
    let special = |x: f32| !x.is_finite();
    if special(sum) || products().any(|(a, b)| special(a) || special(b)) {
        // Every finite product is finite in f64, so that only infinities and NaN count.
        let total = products().fold(f64::from(sum), |total, (a, b)| {
            let product = f64::from(a) * f64::from(b);
            if product.is_finite() && total.is_finite() { 0.0 } else { total + product }
        });
        return kept(total as f32);
    }
    // (negative, significand with 25 fraction bits, exponent)
    let mut terms = [(false, 0i64, NOTHING); CHUNK + 1];
    for (term, (a, b)) in terms.iter_mut().zip(a.iter().zip(b)) {
        let (a_negative, a, a_exponent) = parts(a.to_bits().into(), 7, 8);
        let (b_negative, b, b_exponent) = parts(b.to_bits().into(), 7, 8);
        if a * b != 0 {
            *term = (a_negative != b_negative, (a * b) << (FRACTION - 14), a_exponent + b_exponent);
        }
    }
    let (negative, significand, exponent) = parts(sum.to_bits(), 23, 8);
    if significand != 0 {
        terms[CHUNK] = (negative, significand << (FRACTION - 23), exponent);
    }
    let top = terms.iter().map(|term| term.2).max().unwrap_or(NOTHING);
    if top == NOTHING {
        return 0.0;
    }
    let total: i64 = terms
        .iter()
        .map(|(negative, significand, exponent)| {
            let cut = significand >> (top - exponent).min(62);
            if *negative { -cut } else { cut }
        })
        .sum();
    pack(total, top - FRACTION)
}

/// `total` times 2^`exponent`, cut off to 24 bits.
fn pack(total: i64, exponent: i32) -> f32 {
    if total == 0 {
        return 0.0;
    }
    let magnitude = total.unsigned_abs();
    let sign = if total < 0 { 1u32 << 31 } else { 0 };
    let highest = 63 - magnitude.leading_zeros() as i32;
    // The exponent of the lowest bit that is kept.
    let lowest = (highest + exponent - 23).max(-149);
    let shift = lowest - exponent;
    let significand = if shift >= 0 { magnitude >> shift.min(63) } else { magnitude << -shift } as u32;
    if significand == 0 {
        return 0.0;
    }
    if highest + exponent > 127 {
        return f32::from_bits(sign | 0x7f80_0000);
    }
    // The hidden bit adds one to the exponent field where there is one.
    let field = (lowest + 149) as u32;
    f32::from_bits(sign | ((field << 23) + significand))
}

/// The exponent that a factor adds to a product's, or [`NOTHING`].
fn exponent_of(x: bf16) -> i32 {
    match x.to_bits() >> 7 & 0xff {
        _ if x.to_bits() & 0x7fff == 0 => NOTHING / 2,
        // Beyond all bounds: not for the fast way.
        255 => -NOTHING * 6 / 10,
        0 => -126,
        exponent => i32::from(exponent) - 127,
    }
}

/// Sixteen factors and their exponents.
#[derive(Clone, Copy)]
struct Sixteen {
    value: [f32; 16],
    exponent: [i32; 16],
}

impl Sixteen {
    fn new(get: impl Fn(usize) -> bf16) -> Sixteen {
        let all: [bf16; 16] = std::array::from_fn(get);
        Sixteen { value: all.map(wide), exponent: all.map(exponent_of) }
    }
}

/// `make` of each number, by all threads where it is worth it.
fn collect<T: Send>(engine: &Engine, count: usize, make: impl Fn(usize) -> T + Sync) -> Vec<T> {
    const FEW: usize = 8;
    if count <= FEW {
        return (0..count).map(make).collect();
    }
    engine.install(|| (0..count).into_par_iter().map(&make).collect())
}

/// The left factor (rows, k): for each chunk of k, the rows.
pub struct Left {
    rows: usize,
    chunks: Vec<Vec<Sixteen>>,
}

impl Left {
    /// `get(row, k)`. A last chunk that is not whole is filled with zeros.
    pub fn new(engine: &Engine, rows: usize, k: usize, get: impl Fn(usize, usize) -> bf16 + Sync) -> Left {
        let chunk = |at: usize| {
            let row = |row| Sixteen::new(|i| if at + i < k { get(row, at + i) } else { bf16::ZERO });
            (0..rows).map(row).collect()
        };
        Left { rows, chunks: collect(engine, k.div_ceil(CHUNK), |number| chunk(number * CHUNK)) }
    }
}

/// The right factor (k, columns): for each sixteen columns and chunk of k, the sixteen terms.
pub struct Right {
    columns: usize,
    panels: Vec<Vec<[Sixteen; CHUNK]>>,
}

impl Right {
    /// `get(k, column)`. A last chunk that is not whole is filled with zeros.
    pub fn new(
        engine: &Engine,
        k: usize,
        columns: usize,
        get: impl Fn(usize, usize) -> bf16 + Sync,
    ) -> Right {
        let term = |at: usize, first: usize| {
            let there = |lane: usize| at < k && first + lane < columns;
            Sixteen::new(|lane| if there(lane) { get(at, first + lane) } else { bf16::ZERO })
        };
        let panel = |first: usize| {
            (0..k).step_by(CHUNK).map(|at| std::array::from_fn(|i| term(at + i, first))).collect()
        };
        Right { columns, panels: collect(engine, columns.div_ceil(LANES), |number| panel(number * LANES)) }
    }
}

/// `sums` (rows, columns) goes on by the chain of `left right`.
pub fn multiply(engine: &Engine, sums: &mut [f32], left: &Left, right: &Right) {
    assert_eq!(sums.len(), left.rows * right.columns, "a product has rows by columns");
    if sums.is_empty() {
        return;
    }
    let band = |(number, sums): (usize, &mut [f32])| multiply_band(engine, sums, number * BAND, left, right);
    if left.rows <= BAND {
        band((0, sums));
    } else {
        engine.install(|| sums.par_chunks_mut(BAND * right.columns).enumerate().for_each(band));
    }
}

fn multiply_band(engine: &Engine, sums: &mut [f32], first: usize, left: &Left, right: &Right) {
    let columns = right.columns;
    let rows = sums.len() / columns;
    let mut tile = [[0.0f32; LANES]; BAND];
    for (panel, terms) in right.panels.iter().enumerate() {
        let (column, width) = (panel * LANES, LANES.min(columns - panel * LANES));
        for (tile, sums) in tile.iter_mut().zip(sums.chunks_exact(columns)) {
            tile[..width].copy_from_slice(&sums[column..][..width]);
        }
        for (terms, left) in terms.iter().zip(&left.chunks) {
            vectorize!(engine.isa, |simd| {
                for (tile, left) in tile[..rows].iter_mut().zip(&left[first..]) {
                    add_chunk(simd, tile, left, terms);
                }
            });
        }
        for (tile, sums) in tile.iter().zip(sums.chunks_exact_mut(columns)) {
            sums[column..][..width].copy_from_slice(&tile[..width]);
        }
    }
}

/// What the vectors of an instruction set must do beside [`pulp::Simd`].
trait Vectors: pulp::Simd {
    /// Cut off towards zero; each below 2^31 in size.
    fn integers(self, x: Self::f32s) -> Self::i32s;
    /// The nearest floats.
    fn floats(self, x: Self::i32s) -> Self::f32s;
}

#[cfg(target_arch = "x86_64")]
impl Vectors for pulp::x86::V4 {
    #[inline(always)]
    fn integers(self, x: pulp::f32x16) -> pulp::i32x16 {
        self.convert_f32x16_to_i32x16(x)
    }

    #[inline(always)]
    fn floats(self, x: pulp::i32x16) -> pulp::f32x16 {
        self.convert_i32x16_to_f32x16(x)
    }
}

#[cfg(target_arch = "x86_64")]
impl Vectors for pulp::x86::V3 {
    #[inline(always)]
    fn integers(self, x: pulp::f32x8) -> pulp::i32x8 {
        self.convert_f32x8_to_i32x8(x)
    }

    #[inline(always)]
    fn floats(self, x: pulp::i32x8) -> pulp::f32x8 {
        self.convert_i32x8_to_f32x8(x)
    }
}

#[cfg(target_arch = "aarch64")]
impl Vectors for pulp::aarch64::Neon {
    #[inline(always)]
    fn integers(self, x: pulp::f32x4) -> pulp::i32x4 {
        let x: [f32; 4] = pulp::cast(x);
        pulp::cast(x.map(|x| x as i32))
    }

    #[inline(always)]
    fn floats(self, x: pulp::i32x4) -> pulp::f32x4 {
        let x: [i32; 4] = pulp::cast(x);
        pulp::cast(x.map(|x| x as f32))
    }
}

impl Vectors for pulp::Scalar {
    #[inline(always)]
    fn integers(self, x: f32) -> i32 {
        x as i32
    }

    #[inline(always)]
    fn floats(self, x: i32) -> f32 {
        x as f32
    }
}

/// [`chunk`] for the columns of a panel, a vector at a time.
#[inline(always)]
fn add_chunk<S: Vectors>(simd: S, sums: &mut [f32; LANES], left: &Sixteen, right: &[Sixteen; CHUNK]) {
    for (at, sum) in S::as_mut_simd_f32s(sums).0.iter_mut().enumerate() {
        match add_vector(simd, *sum, at, left, right) {
            Some(new) => *sum = new,
            None => {
                let sums: &mut [f32] = pulp::bytemuck::cast_slice_mut(std::slice::from_mut(sum));
                add_chunk_slowly(sums, at * S::F32_LANES, left, right);
            }
        }
    }
}

/// [`chunk`] for vector `at` of a panel; none where a largest exponent is beyond [`FAST`],
/// as that of a term that is not finite is.
#[inline(always)]
fn add_vector<S: Vectors>(
    simd: S,
    sum: S::f32s,
    at: usize,
    left: &Sixteen,
    right: &[Sixteen; CHUNK],
) -> Option<S::f32s> {
    let (integer, count) = (|x: i32| simd.splat_i32s(x), |x: u32| simd.splat_u32s(x));
    let minus = |x: S::i32s, y: i32| simd.add_i32s(x, integer(-y));
    let any = |mask| simd.first_true_m32s(mask) < S::F32_LANES;

    // Finite terms leave a sum that is not finite as it is: such a lane goes along as zero.
    let before = sum;
    let magnitude = simd.and_u32s(simd.transmute_u32s_f32s(sum), count(0x7fff_ffff));
    let finite = simd.less_than_u32s(magnitude, count(0x7f80_0000));
    let sum = simd.select_f32s(finite, sum, simd.splat_f32s(0.0));

    // The exponent of the sum. A subnormal's is -126 in truth, which is as far from the fast way as -127.
    let bits = simd.transmute_u32s_f32s(sum);
    let field = simd.and_u32s(simd.wrapping_dyn_shr_u32s(bits, count(23)), count(0xff));
    let exponent = minus(simd.transmute_i32s_u32s(field), 127);
    let is_zero = simd.equal_f32s(sum, simd.splat_f32s(0.0));
    let mut top = simd.select_i32s(is_zero, integer(NOTHING), exponent);
    for (right, left) in right.iter().zip(left.exponent) {
        let exponent = S::as_simd_i32s(&right.exponent).0[at];
        top = simd.max_i32s(top, simd.add_i32s(exponent, integer(left)));
    }
    let empty = simd.less_than_i32s(top, integer(NOTHING / 4));
    let top = simd.select_i32s(empty, integer(0), top);
    let (high, low) = (integer(*FAST.end()), integer(*FAST.start()));
    if any(simd.greater_than_i32s(top, high)) || any(simd.less_than_i32s(top, low)) {
        return None;
    }

    // 2^(`sign` top + `exponent`)
    let power = |top: S::i32s| {
        let field = simd.transmute_u32s_i32s(minus(top, -127));
        simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(field, count(23)))
    };
    let negative = simd.add_i32s(simd.not_i32s(top), integer(1));
    let scale = power(minus(negative, -FRACTION));
    let mut total = integer(0);
    for (right, left) in right.iter().zip(left.value) {
        let product = simd.mul_f32s(S::as_simd_f32s(&right.value).0[at], simd.splat_f32s(left));
        total = simd.add_i32s(total, simd.integers(simd.mul_f32s(product, scale)));
    }
    // At most 16 * 3.97 * 2^25, which 31 bits hold; with the sum so far they may not.
    let old = simd.integers(simd.mul_f32s(sum, scale));
    let whole = simd.add_i32s(total, old);
    let overflow = simd.and_i32s(simd.xor_i32s(total, whole), simd.xor_i32s(old, whole));
    if any(simd.less_than_i32s(overflow, integer(0))) {
        return None;
    }

    // Cut off to 24 bits: without the highest of the bits below them, the nearest float is the one below.
    let size = simd.transmute_u32s_i32s(simd.max_i32s(whole, minus(simd.not_i32s(whole), -1)));
    let below = simd.not_u32s(simd.wrapping_dyn_shr_u32s(size, count(24)));
    let cut = simd.floats(simd.transmute_i32s_u32s(simd.and_u32s(size, below)));
    let sign = simd.and_u32s(simd.transmute_u32s_i32s(whole), count(1 << 31));
    let cut = simd.or_u32s(simd.transmute_u32s_f32s(cut), sign);
    let new = simd.mul_f32s(simd.transmute_f32s_u32s(cut), power(minus(top, FRACTION)));
    let is_nan = simd.greater_than_u32s(magnitude, count(0x7f80_0000));
    let before = simd.select_f32s(is_nan, simd.splat_f32s(kept(f32::NAN)), before);
    Some(simd.select_f32s(finite, new, before))
}

#[cold]
#[inline(never)]
fn add_chunk_slowly(sums: &mut [f32], first: usize, left: &Sixteen, right: &[Sixteen; CHUNK]) {
    if left.value.iter().any(|x| x.is_nan()) {
        return sums.fill(kept(f32::NAN));
    }
    let narrow = |x: f32| bf16::from_bits((x.to_bits() >> 16) as u16);
    let a = left.value.map(narrow);
    for (lane, sum) in sums.iter_mut().enumerate() {
        *sum = chunk(*sum, &a, &std::array::from_fn(|k| narrow(right[k].value[first + lane])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::Simd;
    use crate::ops::cpu::simd::Isa;
    use crate::rng::Key;

    fn engine() -> Engine {
        Engine::new(Isa::new(Simd::Auto).expect("a CPU"), 2).expect("threads")
    }

    fn reference(sums: &[f32], rows: usize, k: usize, a: &[bf16], b: &[bf16]) -> Vec<f32> {
        let columns = sums.len() / rows;
        let at = |x: &[bf16], i: usize, there: bool| if there { x[i] } else { bf16::ZERO };
        let element = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            (0..k).step_by(CHUNK).fold(sums[i], |sum, first| {
                let a = std::array::from_fn(|t| at(a, row * k + first + t, first + t < k));
                let b = std::array::from_fn(|t| at(b, (first + t) * columns + column, first + t < k));
                chunk(sum, &a, &b)
            })
        };
        (0..sums.len()).map(element).collect()
    }

    /// Ordinary numbers, numbers of every exponent, some that are not finite, and any bits at all.
    #[test]
    fn vectors_have_the_bits_of_the_integers() {
        let (rows, k, columns) = (70, 72, 37);
        for (kind, seed) in [("normal", 1), ("wide", 2), ("bits", 3), ("small", 4), ("special", 5)] {
            let key = Key::new(seed, kind);
            let draw = |high: u64, i: usize| {
                let words = key.block_at(high, i as u64);
                let normal = key.normal(high + 10, i as u64);
                match kind {
                    "normal" => bf16::from_f64(normal),
                    "wide" => bf16::from_f64(normal * 2f64.powi(words[0] as i32 % 60)),
                    "small" => bf16::from_f64(normal * 2f64.powi(-60 - (words[0] % 70) as i32)),
                    "special" => match words[0] % 500 {
                        0 => bf16::INFINITY,
                        1 => bf16::NEG_INFINITY,
                        2 => bf16::NAN,
                        3 => bf16::MAX,
                        _ => bf16::from_f64(normal),
                    },
                    _ => bf16::from_bits(words[0] as u16),
                }
            };
            let a: Vec<_> = (0..rows * k).map(|i| draw(0, i)).collect();
            let b: Vec<_> = (0..k * columns).map(|i| draw(1, i)).collect();
            let mut sums: Vec<f32> = (0..rows * columns).map(|i| wide(draw(2, i))).collect();
            let want = reference(&sums, rows, k, &a, &b);
            let (left, right) = (
                Left::new(&engine(), rows, k, |i, t| a[i * k + t]),
                Right::new(&engine(), k, columns, |t, j| b[t * columns + j]),
            );
            multiply(&engine(), &mut sums, &left, &right);
            for (i, (got, want)) in sums.iter().zip(&want).enumerate() {
                assert_eq!(got.to_bits(), want.to_bits(), "{kind}, element {i}");
            }
        }
    }

    #[test]
    fn a_chunk_keeps_25_bits_below_its_largest_term() {
        let one = bf16::ONE;
        let power = |e: i32| bf16::from_f64(2f64.powi(e));
        let mut a = [bf16::ZERO; CHUNK];
        a[0] = one;
        a[1] = power(-25);
        let ones = [one; CHUNK];
        // 1 + 2^-25 - 1: the small term is still there when the large ones are gone.
        assert_eq!(chunk(-1.0, &a, &ones), 2f32.powi(-25));
        a[1] = power(-26);
        assert_eq!(chunk(-1.0, &a, &ones), 0.0);
        // The result is cut off, not rounded.
        a = [power(-24); CHUNK];
        a[15] = bf16::ZERO;
        assert_eq!(chunk(1.0, &a, &ones), 1.0 + 7.0 * 2f32.powi(-23));
        assert_eq!(chunk(f32::MAX, &[power(127); CHUNK], &ones), f32::INFINITY);
        assert!(chunk(f32::INFINITY, &[bf16::NEG_INFINITY; CHUNK], &ones).is_nan());
        assert!(chunk(0.0, &[bf16::INFINITY; CHUNK], &[bf16::ZERO; CHUNK]).is_nan());
        assert_eq!(chunk(1.0, &[bf16::NEG_INFINITY; CHUNK], &ones), f32::NEG_INFINITY);
    }

    /// Prints the speed; run it with `--ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_products() {
        let (rows, k, columns) = (512, 768, 768);
        let key = Key::new(1, "speed");
        let number = |i: usize| bf16::from_f64(key.normal(0, i as u64));
        let values: Vec<bf16> = (0..rows.max(columns) * k).map(number).collect();
        for threads in [1, 2] {
            let engine = Engine::new(Isa::new(Simd::Auto).expect("a CPU"), threads).expect("threads");
            let started = std::time::Instant::now();
            let left = Left::new(&engine, rows, k, |i, t| values[i * k + t]);
            let right = Right::new(&engine, k, columns, |t, j| values[j * k + t]);
            let packed = started.elapsed();
            let mut sums = vec![0.0; rows * columns];
            multiply(&engine, &mut sums, &left, &right);
            let rate = (rows * k * columns) as f64 / started.elapsed().as_secs_f64() / 1e9;
            println!("{threads} threads: {rate:.2} GMAC/s, packing {packed:?}");
        }
    }
}
