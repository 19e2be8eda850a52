//! Transcendental functions of the CPU device: polynomials with fused multiply-adds, so that a
//! vector and a scalar, an x86 and an ARM, give the same bits.
//!
//! The platform's `exp` and `tanh` differ between C libraries and are never called.

/// `exp(x)`, within 2 ulp; 0 below -104, infinity above 88.7228; NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln(2)/2`, a polynomial of degree 7 for `exp(r)` (coefficients of
/// the Cephes library's `expf`), and `2^n` in two factors so that a subnormal result is rounded once.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    p = (p * r).mul_add(r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = exponent >> 1;
    let y = p * power_of_two(half) * power_of_two(exponent.wrapping_sub(half));
    // Comparisons with a NaN are false: it falls through to `y`, which is NaN.
    if x > 88.722_84 {
        f32::INFINITY
    } else if x < -104.0 {
        0.0
    } else {
        y
    }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// Natural logarithm: the pinned `libm` in f64, rounded once. For one value a row, not for arrays.
pub fn ln(x: f32) -> f32 {
    libm::log(f64::from(x)) as f32
}

/// `sqrt(2/pi)` of the tanh form of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// `exp(-2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu_exp(x: f32) -> f32 {
    let inner = (GELU_CUBIC * x * x).mul_add(x, x);
    exp(-2.0 * GELU_SCALE * inner)
}

/// GELU, tanh form: `x/2 (1 + tanh u)`, computed as `x / (1 + exp(-2u))`, which is the same and
/// keeps relative accuracy in the left tail.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x / (1.0 + gelu_exp(x))
}

/// The derivative of [`gelu`]: `s + 2 u' x s (1 - s)` with `s = 1 / (1 + exp(-2u))`.
///
/// Past |x| = 10 it is 0 or 1 to the last bit of what matters (the exact tail is below 1e-37).
#[inline(always)]
pub fn gelu_derivative(x: f32) -> f32 {
    let e = gelu_exp(x);
    let s = 1.0 / (1.0 + e);
    let slope = (3.0 * GELU_CUBIC * x * x).mul_add(GELU_SCALE, GELU_SCALE);
    let inside = (2.0 * slope * x * s).mul_add(e * s, s);
    if x > 10.0 {
        1.0
    } else if x < -10.0 {
        0.0
    } else {
        inside
    }
}

/// The larger of `x` and 0; NaN stays NaN.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `max(x, 0)²`.
#[inline(always)]
pub fn squared_relu(x: f32) -> f32 {
    relu(x) * relu(x)
}

/// The derivative of [`squared_relu`]: `2 max(x, 0)`.
#[inline(always)]
pub fn squared_relu_derivative(x: f32) -> f32 {
    relu(x) + relu(x)
}

/// The logistic function `s = 1 / (1 + exp(-x))` and `1 - s`. Of the exponential of `-|x|`, which is at most
/// 1: nothing overflows, and the smaller of the two keeps its relative accuracy.
#[inline(always)]
fn logistic(x: f32) -> [f32; 2] {
    let e = exp(-x.abs());
    let near = 1.0 / (1.0 + e);
    let far = e * near;
    if x < 0.0 { [far, near] } else { [near, far] }
}

/// `silu(gate) up` with `silu(x) = x / (1 + exp(-x))`.
#[inline(always)]
pub fn swiglu(gate: f32, up: f32) -> f32 {
    gate * logistic(gate)[0] * up
}

/// `dout` times the derivatives of [`swiglu`] by gate and up: `silu'(x) = s + x s (1 - s)`.
#[inline(always)]
pub fn swiglu_gradient(dout: f32, gate: f32, up: f32) -> [f32; 2] {
    let [s, rest] = logistic(gate);
    let silu = gate * s;
    [dout * (up * silu.mul_add(rest, s)), dout * silu]
}

