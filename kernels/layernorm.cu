// Layer normalisation and RMSNorm, alone and after a residual addition, and their gradients.
//
//   forward    out = (x - mean) * rstd * weight + bias, rstd = 1/sqrt(var + 1e-5), a row of C channels
//              with a branch: residual = x + branch first; statistics are of the residual as stored
//   backward   g = dout*weight, h = (x - mean)*rstd; where asked for, out again
//              dx (=|+=) rstd * (g - avg(g) - h*avg(g*h)),  dweight (=|+=) sum dout*h,  dbias (=|+=) sum dout
//   RMSNorm    the same with a mean of 0: rstd = 1/sqrt(avg(x*x) + 1e-5), h = x*rstd,
//              dx (=|+=) rstd * (g - h*avg(g*h)); a row has one sum in place of two, forward and backward
//   no bias    the bits of a bias of zeros; no sums of dout
//   x, branch, out, residual, dout, dx (n, C) act_t; weight, bias (C) act_t;
//   mean, rstd (n), dweight, dbias (C) float
//
// Each tensor is read once and written once: a row waits in registers between the passes over it.
// The variance is the two-pass one. Weight gradients are summed over a block's rows in registers, stored as
// one partial row a block and vector, and added by reduce_partials (reduce.cu).
//
// Each kernel is there four times: layernorm_*, layernorm_*_unbiased, rmsnorm_*, rmsnorm_*_unbiased.
#include "common.cuh"

constexpr u32 LN_THREADS = 256;
constexpr u32 LN_CHUNKS = 8;  // chunks of a row that a thread may hold
constexpr u32 LN_AHEAD = 4;   // of the branch, read before the first of them is written back
constexpr u32 LN_BLOCKS = sizeof(act_t) == 2 ? 3 : 2;  // of the forward pass, on a multiprocessor
constexpr float LN_EPSILON = 1e-5f;

struct LayernormArgs {
    act_t* out;           // (n, C)
    act_t* residual;      // (n, C) written when branch is given, else unused
    float* mean;          // (n), unused by RMSNorm
    float* rstd;          // (n)
    const act_t* x;       // (n, C)
    const act_t* branch;  // (n, C) or null
    const act_t* weight;  // (C)
    const act_t* bias;    // (C), unused without bias
    u64 rows;             // n
    u32 channels;         // C, a multiple of 8, at most 16384
    u32 warps_per_row;    // 1 for C <= 2048, 2 <= 4096, 4 <= 8192, 8 <= 16384
};

// Sum over the warps that share a row; the same bits in all their threads. Warps are added in order.
__device__ __forceinline__ float row_sum(float x, u32 warps, float* shared) {
    x = warp_sum(x);
    if (warps == 1) return x;
    const u32 warp = threadIdx.x / 32, first = warp / warps * warps;
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[warp] = x;
    __syncthreads();
    float sum = shared[first];
    for (u32 i = 1; i < warps; ++i) sum += shared[first + i];
    return sum;
}

