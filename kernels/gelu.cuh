// GELU's gate, shared by the elementwise kernels and the matrix products that end in it.
#pragma once

constexpr float SQRT_2_OVER_PI = 0.7978845608028654f;
constexpr float CUBIC = 0.044715f;

// sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3). Far out the exponential saturates and the quotient is exactly 0 or 1.
__device__ __forceinline__ float gelu_gate(float x) {
    const float u = SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
    return __fdividef(1.0f, 1.0f + __expf(-2.0f * u));
}
