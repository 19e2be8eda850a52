// Softmax cross-entropy over the rows of a chunk of logits, and its gradient in place.
//
//   lse = log sum_j exp(x_j), loss = lse - x_target          j over the `used` columns
//   logits_j = exp(x_j - lse) * scale - [j == target] * scale      zero for j >= used
//   logits (n, padded) act_t, losses (n), denominators (n, 2) float: lse log2 e, and 1; everything between is
//   float
//
// Kernels of their own add two terms. The soft-cap (Gemma Team 2024) puts y = cap tanh(x / cap) in place of a
// logit wherever it is read, and multiplies its gradient by dy/dx = 1 - tanh^2. The z-loss (Chowdhery et al.
// 2022) adds z lse^2 to what is differentiated, not to the losses:
//   logits_j = (exp(y_j - lse) w - [j == target] scale) dy_j/dx_j, w = scale (1 + 2 z lse)
// The logits in memory stay as the product rounded them: both passes compute y from them.
//
// In bf16 on Hopper classifier_hopper.cu stands in the place of all this.
//
// One block a row. Each thread keeps a running maximum and a sum relative to it, so one pass gives the lse;
// the row waits for the gradient pass in shared memory (50304 bf16 are 98 KiB). Where it does not fit, the
// second pass reads global memory again, as a rule from L2.
// A NaN logit gives a NaN loss: the maximum ignores it, the sum does not.
//
// Order: chunks t, t+512, ... in thread t, then the butterfly of a warp, then the 16 warps by index.
#include "common.cuh"
#include "exact.cuh"
#include "softcap.cuh"

constexpr u32 CLS_THREADS = 512;
constexpr u32 CLS_WARPS = CLS_THREADS / 32;
constexpr u32 CLS_BATCH = 4;  // chunks a thread has in flight
constexpr float LOWEST = -3.402823466e38f;

struct ClassifierArgs {
    act_t* logits;       // (n, padded); gradients afterwards
    float* losses;       // (n)
    float2* denominators;  // (n), by `classifier_gradient` alone: lse log2 e, and 1
    const u16* targets;    // (n), each below `used`; else the loss is NaN
    u64 padded;          // columns in memory, a multiple of 8
    u64 used;            // columns that mean a token
    float scale;         // of the gradient
    u32 cached;  // 1: dynamic shared memory holds a row, padded * sizeof(act_t) bytes; 0: it holds nothing
    float cap;     // of the soft-cap, positive; read by the `capped` kernels alone
    float z_loss;  // its coefficient z, by `classifier_gradient_z` and `classifier_gradient_capped`
};

// Running (maximum, sum of exp(x - maximum)).
struct LogSum {
    float max, sum;

    __device__ __forceinline__ void add(const float (&x)[8], u32 count) {
        float highest = LOWEST;
#pragma unroll
        for (u32 i = 0; i < 8; ++i)
            if (i < count) highest = fmaxf(highest, x[i]);
        if (highest > max) {
            sum *= exact::exp(max - highest);
            max = highest;
        }
#pragma unroll
        for (u32 i = 0; i < 8; ++i)
            if (i < count) sum += exact::exp(x[i] - max);
    }
};

// A logit as the softmax sees it.
template <bool CAPPED>
__device__ __forceinline__ float seen(const ClassifierArgs& args, act_t stored) {
    if constexpr (CAPPED) return SoftCap(args.cap)(to_float(stored));
    return to_float(stored);
}

// The row's log-sum-exp, the same bits in all threads. Keeps the row in `cache` if that is not null.
template <bool CAPPED>
__device__ __forceinline__ float row_log_sum_exp(const ClassifierArgs& args, const act_t* row, act_t* cache) {
    __shared__ LogSum warps[CLS_WARPS];
    const u32 chunks = u32(args.padded / 8), used = u32(args.used);
    LogSum mine = {LOWEST, 0.f};
    for (u32 at = threadIdx.x; at < chunks; at += CLS_BATCH * CLS_THREADS) {
        Chunk<act_t> held[CLS_BATCH];
#pragma unroll
        for (u32 k = 0; k < CLS_BATCH; ++k)
            if (at + k * CLS_THREADS < chunks) held[k].load(row + u64(at + k * CLS_THREADS) * 8);
#pragma unroll
        for (u32 k = 0; k < CLS_BATCH; ++k) {
            const u32 chunk = at + k * CLS_THREADS;
            if (chunk < chunks) {
                float x[8];
                held[k].widen(x);
                if (cache) held[k].store(cache + chunk * 8);
                if constexpr (CAPPED) {
                    const SoftCap capped(args.cap);
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) x[i] = capped(x[i]);
                }
                if (chunk * 8 + 8 <= used) mine.add(x, 8);
                else if (chunk * 8 < used) mine.add(x, used - chunk * 8);
            }
        }
    }
    const float warp_highest = warp_max(mine.max);
    const float warp_total = warp_sum(mine.sum * exact::exp(mine.max - warp_highest));
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = {warp_highest, warp_total};
    __syncthreads();
    float highest = warps[0].max, sum = 0.f;
