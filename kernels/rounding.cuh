// Rounding by chance, for parameters without masters.
//
// Element i of a tensor uses word i%4 of the Philox4x32-10 block with key `rounding_key` and counter
//   (low word of i/4, high word of i/4, low word of step, tensor id),
// i counted within the logical tensor, so that neither launch nor sharding shows in the numbers.
#pragma once
#include "common.cuh"

struct Words4 {
    u32 word[4];
};

__device__ __forceinline__ Words4 philox(u32 key0, u32 key1, u64 index, u32 step, u32 id) {
    u32 c0 = u32(index), c1 = u32(index >> 32), c2 = step, c3 = id;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 a = u64(0xD2511F53u) * c0, b = u64(0xCD9E8D57u) * c2;
        c0 = u32(b >> 32) ^ c1 ^ key0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ key1;
        c3 = u32(a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Rounds up with probability (cut-off part)/(spacing), by the low 16 random bits. NaN and infinity stay.
__device__ __forceinline__ void from_float_stochastic(float x, u32 random, bf16& out) {
    const u32 bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) from_float(x, out);
    else out.bits = u16((bits + (random & 0xffffu)) >> 16);
}

__device__ __forceinline__ void from_float_stochastic(float x, u32, float& out) { out = x; }
