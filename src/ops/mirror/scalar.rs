//! One number at a time, as `kernels/exact.cuh`, `gelu.cuh`, `activate.cuh`, `softcap.cuh` and
//! `common.cuh` compute it.
//!
//! Every function is a list of IEEE operations in the order of the header's. What differs between processors
//! is the sign and payload of a NaN: a GPU makes 0x7fffffff of it, and 0x7fff in bf16, so results are
//! stored through [`round`] and [`kept`], which do the same.

use half::bf16;

use super::special::{exp2, reciprocal};

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

/// `p = p r + c` over the coefficients, the highest power first.
#[inline(always)]
fn horner(r: f32, coefficients: &[u32]) -> f32 {
    let mut p = f32::from_bits(coefficients[0]);
    for c in &coefficients[1..] {
        p = p.mul_add(r, f32::from_bits(*c));
    }
    p
}

/// e^x.
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
    e.mul_add(f32::from_bits(0x3f31_8000), e.mul_add(-2.121_944_4e-4, (s * z).mul_add(q, s + s)))
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
const GATE: f32 = -2.302_208_2;
const GATE_CUBIC: f32 = GATE * CUBIC;

#[inline(always)]
fn gelu_gate(x: f32) -> f32 {
    reciprocal(1.0 + exp2(x * (x * x).mul_add(GATE_CUBIC, GATE)))
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

/// The larger of x and 0; NaN passes.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
pub fn squared_relu(x: f32) -> f32 {
    let y = relu(x);
    y * y
}

#[inline(always)]
pub fn squared_relu_slope(x: f32) -> f32 {
    let y = relu(x);
    y + y
}

/// 1 / (1 + exp(-x)), and what it lacks to 1.
#[inline(always)]
fn logistic(x: f32) -> [f32; 2] {
    let e = exp(-x.abs());
    let near = reciprocal(1.0 + e);
    let far = e * near;
    if x < 0.0 { [far, near] } else { [near, far] }
}

/// silu(gate) up.
#[inline(always)]
pub fn swiglu(gate: f32, up: f32) -> f32 {
    gate * logistic(gate)[0] * up
}

/// The gradients of gate and up.
#[inline(always)]
pub fn swiglu_gradient(dout: f32, gate: f32, up: f32) -> [f32; 2] {
    let [s, rest] = logistic(gate);
    let silu = gate * s;
    [dout * (up * silu.mul_add(rest, s)), dout * silu]
}

/// `cap tanh(x / cap)` and its slope `1 - tanh²`.
#[inline(always)]
pub fn softcap(x: f32, cap: f32) -> (f32, f32) {
    let e = exp2(x.abs() * (-2.0 * LOG2_E / cap));
    let r = reciprocal(1.0 + e);
    let size = (1.0 - e) * r * cap;
    (f32::from_bits(size.to_bits() | x.to_bits() & 0x8000_0000), 4.0 * e * r * r)
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
    use rayon::prelude::*;

    use super::*;

    /// Units in the last place of the f32 nearest to `want`, subnormals counted in theirs.
    fn ulps(got: f32, want: f64) -> f64 {
        let size = f64::from(want.abs() as f32).max(f64::from(f32::MIN_POSITIVE));
        (f64::from(got) - want).abs() / 2f64.powi(libm::ilogb(size) - 23)
    }

    /// The largest error that `error` finds over every `step`-th float of a range, and where.
    fn worst(error: impl Fn(f32) -> f64 + Sync, from: f32, to: f32, step: usize) -> (f64, f32) {
        let bits = from.to_bits().min(to.to_bits())..from.to_bits().max(to.to_bits()) + 1;
        let floats = bits.into_par_iter().step_by(step).map(f32::from_bits);
        floats.map(|x| (error(x), x)).max_by(|a, b| a.0.total_cmp(&b.0)).expect("a range with floats")
    }

    /// Units in the last place between a function and f64's.
    fn apart(f: fn(f32) -> f32, want: fn(f64) -> f64) -> impl Fn(f32) -> f64 + Sync {
        move |x| ulps(f(x), want(f64::from(x)))
    }

    /// `docs/arithmetic.md` holds the largest errors.
    #[test]
    fn functions_are_as_exact_as_they_say() {
        let ulp = |f, want, from, to| worst(apart(f, want), from, to, 997).0;
        assert!(ulp(exp2, libm::exp2, 1e-20, 127.99) < 1.6);
        assert!(ulp(exp2, libm::exp2, -1e-20, -125.99) < 2.6);
        assert!(ulp(ln, libm::log, f32::from_bits(1), f32::MAX) < 2.5);
        assert!(ulp(reciprocal, |x| 1.0 / x, 1.0, 1e30) < 1.6);
    }

    /// Prints the table of `docs/arithmetic.md`; run it with `--ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn errors_over_whole_ranges() {
        let show = |name: &str, f: fn(f32) -> f32, want: fn(f64) -> f64, from: f32, to: f32| {
            let (ulps, at) = worst(apart(f, want), from, to, 1);
            println!("{name} from {from:e} to {to:e}: {ulps:.2} ulp at {at:e}");
        };
        let least = f32::from_bits(1);
        show("exp2", exp2, libm::exp2, least, 127.99999);
        show("exp2", exp2, libm::exp2, -least, -126.0);
        show("exp", exp, libm::exp, least, 88.72);
        show("exp", exp, libm::exp, -least, -87.33);
        show("ln", ln, libm::log, least, f32::MAX);
        // Where neither argument nor result is subnormal.
        for sign in [1.0, -1.0] {
            show("reciprocal", reciprocal, |x| 1.0 / x, sign * f32::MIN_POSITIVE, sign * 2f32.powi(126));
        }
        let gate = |v: f64| 1.0 / (1.0 + libm::exp(-1.595_769_121_605_730_8 * (v + 0.044_715 * v * v * v)));
        let relative = |x: f32| (f64::from(gelu(x)) / (f64::from(x) * gate(x.into())) - 1.0).abs();
        let absolute = |x: f32| {
            let (v, s) = (f64::from(x), gate(x.into()));
            let slope = 1.595_769_121_605_730_8 * (1.0 + 3.0 * 0.044_715 * v * v);
            (f64::from(gelu_slope(x)) - (s + v * s * (1.0 - s) * slope)).abs()
        };
        let both = |error: &(dyn Fn(f32) -> f64 + Sync), least: f32, to: f32| {
            worst(error, least, to, 1).0.max(worst(error, -least, -to, 1).0)
        };
        // Below it a product with x is subnormal, and its last place larger than the error.
        let gelu_error = both(&relative, 1e-30, 8.0);
        println!("gelu in [-8, 8]: 2^{:.2} relative", libm::log2(gelu_error));
        let in_ulp = |x: f32| ulps(gelu(x), f64::from(x) * gate(x.into()));
        let off = |x: f32| (f64::from(gelu(x)) - f64::from(x) * gate(x.into())).abs();
        for (name, from, to) in [("0 to 8", least, 8.0), ("8 up", 8.0, f32::MAX)] {
            println!("gelu from {name}: {:.2} ulp", worst(in_ulp, from, to, 1).0);
        }
        for (name, from, to) in [("0 to -8", -least, -8.0), ("-8 down", -8.0, -f32::MAX)] {
            println!(
                "gelu from {name}: {:.2} ulp, {:.1e} absolute",
                worst(in_ulp, from, to, 1).0,
                worst(off, from, to, 1).0
            );
        }
        // Beyond it the cube is infinite, and times the zero of a gate that is shut or open no number.
        println!("gelu's slope, to 1e13: 2^{:.2} absolute", libm::log2(both(&absolute, least, 1e13)));
        let flushed = |x: f32| (f64::from(exp2(x)) - libm::exp2(x.into())).abs();
        println!("exp2 below -126: {:.2e} absolute", worst(flushed, -126.0, -f32::MAX, 1).0);
        let flushed = |x: f32| (f64::from(exp(x)) - libm::exp(x.into())).abs();
        println!("exp below -87.33: {:.2e} absolute", worst(flushed, -87.33, -f32::MAX, 1).0);
    }

    /// Prints SwiGLU's rows of the table of `docs/arithmetic.md`; run it with `--ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn errors_of_swiglu_over_whole_ranges() {
        let silu = |x: f32| {
            let v = f64::from(x);
            v / (1.0 + libm::exp(-v))
        };
        let in_ulp = |x: f32| ulps(swiglu(x, 1.0), silu(x));
        let off = |x: f32| (f64::from(swiglu(x, 1.0)) - silu(x)).abs();
        let slope_off = |x: f32| {
            let [s, rest] = [x, -x].map(|x| 1.0 / (1.0 + libm::exp(-f64::from(x))));
            (f64::from(swiglu_gradient(1.0, x, 1.0)[0]) - (s + f64::from(x) * s * rest)).abs()
        };
        let least = f32::from_bits(1);
        println!("silu from 0: {:.2} ulp", worst(in_ulp, least, f32::MAX, 1).0);
        println!("silu from 0 to -8: {:.2} ulp", worst(in_ulp, -least, -8.0, 1).0);
        println!("silu from 0 to -87.3: {:.2} ulp", worst(in_ulp, -least, -87.3, 1).0);
        println!("silu below -87.3: {:.1e} absolute", worst(off, -87.3, -f32::MAX, 1).0);
        for (name, from, to) in [("0 up", least, f32::MAX), ("0 down", -least, -f32::MAX)] {
            println!(
                "silu's slope from {name}: 2^{:.2} absolute",
                libm::log2(worst(slope_off, from, to, 1).0)
            );
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

    /// `docs/arithmetic.md` holds the bound.
    #[test]
    fn a_soft_cap_and_its_slope_are_far_finer_than_bf16() {
        let mut worst = [0.0f64; 2];
        for i in -200_000..=200_000 {
            let x = i as f32 / 4_000.0;
            for cap in [2.0f32, 30.0, 50.0] {
                let (y, slope) = softcap(x, cap);
                let tanh = libm::tanh(f64::from(x) / f64::from(cap));
                let off = [f64::from(y) / f64::from(cap) - tanh, f64::from(slope) - (1.0 - tanh * tanh)];
                worst = [0, 1].map(|i| worst[i].max(off[i].abs()));
            }
        }
        println!("soft-cap: 2^{:.2} of the cap, slope 2^{:.2}", libm::log2(worst[0]), libm::log2(worst[1]));
        assert!(worst.iter().all(|off| *off < libm::exp2(-21.5)), "{worst:?}");
    }

    #[test]
    fn swiglu_and_its_gradient_are_far_finer_than_bf16_and_settled_far_out() {
        for i in -80_000..=80_000 {
            let x = i as f32 / 1_000.0;
            let v = f64::from(x);
            let [s, rest] = [v, -v].map(|v| 1.0 / (1.0 + libm::exp(-v)));
            let close = |got: f32, want: f64, size: f64| (f64::from(got) - want).abs() <= 1e-5 * size;
            let [dgate, dup] = swiglu_gradient(1.0, x, 1.0);
            assert!(close(swiglu(x, 1.0), v * s, (v * s).abs()), "{x}");
            assert!(close(dup, v * s, (v * s).abs()), "{x}");
            assert!(close(dgate, s + v * s * rest, s.max((v * s * rest).abs())), "{x}");
        }
        for x in [100.0, 1e4, 3e38] {
            assert_eq!([swiglu(x, 0.5), swiglu(-x, 0.5)], [0.5 * x, 0.0]);
            assert_eq!(
                [swiglu_gradient(2.0, x, 0.5), swiglu_gradient(2.0, -x, 0.5)],
                [[1.0, 2.0 * x], [0.0, 0.0]]
            );
        }
        assert!(swiglu(f32::NEG_INFINITY, 1.0).is_nan() && squared_relu(f32::NAN).is_nan());
        assert_eq!([squared_relu(-0.0), squared_relu(f32::NEG_INFINITY), squared_relu_slope(-3.0)], [0.0; 3]);
    }

    #[test]
    fn what_is_no_ordinary_number_comes_out_as_specified() {
        let nan = f32::NAN;
        assert_eq!([exp2(f32::NEG_INFINITY), exp2(-126.1), exp2(0.0)], [0.0, 0.0, 1.0]);
        assert_eq!([exp2(128.0), exp2(f32::INFINITY)], [f32::INFINITY; 2]);
        assert!(exp2(nan).is_nan() && ln(nan).is_nan() && ln(-1.0).is_nan());
        assert_eq!([ln(0.0), ln(f32::INFINITY), ln(1.0)], [f32::NEG_INFINITY, f32::INFINITY, 0.0]);
        assert!(gelu(nan).is_nan() && gelu_slope(nan).is_nan());
        assert!(gelu(f32::NEG_INFINITY).is_nan() && gelu_slope(1.2e13).is_nan() && gelu_slope(1.1e13) == 1.0);
        assert_eq!(gelu(f32::INFINITY), f32::INFINITY);
        assert_eq!([softcap(f32::INFINITY, 30.0), softcap(-1e30, 30.0)], [(30.0, 0.0), (-30.0, 0.0)]);
        assert_eq!(softcap(-0.0, 2.0).0.to_bits(), 0x8000_0000);
        assert!(softcap(nan, 2.0).0.is_nan() && softcap(nan, 2.0).1.is_nan());
        assert_eq!(round(-nan).to_bits(), 0x7fff);
        assert_eq!(round(f32::from_bits(0x3f80_8000)).to_bits(), 0x3f80, "ties go to even");
        assert_eq!(round(f32::from_bits(0x3f81_8000)).to_bits(), 0x3f82);
        assert_eq!(round(f32::MAX), bf16::INFINITY);
    }
}