// grid ceil(n / (8 / warps_per_row)), block 256: 8 warps, each row owned by warps_per_row of them.
template <bool RESIDUAL, bool RMS, bool BIAS>
__device__ __forceinline__ void layernorm_row(const LayernormArgs& args) {
    __shared__ float shared[LN_THREADS / 32];
    const u32 width = args.warps_per_row * 32;  // threads a row
    const u64 row = u64(blockIdx.x) * (LN_THREADS / width) + threadIdx.x / width;
    const bool exists = row < args.rows;
    const u32 chunks = exists ? args.channels / 8 : 0;
    const u32 thread = threadIdx.x % width;
    const u64 start = row * args.channels;

    Chunk<act_t> held[LN_CHUNKS];
    float sum = 0.f;  // of x, or of its squares
#pragma unroll
    for (u32 k = 0; k < LN_CHUNKS; ++k) {
        const u32 chunk = k * width + thread;
        if (chunk < chunks) held[k].load(args.x + start + chunk * 8); else held[k].clear();
    }
    Chunk<act_t> branch[LN_AHEAD];
#pragma unroll
    for (u32 k = 0; k < LN_CHUNKS; ++k) {
        const u32 chunk = k * width + thread;
        if (RESIDUAL && k % LN_AHEAD == 0) {
#pragma unroll
            for (u32 i = 0; i < LN_AHEAD; ++i)
                if (chunk + i * width < chunks)
                    branch[i].load(args.branch + start + (chunk + i * width) * 8);
        }
        if (chunk < chunks) {
            float x[8];
            held[k].widen(x);
            if (RESIDUAL) {
                float b[8];
                branch[k % LN_AHEAD].widen(b);
#pragma unroll
                for (int i = 0; i < 8; ++i) x[i] += b[i];
                held[k].narrow(x);
                held[k].store(args.residual + start + chunk * 8);
                held[k].widen(x);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) sum = RMS ? __fmaf_rn(x[i], x[i], sum) : sum + x[i];
        }
    }
    float mean = 0.f, squares = sum;
    if (!RMS) {
        mean = __fdiv_rn(row_sum(sum, args.warps_per_row, shared), float(args.channels));
        squares = 0.f;
#pragma unroll
        for (u32 k = 0; k < LN_CHUNKS; ++k) {
            if (k * width + thread < chunks) {
                float x[8];
                held[k].widen(x);
#pragma unroll
                for (int i = 0; i < 8; ++i) squares = __fmaf_rn(x[i] - mean, x[i] - mean, squares);
            }
        }
    }
    const float variance = __fdiv_rn(row_sum(squares, args.warps_per_row, shared), float(args.channels));
    const float rstd = __frcp_rn(__fsqrt_rn(variance + LN_EPSILON));
#pragma unroll
    for (u32 k = 0; k < LN_CHUNKS; ++k) {
        const u32 chunk = k * width + thread;
        if (chunk < chunks) {
            Chunk<act_t> other;
            float x[8], w[8], b[8] = {};
            held[k].widen(x);
            other.load_constant(args.weight + chunk * 8);
            other.widen(w);
            if (BIAS) {
                other.load_constant(args.bias + chunk * 8);
                other.widen(b);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float centred = RMS ? x[i] : x[i] - mean;
                x[i] = __fmaf_rn(centred * rstd, w[i], b[i]);
            }
            other.narrow(x);
            other.store(args.out + start + chunk * 8);
        }
    }
    if (exists && thread == 0) {
        if (!RMS) args.mean[row] = mean;
        args.rstd[row] = rstd;
    }
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    layernorm_forward(const __grid_constant__ LayernormArgs args) {
    layernorm_row<false, false, true>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    layernorm_forward_unbiased(const __grid_constant__ LayernormArgs args) {
    layernorm_row<false, false, false>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    rmsnorm_forward(const __grid_constant__ LayernormArgs args) {
    layernorm_row<false, true, true>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    rmsnorm_forward_unbiased(const __grid_constant__ LayernormArgs args) {
    layernorm_row<false, true, false>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    residual_layernorm_forward(const __grid_constant__ LayernormArgs args) {
    layernorm_row<true, false, true>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    residual_layernorm_forward_unbiased(const __grid_constant__ LayernormArgs args) {
    layernorm_row<true, false, false>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    residual_rmsnorm_forward(const __grid_constant__ LayernormArgs args) {
    layernorm_row<true, true, true>(args);
}

extern "C" __global__ void __launch_bounds__(256, LN_BLOCKS)
    residual_rmsnorm_forward_unbiased(const __grid_constant__ LayernormArgs args) {
    layernorm_row<true, true, false>(args);
}

// ---- backward ---------------------------------------------------------------------------------------------

struct LayernormBackwardArgs {
    act_t* dx;            // (n, C); may be dout itself
    act_t* out;           // (n, C): the norm's output again; or null
    const act_t* bias;    // (C), unused without bias or `out`
    float* partials;      // (blocks, 2, C): sums of dout*h, then of dout, over the rows of each block;
                          // without bias (blocks, 1, C): sums of dout*h
    const act_t* dout;    // (n, C)
    const act_t* x;       // (n, C) input of the forward pass
    const act_t* weight;  // (C)
    const float* mean;    // (n), unused by RMSNorm
    const float* rstd;    // (n)
    u64 rows;             // n
    u32 channels;         // C
    u32 rows_per_block;   // max(4, ceil(n / 512) rounded up to a multiple of 4)
    u32 add;              // 1: dx += ; 0: dx =
    u32 unused;           // 0
};

// grid blocks = ceil(n / rows_per_block).
//   *_backward               C <= 4096: block C/8 rounded up to a warp; two rows a step, one chunk a thread,
//                            held in registers between the two passes over a row while the next two are read
//   *_backward_wide          C <= 16384: block 512; one row at a time, up to four chunks a thread, read again
//                            (from cache) for the second pass, since registers are taken by the sums
// A thread owns the same columns in all rows, so that it can sum their weight gradients in registers; the
// two sums of each row are reduced over the block, for all rows of a step at once.
struct NormRow {
    float mean, rstd;

    template <bool RMS>
    __device__ __forceinline__ float normalised(float x) const {
        return (RMS ? x : x - mean) * rstd;
    }
};

// One chunk of the norm's output, as the forward pass computed it. The bias is read here, for registers are
// scarce.
template <bool RMS, bool BIAS>
__device__ __forceinline__ void layernorm_again(const NormRow& row, const Chunk<act_t>& x,
                                                const Chunk<act_t>& weight, const act_t* bias, act_t* out) {
    float v[8], w[8], b[8] = {};
    Chunk<act_t> result;
    if (BIAS) {
        result.load_constant(bias);
        result.widen(b);
    }
    x.widen(v), weight.widen(w);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __fmaf_rn(row.normalised<RMS>(v[i]), w[i], b[i]);
    result.narrow(v);
    result.store(out);
}

// What a thread adds up over its rows, for one chunk of columns.
struct WeightSums {
    float dweight[8], dbias[8];

    template <bool BIAS>
    __device__ __forceinline__ void store(float* partials, u32 channels, u32 chunk) const {
        Chunk<float> sum;
        sum.narrow(dweight);
        sum.store(partials + chunk * 8);
        if (!BIAS) return;
        sum.narrow(dbias);
        sum.store(partials + channels + chunk * 8);
    }
};

// First pass over one chunk of a row.
template <bool RMS, bool BIAS>
__device__ __forceinline__ void layernorm_backward_sums(const NormRow& row, const Chunk<act_t>& dout,
                                                        const Chunk<act_t>& x, const Chunk<act_t>& weight,
                                                        WeightSums& sums, float& sum_g, float& sum_gh) {
    float d[8], v[8], w[8];
    dout.widen(d), x.widen(v), weight.widen(w);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float h = row.normalised<RMS>(v[i]), g = d[i] * w[i];
        if (!RMS) sum_g += g;
        sum_gh = __fmaf_rn(g, h, sum_gh);
        sums.dweight[i] = __fmaf_rn(d[i], h, sums.dweight[i]);
        if (BIAS) sums.dbias[i] += d[i];
    }
}

// Second pass: adds the gradient to `old`.
template <bool RMS>
__device__ __forceinline__ void layernorm_backward_input(const NormRow& row, const Chunk<act_t>& dout,
                                                         const Chunk<act_t>& x, const Chunk<act_t>& weight,
                                                         float avg_g, float avg_gh, Chunk<act_t>& old) {
    float d[8], v[8], w[8], o[8];
    dout.widen(d), x.widen(v), weight.widen(w), old.widen(o);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float centred = __fmaf_rn(-row.normalised<RMS>(v[i]), avg_gh,
                                        RMS ? d[i] * w[i] : __fmaf_rn(d[i], w[i], -avg_g));
        o[i] = __fmaf_rn(row.rstd, centred, o[i]);
    }
    old.narrow(o);
}

// One chunk of each of a few neighbouring rows, as read.
template <u32 ROWS, bool RMS>
struct LayernormBackwardRows {
    Chunk<act_t> dout[ROWS], x[ROWS], old[ROWS];
    NormRow row[ROWS];

    // Rows from `end` on, and chunks past the channels, read as zeros and so add nothing to any sum; mean and
    // rstd too, because (0 - mean) rstd may be infinite.
    __device__ __forceinline__ void load(const LayernormBackwardArgs& args, u64 first, u64 end, bool active) {
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const u64 offset = (first + r) * args.channels + threadIdx.x * 8;
            const bool exists = first + r < end;
            row[r].mean = !RMS && exists && active ? args.mean[first + r] : 0.f;
            row[r].rstd = exists && active ? args.rstd[first + r] : 0.f;
            dout[r].clear(), x[r].clear(), old[r].clear();
            if (exists && active) {
                dout[r].load(args.dout + offset);
                x[r].load(args.x + offset);
                if (args.add) old[r].load(args.dx + offset);
            }
        }
    }
};

template <bool RMS, bool BIAS>
__device__ __forceinline__ void layernorm_backward_rows(const LayernormBackwardArgs& args) {
    constexpr u32 ROWS = sizeof(act_t) == 2 ? 2 : 1;  // of a step; the next step's are read meanwhile
    __shared__ float2 shared[2][16][ROWS];            // two sets, used in turns: one barrier a step
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const bool active = threadIdx.x < args.channels / 8;
    const u64 first = u64(blockIdx.x) * args.rows_per_block;
    const u64 end = min(first + args.rows_per_block, args.rows);
    const float inverse = __frcp_rn(float(args.channels));

    Chunk<act_t> weight;
    weight.clear();
    if (active) weight.load(args.weight + threadIdx.x * 8);
    WeightSums sums = {};
    LayernormBackwardRows<ROWS, RMS> now, next;
    now.load(args, first, end, active);
    u32 turn = 0;
#pragma unroll 1
    for (u64 at = first; at < end; at += ROWS, turn ^= 1) {
        next.load(args, at + ROWS, end, active);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            float2 sum = make_float2(0.f, 0.f);
            layernorm_backward_sums<RMS, BIAS>(now.row[r], now.dout[r], now.x[r], weight, sums, sum.x, sum.y);
            if (!RMS) sum.x = warp_sum(sum.x);
            sum.y = warp_sum(sum.y);
            if (lane == 0) shared[turn][warp][r] = sum;
        }
        __syncthreads();
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            float avg_g = 0.f, avg_gh = 0.f;
            for (u32 w = 0; w < warps; ++w) {
                const float2 sum = shared[turn][w][r];
                if (!RMS) avg_g += sum.x;
                avg_gh += sum.y;
            }
            layernorm_backward_input<RMS>(now.row[r], now.dout[r], now.x[r], weight, avg_g * inverse,
                                          avg_gh * inverse, now.old[r]);
            const u64 offset = (at + r) * args.channels + threadIdx.x * 8;
            if (active && at + r < end) {
                now.old[r].store(args.dx + offset);
                if (args.out)
                    layernorm_again<RMS, BIAS>(now.row[r], now.x[r], weight, args.bias + threadIdx.x * 8,
                                               args.out + offset);
            }
        }
        now = next;
    }
    if (active)
        sums.store<BIAS>(args.partials + u64(blockIdx.x) * (BIAS ? 2 : 1) * args.channels, args.channels,
                         threadIdx.x);
}

template <bool RMS, bool BIAS>
__device__ __forceinline__ void layernorm_backward_wide_rows(const LayernormBackwardArgs& args) {
    constexpr u32 CHUNKS = 4, THREADS = 512;
    __shared__ float shared[2][THREADS / 32][2];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunks = args.channels / 8;
    const u64 first = u64(blockIdx.x) * args.rows_per_block;
    const u32 count = u32(min(u64(args.rows_per_block), args.rows - first));
    const float inverse = __frcp_rn(float(args.channels));
    WeightSums sums[CHUNKS] = {};
    u32 turn = 0;
#pragma unroll 1
    for (u32 at = 0; at < count; ++at, turn ^= 1) {
        const u64 start = (first + at) * args.channels;
        const NormRow row = {RMS ? 0.f : args.mean[first + at], args.rstd[first + at]};
        Chunk<act_t> dout, x, weight, old;
        float sum_g = 0.f, sum_gh = 0.f;
#pragma unroll
        for (u32 c = 0; c < CHUNKS; ++c) {
            const u32 chunk = c * THREADS + threadIdx.x;
            if (chunk < chunks) {
                dout.load(args.dout + start + chunk * 8);
                x.load(args.x + start + chunk * 8);
                weight.load(args.weight + chunk * 8);
                layernorm_backward_sums<RMS, BIAS>(row, dout, x, weight, sums[c], sum_g, sum_gh);
            }
        }
        if (!RMS) sum_g = warp_sum(sum_g);
        sum_gh = warp_sum(sum_gh);
        if (lane == 0) {
            if (!RMS) shared[turn][warp][0] = sum_g;
            shared[turn][warp][1] = sum_gh;
        }
        __syncthreads();
        float avg_g = 0.f, avg_gh = 0.f;
        for (u32 w = 0; w < THREADS / 32; ++w) {
            if (!RMS) avg_g += shared[turn][w][0];
            avg_gh += shared[turn][w][1];
        }
        avg_g *= inverse;
        avg_gh *= inverse;
#pragma unroll 1
        for (u32 chunk = threadIdx.x; chunk < chunks; chunk += THREADS) {
            dout.load(args.dout + start + chunk * 8);
            x.load(args.x + start + chunk * 8);
            weight.load(args.weight + chunk * 8);
            old.clear();
            if (args.add) old.load(args.dx + start + chunk * 8);
            layernorm_backward_input<RMS>(row, dout, x, weight, avg_g, avg_gh, old);
            old.store(args.dx + start + chunk * 8);
            if (args.out)
                layernorm_again<RMS, BIAS>(row, x, weight, args.bias + chunk * 8,
                                           args.out + start + chunk * 8);
        }
    }
#pragma unroll
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 chunk = c * THREADS + threadIdx.x;
        if (chunk < chunks)
            sums[c].store<BIAS>(args.partials + u64(blockIdx.x) * (BIAS ? 2 : 1) * args.channels,
                                args.channels, chunk);
    }
}

extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_rows<false, true>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_unbiased(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_rows<false, false>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_backward(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_rows<true, true>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_backward_unbiased(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_rows<true, false>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_wide(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_wide_rows<false, true>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_wide_unbiased(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_wide_rows<false, false>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_backward_wide(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_wide_rows<true, true>(args);
}

extern "C" __global__ void __launch_bounds__(512)
    rmsnorm_backward_wide_unbiased(const __grid_constant__ LayernormBackwardArgs args) {
    layernorm_backward_wide_rows<true, false>(args);
}
