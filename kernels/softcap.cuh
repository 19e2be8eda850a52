// The soft-cap of logits (Gemma Team 2024).
#pragma once
#include "exact.cuh"

// y = cap tanh(x / cap) and its slope, from e = e^(-2 |x| / cap): y = cap (1 - e) / (1 + e) with the sign
// of x, dy/dx = 4 e / (1 + e)^2. Far out e is 0: an infinite logit counts as the cap.
struct SoftCap {
    float cap, gate;  // gate: -2 log2(e) / cap

    __device__ __forceinline__ explicit SoftCap(float cap)
        : cap(cap), gate(__fdiv_rn(-2.0f * exact::LOG2_E, cap)) {}
    __device__ __forceinline__ SoftCap(float cap, float gate) : cap(cap), gate(gate) {}

    __device__ __forceinline__ float operator()(float x, float& slope) const {
        const float e = exact::exp2(fabsf(x) * gate);
        const float r = exact::reciprocal(1.0f + e);
        slope = 4.0f * e * r * r;
        const float size = (1.0f - e) * r * cap;
        return __uint_as_float(__float_as_uint(size) | (__float_as_uint(x) & 0x80000000u));
    }

    __device__ __forceinline__ float operator()(float x) const {
        float slope;
        return (*this)(x, slope);
    }
};
