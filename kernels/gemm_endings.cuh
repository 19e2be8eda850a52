// What the tiles of gemm_hopper.cu end in: column sums, and SwiGLU, whose gate and factor are neighbours, so
// that one thread of wgmma's accumulators has both.
#pragma once
#include "activate.cuh"
#include "common.cuh"
#include "hopper.cuh"

namespace gemm {
using namespace hopper;

__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Adds a thread's columns over the eight rows of its quad's column: each step halves the columns that a
// lane keeps. Lane l is left with columns 2l and 2l + 1 of a panel of 64, and every second lane with its
// share of a panel of 32.
template <int PANEL>
__device__ __forceinline__ void store_column_sums(float (&sum)[PANEL / 8][2], u32 to, u32 lane) {
    constexpr int COUNT = PANEL / 8;
#pragma unroll
    for (int step = 0; step < 3; ++step) {
        const int bit = 16 >> step, keep = COUNT >> (step + 1);
        const bool upper = lane & bit;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (keep == 0) sum[0][i] += __shfl_xor_sync(FULL_WARP, sum[0][i], bit);
#pragma unroll
            for (int j = 0; j < keep; ++j) {
                const float mine = upper ? sum[j + keep][i] : sum[j][i],
                            theirs = upper ? sum[j][i] : sum[j + keep][i];
                sum[j][i] = mine + __shfl_xor_sync(FULL_WARP, theirs, bit);
            }
        }
    }
    const u32 column = (COUNT == 8 ? lane >> 2 : lane >> 3) * 8 + (lane & 3) * 2;
    if (COUNT == 8 || (lane & 4) == 0)
        asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                     ::"r"(to + column * 4), "f"(sum[0][0]), "f"(sum[0][1]) : "memory");
}

// Of eight columns of `pre`, gate and factor in turns, rows r and r + 8 of this thread in `upper` and
// `lower`, the four outputs a row to a buffer of 16 rows of 32 columns under the 64-byte swizzle.
// Neighbouring lanes swap one output each, so that the even one has two of row r and the odd one two of row r
// + 8.
__device__ __forceinline__ void swiglu_chunk(u32 upper, u32 lower, u32 buffer, u32 chunk, u32 lane) {
    const float first = swiglu(low_half(upper), high_half(upper)),
                second = swiglu(low_half(lower), high_half(lower));
    const bool odd = lane & 1;
    const float theirs = __shfl_xor_sync(FULL_WARP, odd ? first : second, 1);
    const u32 pair = odd ? pack_bf16(theirs, second) : pack_bf16(first, theirs);
    const u32 row = (lane >> 2) + (odd ? 8 : 0);
    const u32 at = buffer + row * 64 + (((chunk >> 1) ^ (row >> 1 & 3)) << 4) + (chunk & 1) * 8 +
                   (lane >> 1 & 1) * 4;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(pair) : "memory");
}

// Sixteen rows of a panel of dout's columns, `d` in the order of the accumulators, and twice as many of `pre`
// in two buffers under the 128-byte swizzle, one after the other, become dpre in the place of `pre`: two
// columns of d need four of `pre`, which no other thread reads.
template <int PANEL, int UNIT_BYTES>
__device__ __forceinline__ void swiglu_gradient_unit(const float* d, u32 buffer, u32 lane) {
#pragma unroll
    for (int chunk = 0; chunk < PANEL / 8; ++chunk) {
        const u32 column = 2 * chunk + (lane >> 1 & 1);  // of 16 bytes
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
            const u32 row = (lane >> 2) + 8 * lower;
            const u32 dout = pack_bf16(d[4 * chunk + 2 * lower], d[4 * chunk + 2 * lower + 1]);
            const u32 at = buffer + (column >> 3) * UNIT_BYTES + row * 128 +
                           (((column & 7) ^ (row & 7)) << 4) + (lane & 1) * 8;
            u32 x0, x1;
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x0), "=r"(x1) : "r"(at) : "memory");
            float gate, up;
            swiglu_gradient(low_half(dout), low_half(x0), high_half(x0), gate, up);
            x0 = pack_bf16(gate, up);
            swiglu_gradient(high_half(dout), low_half(x1), high_half(x1), gate, up);
            x1 = pack_bf16(gate, up);
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(x0), "r"(x1) : "memory");
        }
    }
}

}  // namespace gemm
