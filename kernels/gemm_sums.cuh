// How a weight gradient's tiles of gemm_hopper.cu end: fp32 sums in memory.
#pragma once
#include "hopper.cuh"

namespace gemm {
using namespace hopper;

// Adds a part of a tile to memory, after the part before it. `alone`: a barrier of this warpgroup.
template <int WIDTH, class Args, class Work>
__device__ __forceinline__ void accumulate(const float (&d)[2][WIDTH / 2], const Args& args, const Work& w,
                                           u32 alone, u32 warp, u32 lane) {
    const bool add = args.add || w.split > 0, first = (warp & 3) == 0 && lane == 0;
    if (w.split > 0) {
        if (first) {
            u32 turn;
            do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                            : "=r"(turn) : "l"(args.turns + w.tile) : "memory");
            while (turn != static_cast<u32>(w.split));
        }
        named_sync<128>(alone);
    }
    const int width = args.n - w.column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = w.row + half * 64 + static_cast<int>(warp & 3) * 16 + static_cast<int>(lane >> 2);
        float* at = args.weight + static_cast<long long>(row) * args.n + w.column + (lane & 3) * 2;
#pragma unroll
        for (int chunk0 = 0; chunk0 < WIDTH / 8; chunk0 += 4) {
            float2 old[4][2];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int chunk = chunk0 + i / 2, lower = i % 2 * 8;
                old[i / 2][i % 2] = make_float2(0.f, 0.f);
                // Past the first-level cache: another multiprocessor may have written.
                const float* from = at + static_cast<long long>(lower) * args.n + chunk * 8;
                if (add && row + lower < args.m && chunk * 8 < width)
                    old[i / 2][i % 2] = __ldcg(reinterpret_cast<const float2*>(from));
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int chunk = chunk0 + i / 2, lower = i % 2 * 8;
                const float* v = &d[half][chunk * 4 + i % 2 * 2];
                const float2 sum = make_float2(old[i / 2][i % 2].x + v[0], old[i / 2][i % 2].y + v[1]);
                float* to = at + static_cast<long long>(lower) * args.n + chunk * 8;
                if (row + lower < args.m && chunk * 8 < width) __stcg(reinterpret_cast<float2*>(to), sum);
            }
        }
    }
    if (args.splits > 1) {
        __threadfence();
        named_sync<128>(alone);
        const u32 next = w.split + 1 == args.splits ? 0 : w.split + 1;
        if (first)
            asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(args.turns + w.tile), "r"(next)
                         : "memory");
    }
}

// Stores what a column tile has of the column sums, if it is one of those that share the work.
template <class Args, class Work>
__device__ __forceinline__ void store_sums(const float (&s)[2][4], const Args& args, const Work& w, u32 warp,
                                           u32 lane) {
    if (args.sums == nullptr || w.column_tile >= args.shares || (lane & 3) != 0) return;
    float* to = args.sums + static_cast<long long>(w.split * args.shares + w.column_tile) * args.m;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = w.row + i / 2 * 64 + static_cast<int>(warp & 3) * 16 +
                        static_cast<int>(lane >> 2) + i % 2 * 8;
        if (row < args.m) to[row] = s[i / 2][i % 2 * 2];
    }
}

}  // namespace gemm
