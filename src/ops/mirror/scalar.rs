//! One number at a time, as `kernels/exact.cuh`, `gelu.cuh` and `common.cuh` compute it.
//!
//! Every function is a list of IEEE operations in the order of the header's. What differs between processors
//! is the sign and payload of a NaN: a GPU makes 0x7fffffff of it, and 0x7fff in bf16, so results are
//! stored through [`round`] and [`kept`], which do the same.

use half::bf16;

pub const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `x` in bf16, to nearest, ties to even: `cvt.rn.bf16.f32`.
#[inline(always)]
pub fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return bf16::from_bits(0x7fff);
    }
    bf16::from_bits(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16)
}

/// `x` as fp32 memory holds what an operation made.
#[inline(always)]
pub fn kept(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x }
}

#[inline(always)]
pub fn wide(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The larger of two numbers, the other one if one is NaN: `fmaxf`.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    if a >= b || b.is_nan() { a } else { b }
}

#[inline(always)]
fn max_or_nan(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

#[inline(always)]
fn min_or_nan(a: f32, b: f32) -> f32 {
    if a <= b || a.is_nan() { a } else { b }
}

/// `p = p r + c` over the coefficients, the highest power first.
#[inline(always)]
fn horner(r: f32, coefficients: &[u32]) -> f32 {
    let mut p = f32::from_bits(coefficients[0]);
    for c in &coefficients[1..] {
        p = p.mul_add(r, f32::from_bits(*c));
    }
    p
}

/// 2^r for |r| <= 1/2 by polynomials of degree 3, 4 and 6: `power_of_fraction`.
const DEGREE_3: [u32; 4] = [0x3d61_512a, 0x3e78_0626, 0x3f31_7afd, 0x3f80_0000];
const DEGREE_4: [u32; 5] = [0x3c1d_02be, 0x3d64_fe3a, 0x3e76_01b7, 0x3f31_7096, 0x3f80_0000];
const DEGREE_6: [u32; 7] =
    [0x3920_b5a9, 0x3aaf_8417, 0x3c1d_96f0, 0x3d63_57be, 0x3e75_fdee, 0x3f31_7218, 0x3f80_0000];

/// 1.5 * 2^23: added, it rounds a number to an integer in the sum's low bits.
const MAGIC: f32 = 12_582_912.0;

/// NaN as the GPU has it, for what reads its bits.
#[inline(always)]
fn bits_of(x: f32) -> u32 {
    kept(x).to_bits()
}

/// 2^x for x from -125 to 127.
#[inline(always)]
fn exp2_within(x: f32, coefficients: &[u32]) -> f32 {
    let shifted = x + MAGIC;
    let p = horner(x - (shifted - MAGIC), coefficients);
    f32::from_bits(bits_of(p).wrapping_add(bits_of(shifted) << 23))
}

/// 2^x for x up to 127, x below -125 as -125: the weight of a score.
#[inline(always)]
pub fn exp2_weight(x: f32) -> f32 {
    exp2_within(max_or_nan(x, -125.0), &DEGREE_3)
}

/// 2^(score scale), the product not rounded; a product below -124 counts as that.
#[inline(always)]
pub fn exp2_weight_of(score: f32, scale: f32) -> f32 {
    let score = max_or_nan(score, -124.0 * (1.0 / scale));
    let shifted = score.mul_add(scale, MAGIC);
    let p = horner(score.mul_add(scale, MAGIC - shifted), &DEGREE_3);
    f32::from_bits(bits_of(p).wrapping_add(bits_of(shifted) << 23))
}

/// 2^x for every x: 0 below -126.5, infinity above 127.5.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    const BIASED: f32 = MAGIC + 127.0;
    let x = min_or_nan(max_or_nan(x, -127.0), 128.0);
    let shifted = x + BIASED;
    horner(x - (shifted - BIASED), &DEGREE_6) * f32::from_bits(bits_of(shifted) << 23)
}

/// e^x for every x.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp2(x * LOG2_E)
}

/// Natural logarithm of every x.
pub fn ln(x: f32) -> f32 {
    if x.is_nan() || x == f32::INFINITY {
        return x + x;
    }
    if x <= 0.0 {
        return if x < 0.0 { f32::from_bits(0x7fff_ffff) } else { f32::NEG_INFINITY };
    }
    let (x, e) = if x < f32::from_bits(0x0080_0000) { (x * 8_388_608.0, -23.0) } else { (x, 0.0) };
    let whole = (x.to_bits() as i32 - 0x3f35_04f3) >> 23;
    let m = f32::from_bits((x.to_bits() as i32 - whole * 8_388_608) as u32);
    let e: f32 = e + whole as f32;
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let q = horner(z, &[0x3e98_f040, 0x3ecc_af6b, 0x3f2a_aabd]);
    e.mul_add(0.693_359_375, e.mul_add(-2.121_944_4e-4, (s * z).mul_add(q, s + s)))
}

/// 1/d for d from 1 to 2^100.
#[inline(always)]
fn reciprocal(d: f32) -> f32 {
    let y = f32::from_bits(0x7ef3_11c3_u32.wrapping_sub(bits_of(d)));
    let e = (-d).mul_add(y, 1.0);
    let y = y.mul_add(e.mul_add(e, e), y);
    y.mul_add((-d).mul_add(y, 1.0), y)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_560_802_865_4;
const CUBIC: f32 = 0.044_715;
const GATE: f32 = -2.302_208_198;
const GATE_CUBIC: f32 = GATE * CUBIC;

#[inline(always)]
fn gelu_gate(x: f32) -> f32 {
    let exponent = x * (x * x).mul_add(GATE_CUBIC, GATE);
    reciprocal(1.0 + exp2_within(min_or_nan(max_or_nan(exponent, -100.0), 100.0), &DEGREE_4))
}

#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * gelu_gate(x)
}