#pragma unroll
    for (u32 w = 1; w < CLS_WARPS; ++w) highest = fmaxf(highest, warps[w].max);
#pragma unroll
    for (u32 w = 0; w < CLS_WARPS; ++w) sum += warps[w].sum * exact::exp(warps[w].max - highest);
    return highest + exact::ln(sum);
}

template <bool CAPPED>
__device__ __forceinline__ float token_loss(const ClassifierArgs& args, const act_t* row, float lse,
                                            u32 target) {
    return target < args.used ? lse - seen<CAPPED>(args, row[target]) : __int_as_float(0x7fffffff);
}

// One row of losses alone.
template <bool CAPPED>
__device__ __forceinline__ void row_loss(const ClassifierArgs& args) {
    const act_t* row = args.logits + u64(blockIdx.x) * args.padded;
    const float lse = row_log_sum_exp<CAPPED>(args, row, nullptr);
    if (threadIdx.x == 0)
        args.losses[blockIdx.x] = token_loss<CAPPED>(args, row, lse, args.targets[blockIdx.x]);
}

// One row of losses, denominators and gradients.
template <bool CAPPED, bool Z_LOSS>
__device__ __forceinline__ void row_gradient(const ClassifierArgs& args) {
    extern __shared__ uint4 dynamic[];
    act_t* cache = args.cached ? reinterpret_cast<act_t*>(dynamic) : nullptr;
    act_t* row = args.logits + u64(blockIdx.x) * args.padded;
    const u32 target = args.targets[blockIdx.x];
    float at_target = 0.f;
    if (threadIdx.x == 0 && target < args.used) at_target = seen<CAPPED>(args, row[target]);
    const float lse = row_log_sum_exp<CAPPED>(args, row, cache);
    // Read above, before any thread can write: row_log_sum_exp has a barrier.
    if (threadIdx.x == 0) {
        args.denominators[blockIdx.x] = make_float2(lse * exact::LOG2_E, 1.0f);
        args.losses[blockIdx.x] = target < args.used ? lse - at_target : __int_as_float(0x7fffffff);
    }

    const float weight = Z_LOSS ? args.scale * __fmaf_rn(2.0f * args.z_loss, lse, 1.0f) : args.scale;
    const u32 chunks = u32(args.padded / 8), used = u32(args.used);
    const act_t* source = cache ? cache : row;
    for (u32 at = threadIdx.x; at < chunks; at += CLS_BATCH * CLS_THREADS) {
        Chunk<act_t> held[CLS_BATCH];
#pragma unroll
        for (u32 k = 0; k < CLS_BATCH; ++k)
            if (at + k * CLS_THREADS < chunks) held[k].load(source + u64(at + k * CLS_THREADS) * 8);
#pragma unroll
        for (u32 k = 0; k < CLS_BATCH; ++k) {
            const u32 chunk = at + k * CLS_THREADS;
            if (chunk < chunks) {
                float x[8], slope[8];
                held[k].widen(x);
                if constexpr (CAPPED) {
                    const SoftCap capped(args.cap);
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) x[i] = capped(x[i], slope[i]);
                }
#pragma unroll
                for (u32 i = 0; i < 8; ++i) x[i] = exact::exp(x[i] - lse) * weight;
                if (target / 8 == chunk) {
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) x[i] -= target % 8 == i ? args.scale : 0.f;
                }
                if constexpr (CAPPED) {
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) x[i] *= slope[i];
                }
                if (chunk * 8 + 8 > used) {
#pragma unroll
                    for (u32 i = 0; i < 8; ++i)
                        if (chunk * 8 + i >= used) x[i] = 0.f;
                }
                held[k].narrow(x);
                held[k].store(row + u64(chunk) * 8);
            }
        }
    }
}

// grid n, block 512, no dynamic shared memory. Writes losses alone.
extern "C" __global__ void __launch_bounds__(512)
    classifier_loss(const __grid_constant__ ClassifierArgs args) {
    row_loss<false>(args);
}

// As `classifier_loss`, of capped logits.
extern "C" __global__ void __launch_bounds__(512)
    classifier_loss_capped(const __grid_constant__ ClassifierArgs args) {
    row_loss<true>(args);
}

// grid n, block 512, dynamic shared memory padded * sizeof(act_t) bytes if `cached`, else 0.
extern "C" __global__ void __launch_bounds__(512)
    classifier_gradient(const __grid_constant__ ClassifierArgs args) {
    row_gradient<false, false>(args);
}

// As `classifier_gradient`, with the z-loss.
extern "C" __global__ void __launch_bounds__(512)
    classifier_gradient_z(const __grid_constant__ ClassifierArgs args) {
    row_gradient<false, true>(args);
}

// As `classifier_gradient`, of capped logits, with the z-loss; its coefficient may be 0.
extern "C" __global__ void __launch_bounds__(512)
    classifier_gradient_capped(const __grid_constant__ ClassifierArgs args) {
    row_gradient<true, true>(args);
}
