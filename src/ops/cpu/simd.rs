//! One body, every vector width.
//!
//! Kernels are plain Rust over fixed-size blocks, compiled once for each instruction set and chosen
//! at run time ([`pulp`] checks the CPU, so no `unsafe` is needed here). Every float operation in a
//! kernel is either elementwise or a reduction over [`LANES`] partial sums, so the width of a
//! register never shows in a result. Multiply-adds are written `mul_add` (one rounding); where the
//! hardware lacks them the compiler calls the exact software form: slow, equal bits.
//!
//! The one thing that may differ between machines is the sign and payload of a NaN.

use std::ops::AddAssign;

use pulp::Simd;

use super::super::{DeviceError, Result};
use crate::experiment::Simd as Choice;

/// Partial sums of every vectorised reduction, whatever the register width.
pub const LANES: usize = 16;

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    Baseline(pulp::Scalar),
}

impl Isa {
    /// The instruction set that `device.simd` asks for.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when this CPU does not have it.
    pub fn new(choice: Choice) -> Result<Isa> {
        let missing = |name: &str| {
            DeviceError::Unavailable(format!(
                "`device.simd = \"{name}\"`: this CPU does not have it\n  hint: `device.simd = \"auto\"` \
                 gives the same bits on every CPU"
            ))
        };
        match choice {
            Choice::Auto => Ok(Isa::widest()),
            Choice::Avx512 => Isa::avx512().ok_or_else(|| missing("avx512")),
            Choice::Avx2 => Isa::avx2().ok_or_else(|| missing("avx2")),
            Choice::Baseline => Ok(Isa::Baseline(pulp::Scalar)),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx512() -> Option<Isa> {
        pulp::x86::V4::try_new().map(Isa::Avx512)
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2() -> Option<Isa> {
        pulp::x86::V3::try_new().map(Isa::Avx2)
    }

    #[cfg(target_arch = "x86_64")]
    pub fn widest() -> Isa {
        Isa::avx512().or_else(Isa::avx2).unwrap_or(Isa::Baseline(pulp::Scalar))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx512() -> Option<Isa> {
        None
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx2() -> Option<Isa> {
        None
    }

    #[cfg(target_arch = "aarch64")]
    pub fn widest() -> Isa {
        pulp::aarch64::Neon::try_new().map_or(Isa::Baseline(pulp::Scalar), Isa::Neon)
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub fn widest() -> Isa {
        Isa::Baseline(pulp::Scalar)
    }
}

/// Compiles an expression once for each instruction set and runs the one that `isa` names.
///
/// `vectorize!(isa, |simd| body)`: functions that `body` calls must be `#[inline(always)]`, or they
/// keep the baseline's instructions. Matrix tiles go through [`run_vectors`] instead,
/// which also picks the tile's width.
macro_rules! vectorize {
    ($isa:expr, |$simd:pat_param| $body:expr) => {{
        #[allow(unused_imports)]
        use pulp::Simd as _;
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::ops::cpu::simd::Isa::Avx512(simd) => simd.vectorize(
                #[inline(always)]
                || {
                    let $simd = simd;
                    $body
                },
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::ops::cpu::simd::Isa::Avx2(simd) => simd.vectorize(
                #[inline(always)]
                || {
                    let $simd = simd;
                    $body
                },
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::ops::cpu::simd::Isa::Neon(simd) => simd.vectorize(
                #[inline(always)]
                || {
                    let $simd = simd;
                    $body
                },
            ),
            $crate::ops::cpu::simd::Isa::Baseline(simd) => {
                let $simd = simd;
                $body
            }
        }
    }};
}
pub(crate) use vectorize;

/// Work that is compiled for every instruction set with its own number of vectors.
pub trait Vectored {
    /// `NV` vectors of `S`.
    fn run<S: Simd, const NV: usize>(self, simd: S);
}

/// Runs such work on the instruction set `isa`: on 16 floats, and with AVX-512 on `AVX512` vectors of 16.
pub fn run_vectors<const AVX512: usize>(isa: Isa, work: impl Vectored) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(simd) => simd.vectorize(
            #[inline(always)]
            || work.run::<_, AVX512>(simd),
        ),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(simd) => simd.vectorize(
            #[inline(always)]
            || work.run::<_, 2>(simd),
        ),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(simd) => simd.vectorize(
            #[inline(always)]
            || work.run::<_, 4>(simd),
        ),
        Isa::Baseline(simd) => work.run::<_, 16>(simd),
    }
}

/// The sum of [`LANES`] partial sums as a balanced tree: `(0+8)+(4+12)` and so on.
#[inline(always)]
pub fn sum_lanes<T: Copy + AddAssign>(lanes: [T; LANES]) -> T {
    let mut sums = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            let other = sums[i + width];
            sums[i] += other;
        }
        width /= 2;
    }
    sums[0]
}

/// `sum of f(x[i])`: lane `i mod 16` adds its elements in order, then [`sum_lanes`].
#[inline(always)]
pub fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += f(block[i]);
        }
    }
    for i in 0..tail.len() {
        lanes[i] += f(tail[i]);
    }
    sum_lanes(lanes)
}

/// `sum of x[i] * y[i]`, fused: lane `i mod 16` takes its elements in order, then [`sum_lanes`].
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (x_blocks, x_tail) = x.as_chunks::<LANES>();
    let (y_blocks, y_tail) = y.as_chunks::<LANES>();
    for (a, b) in x_blocks.iter().zip(y_blocks) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    for (i, (a, b)) in x_tail.iter().zip(y_tail).enumerate() {
        lanes[i] = a.mul_add(*b, lanes[i]);
    }
    sum_lanes(lanes)
}

/// The largest element, for scaling before an exponential. NaNs are skipped here: the exponential of
/// a NaN is a NaN and stays in the sum.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    for i in 0..tail.len() {
        lanes[i] = if tail[i] > lanes[i] { tail[i] } else { lanes[i] };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}
