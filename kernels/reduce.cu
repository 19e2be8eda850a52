// Column sums: bias gradients, and the second half of every sum over rows.
//
//   column_sum        partials[b,j] = sum of dout[i,j] over the 128 rows i of block b
//   reduce_partials   out[j] (=|+=) sum over b of partials[b,j]
//   dout (n, width) act_t; partials (ceil(n/128), width), out (width) float
//
// Order: in a block of rows, warp w of 8 adds rows w, w+8, w+16, ... and the warps are added in order; over
// blocks, 32 runs of ceil(count/32) neighbouring partials are each added in order, then the runs in order.
// No tree depends on the machine; dout is read once, 16 bytes a lane and eight rows a warp in flight.
#include "common.cuh"
#include "columns.cuh"

struct ColumnSumArgs {
    float* partials;    // (ceil(n/128), width)
    const act_t* dout;  // (n, width)
    u64 rows;           // n
    u64 width;          // a multiple of 8
};

// grid (ceil(width/256), ceil(n/128)), block 256.
extern "C" __global__ void __launch_bounds__(256) column_sum(const __grid_constant__ ColumnSumArgs args) {
    __shared__ ColumnTile tile;
    const u64 column = column_of_thread();
    const u32 warp = threadIdx.x / 32;
    const u64 first = u64(blockIdx.y) * COLUMN_ROWS;
    float sum[8] = {};
    if (column < args.width) {
        constexpr u32 BATCH = 8;  // rows in flight
        const act_t* source = args.dout + (first + warp) * args.width + column;
#pragma unroll
        for (u32 batch = 0; batch < COLUMN_ROWS / COLUMN_WARPS / BATCH; ++batch) {
            Chunk<act_t> rows[BATCH];
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                const u32 row = (batch * BATCH + i) * COLUMN_WARPS;
                if (first + warp + row < args.rows) rows[i].load(source + row * args.width);
                else rows[i].clear();
            }
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                float x[8];
                rows[i].widen(x);
#pragma unroll
                for (int k = 0; k < 8; ++k) sum[k] += x[k];
            }
        }
    }
    store_column_sums(tile, sum, args.partials, args.width);
}

struct ReducePartialsArgs {
    float* out0;            // (split)
    float* out1;            // (width - split), or null when split == width
    const float* partials;  // (count, width)
    u64 count;              // partial rows
    u64 width;              // columns of a partial row
    u64 split;              // columns from here on belong to out1
    u32 add;                // 1: out += ; 0: out =
    u32 unused;             // 0
};

// grid ceil(width/32), block 1024: a lane a column, a warp a run of partials.
extern "C" __global__ void __launch_bounds__(1024)
    reduce_partials(const __grid_constant__ ReducePartialsArgs args) {
    __shared__ float runs[32][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u64 column = u64(blockIdx.x) * 32 + lane;
    const u64 length = (args.count + 31) / 32;
    const u64 begin = min(warp * length, args.count), end = min(begin + length, args.count);
    float sum = 0.f;
    if (column < args.width) {
        u64 i = begin;
        for (; i + 8 <= end; i += 8) {
            float x[8];
#pragma unroll
            for (u32 k = 0; k < 8; ++k) x[k] = args.partials[(i + k) * args.width + column];
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sum += x[k];
        }
        for (; i < end; ++i) sum += args.partials[i * args.width + column];
    }
    runs[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < args.width) {
        sum = runs[0][lane];
        for (u32 w = 1; w < 32; ++w) sum += runs[w][lane];
        float* out = column < args.split ? args.out0 + column : args.out1 + (column - args.split);
        *out = args.add ? *out + sum : sum;
    }
}
