// What the tiles of gemm_hopper.cu end in: column sums, GELU, squared ReLU, SwiGLU, whose gate and factor are
// neighbours, so that one thread of wgmma's accumulators has both, and the powers of a softmax.
#pragma once
#include "activate.cuh"
#include "common.cuh"
#include "exact.cuh"
#include "gelu.cuh"
#include "hopper.cuh"
#include "softcap.cuh"

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

// Where the 16-byte column `chunk` of a row lies in a buffer of PANEL columns under their swizzle.
template <int PANEL>
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    return PANEL == 64 ? row * 128 + ((chunk ^ (row & 7)) << 4) : row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

// Two columns of GELU, or else of squared ReLU.
template <bool GELU>
__device__ __forceinline__ u32 activate_pair(u32 pre) {
    const float even = low_half(pre), odd = high_half(pre);
    return GELU ? pack_bf16(gelu(even), gelu(odd)) : pack_bf16(squared_relu(even), squared_relu(odd));
}

// Of dout and pre, dpre.
template <bool GELU>
__device__ __forceinline__ u32 slope_pair(u32 dout, u32 pre) {
    const float even = low_half(pre), odd = high_half(pre);
    const float even_slope = GELU ? gelu_slope(even) : squared_relu_slope(even),
                odd_slope = GELU ? gelu_slope(odd) : squared_relu_slope(odd);
    return pack_bf16(low_half(dout) * even_slope, high_half(dout) * odd_slope);
}

// Of eight columns of `pre`, gate and factor in turns, rows r and r + 8 of this thread in `upper` and
// `lower`, two outputs: neighbouring lanes swap one each, so that the even one has two of row r and the odd
// one two of row r + 8.
__device__ __forceinline__ u32 swiglu_pair(u32 upper, u32 lower, u32 lane) {
    const float first = swiglu(low_half(upper), high_half(upper)),
                second = swiglu(low_half(lower), high_half(lower));
    const bool odd = lane & 1;
    const float theirs = __shfl_xor_sync(FULL_WARP, odd ? first : second, 1);
    return odd ? pack_bf16(theirs, second) : pack_bf16(first, theirs);
}

// What swiglu_pair gave to a buffer of 16 rows of 32 columns under the 64-byte swizzle.
template <int COUNT>
__device__ __forceinline__ void store_swiglu(const u32 (&pairs)[COUNT], u32 buffer, u32 chunk0, u32 lane) {
    const u32 row = (lane >> 2) + (lane & 1) * 8;
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
        const u32 chunk = chunk0 + i;
        const u32 at = buffer + swizzled<32>(row, chunk >> 1) + (chunk & 1) * 8 + (lane >> 1 & 1) * 4;
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(pairs[i]) : "memory");
    }
}

// Sixteen rows of a panel of dout's columns, `d` in the order of the accumulators, and twice as many of `pre`
// in two buffers under the 128-byte swizzle, one after the other, become dpre in the place of `pre`: two
// columns of d need four of `pre`, which no other thread reads. BATCH chunks at a time.
template <int PANEL, int UNIT_BYTES, int BATCH>
__device__ __forceinline__ void swiglu_gradient_unit(const float* d, u32 buffer, u32 lane) {
    const auto place = [&](int chunk, int lower) {
        const u32 column = 2 * chunk + (lane >> 1 & 1);  // of 16 bytes
        const u32 row = (lane >> 2) + 8 * lower;
        return buffer + (column >> 3) * UNIT_BYTES + swizzled<64>(row, column & 7) + (lane & 1) * 8;
    };
#pragma unroll
    for (int chunk0 = 0; chunk0 < PANEL / 8; chunk0 += BATCH) {
        u32 x[BATCH][2][2];
#pragma unroll
        for (int i = 0; i < 2 * BATCH; ++i)
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                         : "=r"(x[i / 2][i % 2][0]), "=r"(x[i / 2][i % 2][1])
                         : "r"(place(chunk0 + i / 2, i % 2))
                         : "memory");
#pragma unroll
        for (int i = 0; i < 2 * BATCH; ++i) {
            const float* of = &d[4 * (chunk0 + i / 2) + 2 * (i % 2)];
            const u32 dout = pack_bf16(of[0], of[1]);
            float gate, up;
#pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
                u32& pre = x[i / 2][i % 2][pair];
                const float d_out = pair ? high_half(dout) : low_half(dout);
                swiglu_gradient(d_out, low_half(pre), high_half(pre), gate, up);
                pre = pack_bf16(gate, up);
            }
        }
#pragma unroll
        for (int i = 0; i < 2 * BATCH; ++i)
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(place(chunk0 + i / 2, i % 2)),
                         "r"(x[i / 2][i % 2][0]), "r"(x[i / 2][i % 2][1])
                         : "memory");
    }
}

// The largest exponent of 2, NaN aside, and the sum of the powers.
struct PowerSum {
    float highest = exact::bits(0xff800000), sum = 0.0f;

    // Of the four threads of a row.
    __device__ __forceinline__ PowerSum quad() const {
        PowerSum all = *this;
#pragma unroll
        for (int step = 1; step <= 2; ++step) {
            all.highest = fmaxf(all.highest, __shfl_xor_sync(FULL_WARP, all.highest, step));
            all.sum += __shfl_xor_sync(FULL_WARP, all.sum, step);
        }
        return all;
    }
};

// Of 16 rows of a panel that begins with column `first`, `d` in the order of the accumulators: what is at the
// targets of rows r and r + 8 goes to `to`, which is the first row's place. Few panels have any.
template <int PANEL>
__device__ __forceinline__ void store_at_targets(const float* d, const int (&targets)[2], int first,
                                                 float* to, u32 lane) {
    const int upper = targets[0] - first, lower = targets[1] - first;
    const bool here = static_cast<u32>(upper) < PANEL || static_cast<u32>(lower) < PANEL;
    if (!__any_sync(FULL_WARP, here)) return;
#pragma unroll
    for (int i = 0; i < PANEL / 2; ++i)
        if ((i & 2 ? lower : upper) == i / 4 * 8 + static_cast<int>(lane & 3) * 2 + i % 2)
            to[(lane >> 2) + (i & 2) * 4] = d[i];
}

// Two neighbouring columns of 2^(y log2 e - base), with a soft-cap times its slope: rounded, and what they
// add to `of_row`. A logit of -infinity is none.
template <bool CAPPED>
__device__ __forceinline__ u32 power_pair(const float* x, float base, SoftCap cap, PowerSum& of_row) {
    float exponent[2], power[2], slope[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float none = exact::bits(0xff800000), y = CAPPED ? cap(x[i], slope[i]) : x[i];
        exponent[i] = __fmaf_rn(y, exact::LOG2_E, -base);
        if (CAPPED && x[i] == none) exponent[i] = none;
        power[i] = exact::exp2(exponent[i]);
    }
    of_row.highest = fmaxf(of_row.highest, fmaxf(exponent[0], exponent[1]));
    of_row.sum += power[0] + power[1];
    return CAPPED ? pack_bf16(power[0] * slope[0], power[1] * slope[1]) : pack_bf16(power[0], power[1]);
}

}  // namespace gemm
