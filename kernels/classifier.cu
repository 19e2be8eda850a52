// Softmax cross-entropy over the rows of a chunk of logits, and its gradient in place.
//
//   lse = log sum_j exp(x_j), loss = lse - x_target          j over the `used` columns
//   logits_j = exp(x_j - lse) * scale - [j == target] * scale      zero for j >= used
//   logits (n, padded) act_t, losses (n) float; everything between is float
//
// One block a row. Each thread keeps a running maximum and a sum relative to it, so one pass gives the lse;
// the row waits for the gradient pass in shared memory (50304 bf16 are 98 KiB, two rows a multiprocessor on
// Hopper). Where it does not fit, the second pass reads global memory again, as a rule from L2.
// A NaN logit gives a NaN loss: the maximum ignores it, the sum does not.
//
// Order: chunks t, t+512, ... in thread t, then the butterfly of a warp, then the 16 warps by index.
#include "common.cuh"
#include "exact.cuh"

constexpr u32 CLS_THREADS = 512;
constexpr u32 CLS_WARPS = CLS_THREADS / 32;
constexpr u32 CLS_BATCH = 4;  // chunks a thread has in flight
constexpr float LOWEST = -3.402823466e38f;

struct ClassifierArgs {
    act_t* logits;       // (n, padded); gradients afterwards
    float* losses;       // (n)
    float* lse;          // (n), by `classifier_gradient` alone
    const u16* targets;  // (n), each below `used`; else the loss is NaN
    u64 padded;          // columns in memory, a multiple of 8
    u64 used;            // columns that mean a token
    float scale;         // of the gradient
    u32 cached;  // 1: dynamic shared memory holds a row, padded * sizeof(act_t) bytes; 0: it holds nothing
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

// The row's log-sum-exp, the same bits in all threads. Keeps the row in `cache` if that is not null.
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

__device__ __forceinline__ float token_loss(const ClassifierArgs& args, const act_t* row, float lse,
                                            u32 target) {
    return target < args.used ? lse - to_float(row[target]) : __int_as_float(0x7fffffff);
}

// grid n, block 512, no dynamic shared memory. Writes losses alone.
extern "C" __global__ void __launch_bounds__(512)
    classifier_loss(const __grid_constant__ ClassifierArgs args) {
    const act_t* row = args.logits + u64(blockIdx.x) * args.padded;
    const float lse = row_log_sum_exp(args, row, nullptr);
    if (threadIdx.x == 0) args.losses[blockIdx.x] = token_loss(args, row, lse, args.targets[blockIdx.x]);
}

// grid n, block 512, dynamic shared memory padded * sizeof(act_t) bytes if `cached`, else 0.
extern "C" __global__ void __launch_bounds__(512)
    classifier_gradient(const __grid_constant__ ClassifierArgs args) {
    extern __shared__ uint4 dynamic[];
    act_t* cache = args.cached ? reinterpret_cast<act_t*>(dynamic) : nullptr;
    act_t* row = args.logits + u64(blockIdx.x) * args.padded;
    const u32 target = args.targets[blockIdx.x];
    float at_target = 0.f;
    if (threadIdx.x == 0 && target < args.used) at_target = to_float(row[target]);
    const float lse = row_log_sum_exp(args, row, cache);
    // Read above, before any thread can write: row_log_sum_exp has a barrier.
    if (threadIdx.x == 0) {
        args.lse[blockIdx.x] = lse;
        args.losses[blockIdx.x] = target < args.used ? lse - at_target : __int_as_float(0x7fffffff);
    }

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
                float x[8];
                held[k].widen(x);
#pragma unroll
                for (u32 i = 0; i < 8; ++i) x[i] = exact::exp(x[i] - lse) * args.scale;
                if (target / 8 == chunk) {
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) x[i] -= target % 8 == i ? args.scale : 0.f;
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
