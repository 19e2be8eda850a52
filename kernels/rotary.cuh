// The turn of rotary position embeddings, for kernels that hold eight columns of a head a lane.
#pragma once
#include "common.cuh"

// Neighbours (a, b) -> (fma(a, cos, -(b sin)), fma(a, sin, b cos)); `angle` has cosine and sine of each pair.
__device__ __forceinline__ void turn(float (&x)[8], const float (&angle)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const float a = x[i], b = x[i + 1], cos = angle[i], sin = angle[i + 1];
        x[i] = __fmaf_rn(a, cos, -(b * sin));
        x[i + 1] = __fmaf_rn(a, sin, b * cos);
    }
}

// Of angles that turn back.
__device__ __forceinline__ void invert(float (&angle)[8]) {
#pragma unroll
    for (int i = 1; i < 8; i += 2) angle[i] = -angle[i];
}
