// RMSNorm of each head's queries and keys, and its gradient (Dehghani et al. 2023); with rotary positions the
// turn of its output (rotary.cu) in the same pass.
//
//   forward    out = x rstd w, rstd = 1/sqrt(mean(x^2) + 1e-5) over the HS elements of a head; values copied
//              if out has a place for them: out (n, slices, HS), slices NH + 2 KH, or NH + KH
//   backward   h = x rstd, g = dout w;  dx = rstd (g - h mean(g h)) in the place of dout
//              dq_weight, dk_weight (=|+=) sum of dout h over all rows and heads
//   rotary     out is turned by the row's angles before it is rounded, dout turned back before all else: once
//              rounded and not at all
//   x, dqkv (n, NH + 2 KH, HS), q_weight, k_weight (HS) act_t; rstd (n, NH + KH) float
//   dq_weight, dk_weight (HS) float; table (P, HS/2, 2) float: cosine and sine of each pair
//
// A group of lanes has a head, eight columns a lane: 8 lanes for heads of up to 64 columns, 16 up to 128, 32
// up to 256. A head is read once and waits in registers for its sum.
//
// Order of sums. Of a head: each lane its columns in order, then lane numbers that differ in lanes/2, ..., 1.
// Weight gradients: the n NH heads of queries (row by row) are cut into blocks, and the n KH of keys into
// blocks of as many; half of the groups of a block of threads take each. Group j of half has the heads j, j +
// half, ... of its block in order, then the groups are added in order, then the blocks by reduce_partials
// (reduce.cu).
#include "rotary.cuh"

constexpr u32 QK_THREADS = 256;
constexpr float QK_EPSILON = 1e-5f;
// Of the gradient, on a multiprocessor: the 1024 blocks of a large batch are two rounds of 528 on an H100. In
// fp32, and on Blackwell, a fourth would spill.
constexpr u32 QK_BLOCKS = sizeof(act_t) == 2 && __CUDA_ARCH__ < 1000 ? 4 : 3;

