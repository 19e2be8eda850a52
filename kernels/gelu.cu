// GELU in its tanh form, and its gradient with the bias gradient of the layer before it.
//
//   out  = x * s,  s = sigmoid(2u) = (1 + tanh u)/2,  u = sqrt(2/pi) * (x + 0.044715 x^3)
//   dpre = dout * (s + 2x s(1-s) du/dx),  du/dx = sqrt(2/pi) * (1 + 3*0.044715 x^2)
//   x, pre, out, dout, dpre (n, width) act_t; partials (ceil(n/128), width) float
//
// Written with the sigmoid, one exponential and one reciprocal an element: cheap enough to hide behind
// memory. The gradient visits the matrix in the tiles of column_sum and leaves the column sums of what it
// stored, bit for bit what column_sum would: the bias gradient then costs no pass of its own.
#include "common.cuh"
#include "columns.cuh"
#include "gelu.cuh"

struct GeluArgs {
    act_t* out;        // (length), may be pre itself
    const act_t* pre;  // (length)
    u64 length;        // any
};

// grid ceil(length / 4096), block 256: two chunks a thread in flight; the last block also takes the odd end.
extern "C" __global__ void __launch_bounds__(256) gelu_forward(const __grid_constant__ GeluArgs args) {
    constexpr u32 UNROLL = 2;
    const u64 first = u64(blockIdx.x) * (256 * 8 * UNROLL) + threadIdx.x * 8;
    Chunk<act_t> held[UNROLL];
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k)
        if (first + k * 2048 + 8 <= args.length) held[k].load(args.pre + first + k * 2048);
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 2048;
        if (at + 8 <= args.length) {
            float x[8];
            held[k].widen(x);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = gelu(x[i]);
            held[k].narrow(x);
            held[k].store(args.out + at);
        } else {
            for (u64 i = at; i < args.length; ++i) {
                const float x = to_float(args.pre[i]);
                from_float(gelu(x), args.out[i]);
            }
        }
    }
}

struct GeluBackwardArgs {
    act_t* dpre;        // (n, width), may be dout itself
    float* partials;    // (ceil(n/128), width), or null when no column sums are wanted
    const act_t* dout;  // (n, width)
    const act_t* pre;   // (n, width)
    u64 rows;           // n
    u64 width;          // a multiple of 8
};

// grid (ceil(width/256), ceil(n/128)), block 256.
extern "C" __global__ void __launch_bounds__(256)
    gelu_backward(const __grid_constant__ GeluBackwardArgs args) {
    __shared__ ColumnTile tile;
    const u64 column = column_of_thread();
    const u32 warp = threadIdx.x / 32;
    const u64 first = u64(blockIdx.y) * COLUMN_ROWS + warp;
    float sum[8] = {};
    if (column < args.width) {
        constexpr u32 BATCH = 4;  // rows in flight, of each of two tensors
#pragma unroll 1
        for (u32 batch = 0; batch < COLUMN_ROWS / COLUMN_WARPS; batch += BATCH) {
            Chunk<act_t> dout[BATCH], pre[BATCH];
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                const u64 row = first + (batch + i) * COLUMN_WARPS;
                if (row < args.rows) {
                    dout[i].load(args.dout + row * args.width + column);
                    pre[i].load(args.pre + row * args.width + column);
                }
            }
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                const u64 row = first + (batch + i) * COLUMN_WARPS;
                if (row < args.rows) {
                    float d[8], x[8];
                    dout[i].widen(d), pre[i].widen(x);
#pragma unroll
                    for (int k = 0; k < 8; ++k) d[k] *= gelu_slope(x[k]);
                    dout[i].narrow(d);
                    dout[i].store(args.dpre + row * args.width + column);
                    dout[i].widen(d);  // the sums are of the stored values
#pragma unroll
                    for (int k = 0; k < 8; ++k) sum[k] += d[k];
                }
            }
        }
    }
    if (args.partials) store_column_sums(tile, sum, args.partials, args.width);
}
