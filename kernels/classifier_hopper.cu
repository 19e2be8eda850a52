// What surrounds the classifier's products on Hopper, where the first one ends in powers of 2 in place of
// logits (gemm_forward_softmax): softmax cross-entropy without a pass over the logits.
//
//   y_j = x . w_j, soft-capped if there is a cap      p_j = 2^(y_j log2 e - base) / sum
//   softmax_bases   base = y_target log2 e, about, so that the target's power is 1 and the sum 1 / p_target
//   (product)       powers, y_target as it is among them, and for stripes of columns their sum and the
//                   largest exponent
//   softmax_rows    sum over stripes; loss; the target's power becomes that of the gradient, whose factor for
//                   all of a row goes to the products that follow: the input gradient multiplies its sums by
//                   it, and the weight gradient takes x times it
//
//   loss = ln sum - (y_target log2 e - base) ln 2, at least 0
//   gradient of a logit = factor (power_j dy_j - [j == target] dy_target sum / w),
//   factor = scale w / sum, w = 1 + 2 z lse
//
// The base has a sum of its own, which differs from the product's where logits are large, and the loss of a
// token is rarely above 40 nats. Where the sum of powers is not between 1/2 and 2^64, `softmax_rows` adds the
// row's largest exponent to its base and sets a word, for which product and `softmax_rows` run once more:
// both return at once where the word is 0. A row has the same bits whatever its neighbours need.
//
// Order: softmax_bases: chunks of eight l, l + 32, ... in lane l, fused one after another; the butterfly.
// softmax_rows: stripes w, w + 8, ... in warp w of 8, then the warps by index.
#include "common.cuh"
#include "exact.cuh"
#include "softcap.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / 32;
constexpr float LN_2 = 0.69314718055994531f;
constexpr float LEAST = 0.5f, MOST = 18446744073709551616.0f;  // 2^64

struct SoftmaxBasesArgs {
    const bf16* x;         // (n, c)
    const bf16* weight;    // (V, c)
    const u16* targets;    // (n), each below `used`; else the row's base is NaN
    float2* denominators;  // (n): base, and 0
    u32* overflow;         // set to 0
    u32 n;
    u32 channels;          // a multiple of 8
    u32 used;
    float cap;             // 0: none
};

struct SoftmaxRowsArgs {
    bf16* powers;           // (n, padded): a target's is replaced; with `gradient` alone, like the next two
    bf16* scaled;           // (n, c): x times the row's factor
    float* factors;         // (n)
    float* losses;          // (n)
    float2* denominators;   // (n): base, which may be moved; sum, written
    const float2* stripes;  // (stripes, n): largest exponent and sum
    const float* logits;    // (n): of the targets, before any cap
    const bf16* x;          // (n, c)
    const u16* targets;     // (n)
    u32* overflow;          // whether any row's powers have to be made again
    u64 padded;
    u32 n;
    u32 channels;
    u32 stripe_count;
    u32 second;    // 1: the second turn, where `overflow` is not 0; 0: the first, which may set it
    u32 gradient;  // 1: powers, scaled and factors are there
    float scale;   // of the gradient
    float cap;     // 0: none
    float z_loss;
};

// A target's logit as the softmax sees it, and the slope there.
__device__ __forceinline__ float seen(float x, float cap, float& slope) {
    slope = 1.0f;
    return cap > 0.0f ? SoftCap(cap)(x, slope) : x;
}

// grid ceil(n / 8), block 256: a warp a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_bases(const __grid_constant__ SoftmaxBasesArgs args) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *args.overflow = 0;
    const u32 row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= args.n) return;
    const u32 target = args.targets[row];
    float sum = 0.0f;
    if (target < args.used) {
        const bf16 *x = args.x + u64(row) * args.channels, *w = args.weight + u64(target) * args.channels;
        for (u32 at = lane * 8; at < args.channels; at += 256) {
            Chunk<bf16> left, right;
            left.load_constant(x + at);
            right.load_constant(w + at);
            float a[8], b[8];
            left.widen(a);
            right.widen(b);
#pragma unroll
            for (u32 i = 0; i < 8; ++i) sum = __fmaf_rn(a[i], b[i], sum);
        }
    } else {
        sum = exact::bits(0x7fffffff);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        float slope;
        args.denominators[row] = make_float2(seen(sum, args.cap, slope) * exact::LOG2_E, 0.0f);
    }
}

// grid ceil(n / 32), block 256: warp w adds its stripes of 32 rows, the first warp adds the warps', then each
// warp scales four rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_rows(const __grid_constant__ SoftmaxRowsArgs args) {
    if (args.second && *args.overflow == 0) return;
    __shared__ float2 warps[WARPS][32];
    __shared__ float factors[32];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * 32, row = first + lane;
    float2 mine = make_float2(exact::bits(0xff800000), 0.0f);
    if (row < args.n) {
#pragma unroll 8
        for (u32 stripe = warp; stripe < args.stripe_count; stripe += WARPS) {
            const float2 of = __ldg(args.stripes + u64(stripe) * args.n + row);
            mine = make_float2(fmaxf(mine.x, of.x), mine.y + of.y);
        }
    }
    warps[warp][lane] = mine;
    __syncthreads();
    if (warp == 0 && row < args.n) {
        for (u32 w = 1; w < WARPS; ++w)
            mine = make_float2(fmaxf(mine.x, warps[w][lane].x), mine.y + warps[w][lane].y);
        const float base = args.denominators[row].x, sum = mine.y;
        const u32 target = args.targets[row];
        float slope;
        const float exponent = __fmaf_rn(seen(args.logits[row], args.cap, slope), exact::LOG2_E, -base);
        const float log = exact::ln(sum);
        const float loss = __fmaf_rn(-exponent, LN_2, log);
        // Rounding leaves a little less than nothing; far less is of logits past all precision.
        const float bounded = loss < -1e-3f ? exact::bits(0x7fffffff) : 0.0f;
        args.losses[row] = loss <= 0.0f ? bounded : loss;
        float next = base;
        if (!args.second && (sum > MOST || sum < LEAST)) next = base + mine.x, *args.overflow = 1;
        args.denominators[row] = make_float2(next, sum);
        if (args.gradient) {
            const float weight = __fmaf_rn(2.0f * args.z_loss, __fmaf_rn(base, LN_2, log), 1.0f);
            const float factor = __fdiv_rn(args.scale * weight, sum);
            factors[lane] = factor;
            args.factors[row] = factor;
            if (target < args.padded)
                from_float((exact::exp2(exponent) - __fdiv_rn(sum, weight)) * slope,
                           args.powers[row * args.padded + target]);
        }
    }
    if (!args.gradient) return;
    __syncthreads();
    for (u32 i = warp; i < 32 && first + i < args.n; i += WARPS) {
        const u64 at_row = u64(first + i) * args.channels;
        const float factor = factors[i];
        for (u32 at = lane * 8; at < args.channels; at += 256) {
            Chunk<bf16> chunk;
            chunk.load_constant(args.x + at_row + at);
            float x[8];
            chunk.widen(x);
#pragma unroll
            for (u32 k = 0; k < 8; ++k) x[k] *= factor;
            chunk.narrow(x);
            chunk.store(args.scaled + at_row + at);
        }
    }
}
