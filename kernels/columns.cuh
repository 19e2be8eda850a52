// The tile of a column sum: 128 rows by 256 columns a block of 8 warps, a warp a row, a lane eight columns.
// Shared by column_sum and gelu_backward, so that both leave the same bits for the same stored values.
#pragma once
#include "common.cuh"

constexpr u32 COLUMN_ROWS = 128;
constexpr u32 COLUMN_WARPS = 8;

struct ColumnTile {
    float sums[COLUMN_WARPS][256];
};

// First of the thread's eight columns.
__device__ __forceinline__ u64 column_of_thread() { return (u64(blockIdx.x) * 32 + threadIdx.x % 32) * 8; }

// Adds the eight warps in order and stores one partial row. Called by all 256 threads.
__device__ __forceinline__ void store_column_sums(ColumnTile& tile, const float (&sum)[8], float* partials,
                                                  u64 width) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < 8; ++k) tile.sums[warp][lane * 8 + k] = sum[k];
    __syncthreads();
    const u64 column = u64(blockIdx.x) * 256 + threadIdx.x;
    if (column >= width) return;
    float total = tile.sums[0][threadIdx.x];
#pragma unroll
    for (u32 w = 1; w < COLUMN_WARPS; ++w) total += tile.sums[w][threadIdx.x];
    partials[u64(blockIdx.y) * width + column] = total;
}