// Sum over the lanes of a group; the same bits in all of them. Every lane of the warp takes part.
__device__ __forceinline__ float group_sum(float x, u32 lanes) {
    for (u32 step = lanes / 2; step > 0; step >>= 1) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

// Eight columns of a row's angles.
template <typename Args>
__device__ __forceinline__ void load_angles(Chunk<float>& angles, const Args& args, u32 row, u32 column) {
    const u32 position = args.positions ? args.positions[row] : row % args.seq;
    angles.load(args.table + u64(position) * args.head_size + column);
}

struct QkNormArgs {
    act_t* out;             // (n, slices, HS)
    float* rstd;            // (n, NH + KH)
    const act_t* x;         // (n, NH + 2 KH, HS)
    const act_t* q_weight;  // (HS)
    const act_t* k_weight;  // (HS)
    const float* table;     // (P, HS/2, 2); null without rotary
    const u16* positions;   // (n) below P, or null: row i has position i % seq
    u32 vectors;            // n slices
    u32 heads;              // NH
    u32 kv_heads;           // KH
    u32 head_size;          // HS, a multiple of 8
    u32 lanes;              // of a head: 8, 16 or 32
    u32 seq;                // T; 1 with positions and without rotary
    u32 slices;             // NH + 2 KH with values, else NH + KH
    u32 unused;             // 0
};

// Four heads a group in flight, of all heads those that the block's groups have side by side; with rotary of
// one row, a quarter of it apart, so that they share the row's angles.
template <bool ROTARY>
__device__ __forceinline__ void normalize(const QkNormArgs& args) {
    constexpr u32 HEADS = 4;
    const u32 groups = QK_THREADS / args.lanes, column = threadIdx.x % args.lanes * 8;
    const u32 group = threadIdx.x / args.lanes, normed = args.heads + args.kv_heads;
    const u32 of_row = args.slices, not_there = normed + args.kv_heads - of_row;  // heads of x alone
    const u32 apart = ROTARY ? (of_row + HEADS - 1) / HEADS : groups;
    const u32 turned_row = ROTARY ? (blockIdx.x * groups + group) / apart : 0;
    const u32 first = ROTARY ? blockIdx.x * groups + group + turned_row * (of_row - apart)
                             : blockIdx.x * HEADS * groups + group;
    const u32 end = ROTARY ? min(args.vectors, (turned_row + 1) * of_row) : args.vectors;
    const bool active = column < args.head_size;
    Chunk<act_t> held[HEADS], weights[2];
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 vector = first + k * apart, row = ROTARY ? turned_row : vector / of_row;
        held[k].clear();
        if (active && vector < end)
            held[k].load(args.x + (u64(vector) + u64(row) * not_there) * args.head_size + column);
    }
    weights[0].clear(), weights[1].clear();
    if (active) weights[0].load(args.q_weight + column), weights[1].load(args.k_weight + column);
    float angle[8];
    if constexpr (ROTARY) {
        Chunk<float> angles;
        angles.clear();
        if (active && first < end) load_angles(angles, args, turned_row, column);
        angles.widen(angle);
    }
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 vector = first + k * apart, row = ROTARY ? turned_row : vector / of_row;
        const u32 head = vector - row * of_row;
        float x[8], w[8], sum = 0.f;
        held[k].widen(x);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = __fmaf_rn(x[i], x[i], sum);
        sum = group_sum(sum, args.lanes);
        if (vector >= end) continue;
        if (head < normed) {
            const float rstd = __frcp_rn(__fsqrt_rn(__fdiv_rn(sum, float(args.head_size)) + QK_EPSILON));
            const Chunk<act_t> weight = head < args.heads ? weights[0] : weights[1];
            weight.widen(w);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = x[i] * rstd * w[i];
            if constexpr (ROTARY) turn(x, angle);
            held[k].narrow(x);
            if (column == 0) args.rstd[u64(row) * normed + head] = rstd;
        }
        if (active) held[k].store(args.out + u64(vector) * args.head_size + column);
    }
}

// grid ceil(n slices / (4 * 256 / lanes)), block 256.
extern "C" __global__ void __launch_bounds__(256) qk_norm(const __grid_constant__ QkNormArgs args) {
    normalize<false>(args);
}

// grid ceil(n * ceil(slices / 4) / (256 / lanes)), block 256.
extern "C" __global__ void __launch_bounds__(256) qk_norm_rotary(const __grid_constant__ QkNormArgs args) {
    normalize<true>(args);
}

struct QkNormBackwardArgs {
    act_t* dqkv;            // (n, NH + 2 KH, HS): of out, then of x; values untouched
    float* partials;        // (blocks, 2, HS)
    const act_t* x;         // (n, NH + 2 KH, HS)
    const act_t* q_weight;  // (HS)
    const act_t* k_weight;  // (HS)
    const float* rstd;      // (n, NH + KH)
    const float* table;     // (P, HS/2, 2); null without rotary
    const u16* positions;   // (n) below P, or null: row i has position i % seq
    u32 rows;               // n
    u32 block_vectors;      // heads of queries in a block, and of keys: max(ceil(n NH / 1024),
                            // ceil(n / 512) + 3), rounded up to 64
    u32 heads;              // NH
    u32 kv_heads;           // KH, at most NH
    u32 head_size;          // HS, a multiple of 8
    u32 lanes;              // of a head: 8, 16 or 32
    u32 seq;                // T; 1 with positions and without rotary
    u32 unused;             // 0
};

