// GELU's gate, shared by the elementwise kernels and the matrix products that end in it.
#pragma once
#include "exact.cuh"

// u = sqrt(2/pi) * (x + CUBIC x^3), and exp(-2u) = 2^(x * (GATE + GATE_CUBIC x^2)).
constexpr float SQRT_2_OVER_PI = 0.7978845608028654f;
constexpr float CUBIC = 0.044715f;
constexpr float GATE = -2.302208198f;  // -2 log2(e) sqrt(2/pi)
constexpr float GATE_CUBIC = GATE * CUBIC;

// sigmoid(2u). Far out the power saturates and the quotient is exactly 0 or 1.
__device__ __forceinline__ float gelu_gate(float x) {
    return exact::reciprocal(1.0f + exact::exp2(x * __fmaf_rn(x * x, GATE_CUBIC, GATE)));
}

__device__ __forceinline__ float gelu(float x) { return x * gelu_gate(x); }

// d gelu / dx = s + s(1-s) * 2x du/dx, du/dx = sqrt(2/pi) * (1 + 3 CUBIC x^2).
__device__ __forceinline__ float gelu_slope(float x) {
    const float s = gelu_gate(x);
    const float slope = x * __fmaf_rn(x * x, 6.0f * SQRT_2_OVER_PI * CUBIC, 2.0f * SQRT_2_OVER_PI);
    return __fmaf_rn(__fmaf_rn(-s, s, s), slope, s);
}
