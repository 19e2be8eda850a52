// Elementary functions in IEEE operations alone, so that their bits are the same on every GPU, under every
// compiler and, through `src/ops/mirror/scalar.rs`, on every CPU.
//
// Nothing here uses the special-function unit or a function of CUDA's library. Kernels are compiled with
// --fmad=false: `a * b + c` is two roundings, __fmaf_rn one. Subnormal numbers are kept, not flushed. What an
// operation makes of NaN has the bits 0x7fffffff, and rounded to bf16 0x7fff.
//
// Errors against exact arithmetic over the whole range of each function stand in docs/arithmetic.md.
// Coefficients are minimax polynomials, each rounded to float in turn and the rest fitted again.
//
// Includes nothing: attention has types of its own beside those of common.cuh.
#pragma once

namespace exact {

constexpr float LOG2_E = 1.4426950408889634f;
// 1.5 * 2^23: added, it rounds a number to an integer in the sum's low bits.
constexpr float MAGIC = 12582912.0f;

__device__ __forceinline__ float bits(unsigned x) { return __uint_as_float(x); }

// The larger and the smaller of two numbers, NaN if either is; fmaxf and fminf would drop it.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
__device__ __forceinline__ float min_or_nan(float a, float b) {
    float r;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// 2^r for |r| <= 1/2, exactly 1 at 0. Relative error: degree 3 2^-13.2, degree 4 2^-18.4, degree 6 2^-28.3, and rounding.
template <int DEGREE>
__device__ __forceinline__ float power_of_fraction(float r) {
    static_assert(DEGREE == 3 || DEGREE == 4 || DEGREE == 6, "no polynomial of this degree");
    if (DEGREE == 3) {
        const float p = __fmaf_rn(bits(0x3d61512a), r, bits(0x3e780626));
        return __fmaf_rn(__fmaf_rn(p, r, bits(0x3f317afd)), r, 1.0f);
    }
    if (DEGREE == 4) {
        float p = __fmaf_rn(bits(0x3c1d02be), r, bits(0x3d64fe3a));
        p = __fmaf_rn(p, r, bits(0x3e7601b7));
        return __fmaf_rn(__fmaf_rn(p, r, bits(0x3f317096)), r, 1.0f);
    }
    float p = __fmaf_rn(bits(0x3920b5a9), r, bits(0x3aaf8417));
    p = __fmaf_rn(p, r, bits(0x3c1d96f0));
    p = __fmaf_rn(p, r, bits(0x3d6357be));
    p = __fmaf_rn(p, r, bits(0x3e75fdee));
    return __fmaf_rn(__fmaf_rn(p, r, bits(0x3f317218)), r, 1.0f);
}

// 2^x for x from -125 to 127; elsewhere meaningless. NaN gives 3.4e38, the largest number.
// The integer that MAGIC leaves in the sum's low bits is added to the exponent.
template <int DEGREE>
__device__ __forceinline__ float exp2_within(float x) {
    const float shifted = x + MAGIC;
    const float p = power_of_fraction<DEGREE>(x - (shifted - MAGIC));
    return bits(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

// 2^x for x up to 127, where x below -125 counts as -125: the weight of a score. NaN gives 3.4e38, which bf16 rounds to
// infinity. A masked score's weight has to be set to 0 by the caller.
__device__ __forceinline__ float exp2_weight(float x) { return exp2_within<3>(max_or_nan(x, -125.0f)); }

// 2^(score * scale), as exp2_weight but with no rounding of the product; a product below -124 counts as that.
__device__ __forceinline__ float exp2_weight(float score, float scale) {
    score = max_or_nan(score, -124.0f * (1.0f / scale));
    const float shifted = __fmaf_rn(score, scale, MAGIC);
    const float p = power_of_fraction<3>(__fmaf_rn(score, scale, MAGIC - shifted));
    return bits(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

// 2^x for every x: 0 below -126.5, infinity above 127.5. Here the integer's exponent is a factor of its own.
__device__ __forceinline__ float exp2(float x) {
    constexpr float BIASED = MAGIC + 127.0f;
    x = min_or_nan(max_or_nan(x, -127.0f), 128.0f);
    const float shifted = x + BIASED;
    return power_of_fraction<6>(x - (shifted - BIASED)) * bits(__float_as_uint(shifted) << 23);
}

// e^x for every x.
__device__ __forceinline__ float exp(float x) { return exp2(x * LOG2_E); }

// Natural logarithm of every x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), s = (m - 1)/(m + 1), ln m = 2s + s^3 Q(s^2).
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

// 1/d for d from 1 to 2^100: a first guess by the bits within 5.1 %, one cubic step and one of Newton's.
__device__ __forceinline__ float reciprocal(float d) {
    float y = bits(0x7ef311c3 - __float_as_uint(d));
    const float e = __fmaf_rn(-d, y, 1.0f);
    y = __fmaf_rn(y, __fmaf_rn(e, e, e), y);
    return __fmaf_rn(y, __fmaf_rn(-d, y, 1.0f), y);
}

}  // namespace exact