/// `cap tanh(x / cap)` and its slope `1 - tanh²`, from `e = exp(-2 |x| / cap)`: `cap (1 - e) / (1 + e)` with
/// the sign of `x`, and `4 e / (1 + e)²`. Within 2^-22 of the cap and of 1.
#[inline(always)]
pub fn softcap(x: f32, cap: f32) -> (f32, f32) {
    let e = exp(-2.0 * (x / cap).abs());
    let sum = 1.0 + e;
    ((cap * ((1.0 - e) / sum)).copysign(x), 4.0 * e / (sum * sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of `want`'s f32 neighbourhood.
    fn ulps(got: f32, want: f64) -> f64 {
        let nearest = want as f32;
        let unit = f64::from(f32::from_bits(nearest.abs().to_bits() + 1)) - f64::from(nearest.abs());
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn exp_is_within_two_ulp_over_its_whole_range() {
        let mut worst = (0.0, 0.0f32);
        for i in 0..2_000_000 {
            let x = -103.9 + (88.72 + 103.9) * (i as f32 / 2e6);
            let error = ulps(exp(x), libm::exp(f64::from(x)));
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 2.0, "{} ulp at {}", worst.0, worst.1);
    }

    #[test]
    fn exp_knows_its_ends_and_keeps_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(88.72).is_finite());
        assert!(exp(-103.0) > 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-f32::NAN).is_nan());
    }

    fn gelu_f64(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / (1.0 + libm::exp(-2.0 * u))
    }

    #[test]
    fn gelu_and_its_derivative_match_f64() {
        for i in 0..400_000 {
            let x = -12.0 + 24.0 * (i as f32 / 4e5);
            let wide = f64::from(x);
            let error = (f64::from(gelu(x)) - gelu_f64(wide)).abs();
            assert!(
                error <= 3e-7 * gelu_f64(wide).abs() + 2e-7 * f64::from(x <= 0.0),
                "gelu({x}) is off by {error}"
            );
            let slope = (gelu_f64(wide + 1e-5) - gelu_f64(wide - 1e-5)) / 2e-5;
            assert!(
                (f64::from(gelu_derivative(x)) - slope).abs() < 1e-6,
                "gelu'({x}) = {} and not {slope}",
                gelu_derivative(x)
            );
        }
    }

    #[test]
    fn swiglu_and_its_gradient_match_f64() {
        for i in 0..400_000 {
            let gate = -80.0 + 160.0 * (i as f32 / 4e5);
            let x = f64::from(gate);
            let [s, rest] = [x, -x].map(|x| 1.0 / (1.0 + libm::exp(-x)));
            assert!(ulps(swiglu(gate, 1.0), x * s) <= 5.0, "swiglu({gate}, 1)");
            let [dgate, dup] = swiglu_gradient(1.0, gate, 1.0);
            assert!(ulps(dup, x * s) <= 5.0, "the slope by up at {gate}");
            let (want, size) = (s + x * s * rest, s.max((x * s * rest).abs()));
            assert!((f64::from(dgate) - want).abs() <= 4e-7 * size, "{gate}: {dgate} and not {want}");
        }
    }

    #[test]
    fn squared_relu_and_swiglu_are_finite_and_settled_far_out() {
        for x in [100.0f32, 1e4] {
            assert_eq!([swiglu(x, 3.0), squared_relu(x)], [3.0 * x, x * x]);
            assert_eq!(swiglu_gradient(2.0, x, 3.0), [6.0, 2.0 * x]);
            assert_eq!(
                [squared_relu(-x), squared_relu_derivative(-x), squared_relu_derivative(x)],
                [0.0, 0.0, 2.0 * x]
            );
            let [dgate, dup] = swiglu_gradient(2.0, -x, 3.0);
            assert!([swiglu(-x, 3.0), dgate, dup].iter().all(|y| y.abs() < 1e-40), "{x}");
        }
        assert_eq!([swiglu(-1e4, 3.0), swiglu(0.0, 3.0)], [0.0; 2]);
        assert_eq!(swiglu_gradient(2.0, 0.0, 3.0), [3.0, 0.0]);
        assert!(swiglu(f32::NAN, 1.0).is_nan() && swiglu(1.0, f32::NAN).is_nan());
        assert!(squared_relu(f32::NAN).is_nan() && squared_relu_derivative(f32::NAN).is_nan());
        assert!(swiglu_gradient(1.0, f32::NAN, 1.0).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn a_soft_cap_and_its_slope_match_f64() {
        for i in 0..200_000 {
            let x = -50.0 + 100.0 * (i as f32 / 2e5);
            for cap in [2.0, 30.0] {
                let (y, slope) = softcap(x, cap);
                let tanh = libm::tanh(f64::from(x) / f64::from(cap));
                assert!((f64::from(y / cap) - tanh).abs() < 2.4e-7, "{x} under {cap}: {y}");
                let want = 1.0 - tanh * tanh;
                assert!((f64::from(slope) - want).abs() < 2.4e-7, "{x} under {cap}: {slope}, not {want}");
            }
        }
        assert_eq!(softcap(f32::NEG_INFINITY, 30.0), (-30.0, 0.0));
        assert_eq!(softcap(1e30, 30.0), (30.0, 0.0));
        assert_eq!(softcap(0.0, 30.0), (0.0, 1.0));
        assert!(softcap(f32::NAN, 30.0).0.is_nan() && softcap(f32::NAN, 30.0).1.is_nan());
    }

    #[test]
    fn gelu_keeps_nan_and_is_the_identity_or_zero_far_out() {
        assert!(gelu(f32::NAN).is_nan());
        assert!(gelu_derivative(f32::NAN).is_nan());
        assert_eq!(gelu(1e20), 1e20);
        assert_eq!(gelu(-1e5), 0.0);
        assert_eq!(gelu_derivative(1e20), 1.0);
        assert_eq!(gelu_derivative(-1e20), 0.0);
        assert_eq!(gelu(f32::INFINITY), f32::INFINITY);
    }
}
