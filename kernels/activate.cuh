// Squared ReLU, and the logistic function that gates SwiGLU, with their slopes.
#pragma once
#include "exact.cuh"

// NaN passes.
__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }

__device__ __forceinline__ float squared_relu(float x) {
    const float y = relu(x);
    return y * y;
}

__device__ __forceinline__ float squared_relu_slope(float x) {
    const float y = relu(x);
    return y + y;
}

// 1 / (1 + exp(-x)), and what it lacks to 1. Of the exponential of -|x|, which is at most 1: nothing
// overflows, and the smaller of the two keeps its relative accuracy.
struct Logistic {
    float value, rest;
};

__device__ __forceinline__ Logistic logistic(float x) {
    const float e = exact::exp(-fabsf(x));
    const float near = exact::reciprocal(1.0f + e), far = e * near;
    return x < 0.0f ? Logistic{far, near} : Logistic{near, far};
}

// silu(gate) * up, silu(x) = x logistic(x).
__device__ __forceinline__ float swiglu(float gate, float up) { return gate * logistic(gate).value * up; }

// The gradients of gate and up. silu'(x) = s + x s (1 - s).
__device__ __forceinline__ void swiglu_gradient(float dout, float gate, float up, float& dgate, float& dup) {
    const Logistic s = logistic(gate);
    const float silu = gate * s.value;
    dgate = dout * (up * __fmaf_rn(silu, s.rest, s.value));
    dup = dout * silu;
}