template <bool ROTARY>
__device__ __forceinline__ void differentiate(const QkNormBackwardArgs& args) {
    constexpr u32 HEADS = 2;  // of a group, in flight
    __shared__ float sums[QK_THREADS * 8];
    const u32 groups = QK_THREADS / args.lanes, half = groups / 2, group = threadIdx.x / args.lanes;
    const u32 keys = group / half, place = group - keys * half, column = threadIdx.x % args.lanes * 8;
    const bool active = column < args.head_size;
    const u32 heads = keys ? args.kv_heads : args.heads, normed = args.heads + args.kv_heads;
    const u32 of_row = normed + args.kv_heads, before = keys * args.heads;
    // A block past the last keys has none. `finish` is the same for all threads: they shuffle together.
    const u32 begin = blockIdx.x * args.block_vectors, vectors = args.rows * heads;
    const u32 end = min(begin + args.block_vectors, vectors);
    const u32 finish = min(begin + args.block_vectors, args.rows * args.heads);
    const float inverse = __frcp_rn(float(args.head_size));
    Chunk<act_t> weight;
    weight.clear();
    if (active) weight.load((keys ? args.k_weight : args.q_weight) + column);
    float w[8], dweight[8] = {};
    weight.widen(w);
    // A head past the end reads as zeros, its rstd too, and so adds nothing to any sum.
#pragma unroll 1
    for (u32 at = begin; at < finish; at += HEADS * half) {
        Chunk<act_t> dout[HEADS], x[HEADS];
        float rstd[HEADS];
        u64 offset[HEADS];
#pragma unroll
        for (u32 k = 0; k < HEADS; ++k) {
            const u32 vector = at + k * half + place, row = vector / heads;
            const u32 head = before + vector - row * heads;
            offset[k] = (u64(row) * of_row + head) * args.head_size + column;
            dout[k].clear(), x[k].clear(), rstd[k] = 0.f;
            if (active && vector < end) {
                dout[k].load(args.dqkv + offset[k]);
                x[k].load(args.x + offset[k]);
                rstd[k] = args.rstd[u64(row) * normed + head];
            }
        }
#pragma unroll
        for (u32 k = 0; k < HEADS; ++k) {
            float d[8], h[8], sum = 0.f;
            dout[k].widen(d), x[k].widen(h);
            if constexpr (ROTARY) {
                // Of a table in the caches: not loaded ahead, for a fourth block's registers' sake.
                const u32 vector = at + k * half + place;
                Chunk<float> angles;
                float angle[8];
                angles.clear();
                if (active && vector < end) load_angles(angles, args, vector / heads, column);
                angles.widen(angle);
                invert(angle);
                turn(d, angle);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                h[i] *= rstd[k];
                dweight[i] = __fmaf_rn(d[i], h[i], dweight[i]);
                d[i] *= w[i];
                sum = __fmaf_rn(d[i], h[i], sum);
            }
            const float average = group_sum(sum, args.lanes) * inverse;
#pragma unroll
            for (int i = 0; i < 8; ++i) d[i] = rstd[k] * __fmaf_rn(-h[i], average, d[i]);
            dout[k].narrow(d);
            if (active && at + k * half + place < end) dout[k].store(args.dqkv + offset[k]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[threadIdx.x * 8 + i] = dweight[i];
    __syncthreads();
    const u32 width = args.lanes * 8;  // of a group in `sums`
    for (u32 c = threadIdx.x; c < 2 * args.head_size; c += QK_THREADS) {
        const u32 part = c / args.head_size, first = part * half * width + (c - part * args.head_size);
        float total = sums[first];
        for (u32 g = 1; g < half; ++g) total += sums[first + g * width];
        args.partials[u64(blockIdx.x) * 2 * args.head_size + c] = total;
    }
}

// grid blocks = ceil(n NH / block_vectors), block 256.
extern "C" __global__ void __launch_bounds__(256, QK_BLOCKS)
    qk_norm_backward(const __grid_constant__ QkNormBackwardArgs args) {
    differentiate<false>(args);
}

// The same.
extern "C" __global__ void __launch_bounds__(256, QK_BLOCKS)
    qk_norm_backward_rotary(const __grid_constant__ QkNormBackwardArgs args) {
    differentiate<true>(args);
}