#[inline(always)]
pub fn gelu_slope(x: f32) -> f32 {
    let s = gelu_gate(x);
    let slope = x * (x * x).mul_add(6.0 * SQRT_2_OVER_PI * CUBIC, 2.0 * SQRT_2_OVER_PI);
    (-s).mul_add(s, s).mul_add(slope, s)
}

/// The 32 lanes of a warp, added by its butterfly: lane numbers that differ in bit 16 first, in bit 1 last.
#[inline(always)]
pub fn warp_sum<T: Copy + std::ops::Add<Output = T>>(mut lanes: [T; 32]) -> T {
    for step in [16, 8, 4, 2, 1] {
        for lane in 0..step {
            lanes[lane] = lanes[lane] + lanes[lane + step];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units in the last place of the f32 nearest to `want`, subnormals counted in theirs.
    fn ulps(got: f32, want: f64) -> f64 {
        let size = f64::from(want.abs() as f32).max(f64::from(f32::MIN_POSITIVE));
        (f64::from(got) - want).abs() / 2f64.powi(libm::ilogb(size) - 23)
    }

    /// The largest error of `f` against `want` over every `step`-th float of a range.
    fn worst(f: fn(f32) -> f32, want: fn(f64) -> f64, from: f32, to: f32, step: usize) -> (f64, f32) {
        let floats = (from.to_bits().min(to.to_bits())..=from.to_bits().max(to.to_bits())).step_by(step);
        floats.map(f32::from_bits).map(|x| (ulps(f(x), want(f64::from(x))), x)).fold(
            (0.0, 0.0),
            |worst, this| {
                if this.0 > worst.0 { this } else { worst }
            },
        )
    }

    /// `docs/arithmetic.md` holds these numbers, over every float.
    #[test]
    fn functions_are_as_exact_as_they_say() {
        let step = 997;
        let ulp = |f, want, from, to| worst(f, want, from, to, step).0;
        for (from, to) in [(1e-20, 127.49), (-1e-20, -125.99)] {
            assert!(ulp(exp2, libm::exp2, from, to) < 1.5, "{:?}", worst(exp2, libm::exp2, from, to, step));
        }
        assert!(
            ulp(ln, libm::log, f32::from_bits(1), f32::MAX) < 2.5,
            "{:?}",
            worst(ln, libm::log, f32::from_bits(1), f32::MAX, step)
        );
        assert!(ulp(reciprocal, |x| 1.0 / x, 1.0, 1e30) < 2.0);
        let relative = |got: f32, want: f64| (f64::from(got) / want - 1.0).abs();
        for i in 0..200_000 {
            let (x, scale) = (-124.0 * i as f32 / 200_000.0, 0.125 * LOG2_E);
            let exact = libm::exp2(f64::from(x));
            assert!(relative(exp2_weight(x), exact) < 2f64.powf(-13.2), "{x}");
            let (x, exact) = (x / scale, libm::exp2(f64::from(x / scale) * f64::from(scale)));
            assert!(relative(exp2_weight_of(x, scale), exact) < 2f64.powf(-13.2), "{x}");
        }
    }

    #[test]
    fn gelu_and_its_slope_are_far_finer_than_bf16() {
        for i in -80_000..=80_000 {
            let x = i as f32 / 10_000.0;
            let (v, u) = (f64::from(x), 0.797_884_560_802_865_4 * f64::from(x));
            let s = 1.0 / (1.0 + libm::exp(-2.0 * u * (1.0 + 0.044715 * v * v)));
            assert!(
                (f64::from(gelu(x)) - v * s).abs() <= 1e-5 * (v * s).abs(),
                "{x}: {}",
                f64::from(gelu(x)) / (v * s) - 1.0
            );
            let slope = s + s * (1.0 - s) * 2.0 * u * (1.0 + 3.0 * 0.044715 * v * v);
            assert!((f64::from(gelu_slope(x)) - slope).abs() <= 4e-6, "{x}");
        }
    }

    #[test]
    fn what_is_no_ordinary_number_comes_out_as_specified() {
        let nan = f32::NAN;
        assert_eq!([exp2(f32::NEG_INFINITY), exp2(-127.0), exp2(0.0)], [0.0, 0.0, 1.0]);
        assert_eq!([exp2(128.0), exp2(f32::INFINITY)], [f32::INFINITY; 2]);
        assert!(exp2(nan).is_nan() && ln(nan).is_nan() && ln(-1.0).is_nan());
        assert_eq!([ln(0.0), ln(f32::INFINITY), ln(1.0)], [f32::NEG_INFINITY, f32::INFINITY, 0.0]);
        assert_eq!([exp2_weight(0.0), exp2_weight(nan), exp2_weight_of(nan, 0.5)], [1.0, f32::MAX, f32::MAX]);
        assert_eq!(exp2_weight(f32::NEG_INFINITY), exp2_weight(-125.0));
        assert_eq!(exp2_weight_of(-6.0, 0.5), 0.125);
        assert_eq!(exp2_weight_of(f32::NEG_INFINITY, 0.5), exp2_weight_of(-248.0, 0.5));
        assert!(gelu(nan).is_nan() && gelu_slope(nan).is_nan());
        assert_eq!(gelu(f32::INFINITY), f32::INFINITY);
        assert_eq!(round(-nan).to_bits(), 0x7fff);
        assert_eq!(round(f32::from_bits(0x3f80_8000)).to_bits(), 0x3f80, "ties go to even");
        assert_eq!(round(f32::from_bits(0x3f81_8000)).to_bits(), 0x3f82);
        assert_eq!(round(f32::MAX), bf16::INFINITY);
    }
}
