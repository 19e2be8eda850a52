// GELU's gate, shared by the elementwise kernels and the matrix products that end in it.
#pragma once
#include "exact.cuh"

// u = sqrt(2/pi) * (x + CUBIC x^3), and exp(-2u) = 2^(x * (GATE + GATE_CUBIC x^2)).
constexpr float SQRT_2_OVER_PI = 0.7978845608028654f;
constexpr float CUBIC = 0.044715f;
constexpr float GATE = -2.302208198f;  // -2 log2(e) sqrt(2/pi)
constexpr float GATE_CUBIC = GATE * CUBIC;

// sigmoid(2u). The exponent is cut at 100, where the gate is 2^-100 or exactly 1. NaN of x comes out as NaN of x times the gate.
__device__ __forceinline__ float gelu_gate(float x) {
    const float exponent = x * __fmaf_rn(x * x, GATE_CUBIC, GATE);
    const float power = exact::exp2_within<4>(exact::min_or_nan(exact::max_or_nan(exponent, -100.0f), 100.0f));
    return exact::reciprocal(1.0f + power);
}

__device__ __forceinline__ float gelu(float x) { return x * gelu_gate(x); }

// d gelu / dx = s + s(1-s) * 2x du/dx, du/dx = sqrt(2/pi) * (1 + 3 CUBIC x^2).
__device__ __forceinline__ float gelu_slope(float x) {
    const float s = gelu_gate(x);
    const float slope = x * __fmaf_rn(x * x, 6.0f * SQRT_2_OVER_PI * CUBIC, 2.0f * SQRT_2_OVER_PI);
    return __fmaf_rn(__fmaf_rn(-s, s, s), slope, s);
}
