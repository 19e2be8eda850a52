// Elementary functions with bits that are specified, on every Hopper GPU, under every compiler and, through
// `src/ops/mirror`, on every CPU.
//
// Kernels are compiled with --fmad=false: `a * b + c` is two roundings, __fmaf_rn one; divisions (`/` too)
// and roots are the correctly rounded ones. Subnormal numbers are kept, not flushed. What an operation makes
// of NaN has the bits 0x7fffffff, and rounded to bf16 0x7fff.
//
// Two functions are the special-function unit's. They are no IEEE operations, but fixed ones: quadratic
// interpolation between 64 and 128 points with a squarer that is cut off. `src/ops/mirror/special.rs` has
// their tables and equals the unit in every bit. Polynomials in their place were exact too, and cost 9 % of a
// step of GPT-2 124M.
//
// Errors against exact arithmetic over whole ranges stand in docs/arithmetic.md.
//
// Includes nothing: attention has types of its own beside those of common.cuh.
#pragma once

namespace exact {

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float bits(unsigned x) { return __uint_as_float(x); }

// 2^x by the special-function unit: results below 2^-126 are 0.
__device__ __forceinline__ float exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// 1/x by the special-function unit: arguments and results below 2^-126 are 0.
__device__ __forceinline__ float reciprocal(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// e^x.
__device__ __forceinline__ float exp(float x) { return exp2(x * LOG2_E); }

// Natural logarithm of every x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), s = (m - 1)/(m + 1), ln m = 2s +
// s^3 Q(s^2), Q minimax, each coefficient rounded to float in turn and the rest fitted again.
__device__ __forceinline__ float ln(float x) {
    if (!(x < bits(0x7f800000))) return x + x;       // infinity, NaN
    if (x <= 0.0f) return x < 0.0f ? bits(0x7fffffff) : bits(0xff800000);
    float e = 0.0f;
    if (x < bits(0x00800000)) x = x * 8388608.0f, e = -23.0f;  // subnormal
    const int whole = (__float_as_int(x) - 0x3f3504f3) >> 23;
    const float m = __int_as_float(__float_as_int(x) - whole * 8388608);
    e = e + static_cast<float>(whole);
    const float s = __fdiv_rn(m - 1.0f, m + 1.0f), z = s * s;
    const float q = __fmaf_rn(__fmaf_rn(bits(0x3e98f040), z, bits(0x3eccaf6b)), z, bits(0x3f2aaabd));
    // ln 2 in two parts, the first short enough for its products with e to be exact.
    return __fmaf_rn(e, 0.693359375f, __fmaf_rn(e, -2.12194440e-4f, __fmaf_rn(s * z, q, s + s)));
}

}  // namespace exact
