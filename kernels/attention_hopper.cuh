// What the Hopper attention kernels (sm_90a) share beyond hopper.cuh: tiles of heads and their products.
//
// A tile is R rows of HEAD_SIZE bf16 as HEAD_SIZE/64 panels; a panel is R rows of 128 bytes, its 16-byte
// columns permuted within each group of eight rows (the 128-byte swizzle, which TMA writes and wgmma reads).
// The same tile serves as an operand summed along its columns and, transposed, along its rows.
//
// Tensor maps: element type bf16, 128-byte swizzle, zeros out of bounds, box {64, 1, 64, 1};
//   qkv   dimensions {HS, S, T, B}, S = NH + 2*KH or, without values, NH + KH, strides in bytes {2*HS,
//         2*HS*S, 2*HS*S*T};
//   dout  dimensions {HS, NH, T, B},   strides in bytes {2*HS, 2*C, 2*C*T}.
#pragma once
#include "attention.cuh"
#include "attention_wgmma.cuh"
#include "hopper.cuh"

namespace attention {
using namespace hopper;

static_assert(HS % 64 == 0, "a panel is 64 columns wide");

/// Rows that one TMA instruction brings.
constexpr int BOX = 64;
constexpr int PANELS = HS / 64;
__device__ constexpr u32 tile_bytes(int rows) { return rows * HS * 2; }

// ---- the feeder ---------------------------------------------------------------------------------------

/// What the feeding thread does in the turn of `tile`, when `before` is the place of the tile before: once
/// all warps have released the tile LAG turns back, it loads the one that takes its place. A lag of two keeps
/// the feeder from waiting for warpgroups a little behind its own.
template <int STAGES, int LAG, class Load>
__device__ __forceinline__ void refill(int tile, int tiles, int first, Ring<STAGES> before, u32 empty,
                                       Load load) {
    if (tile - LAG < first || tile - LAG + STAGES >= tiles) return;
    if (LAG == 2) {
        if (before.stage == 0) before.stage = STAGES, before.phase ^= 1;
        --before.stage;
    }
    barrier_wait(empty + 8 * before.stage, before.phase);
    load(tile - LAG + STAGES, before.stage);
}

// ---- tiles -----------------------------------------------------------------------------------------

/// One thread starts the copy of ROWS rows from `row` on of one head; `barrier` counts its bytes.
template <int ROWS>
__device__ __forceinline__ void load_tile(u32 tile, const TensorMap& map, u32 barrier, int head, int row,
                                          int batch) {
    static_assert(ROWS % BOX == 0, "a tile is a whole number of boxes");
#pragma unroll
    for (int p = 0; p < PANELS; ++p)
#pragma unroll
        for (int r = 0; r < ROWS; r += BOX)
            asm volatile(
                "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
                "%4, %5, %6}], [%2];" ::"r"(tile + (p * ROWS + r) * 128),
                "l"(&map), "r"(barrier), "r"(p * 64), "r"(head), "r"(row + r), "r"(batch)
                : "memory");
}

/// One thread asks for ROWS rows of a head to be brought near, into the L2 cache.
template <int ROWS>
__device__ __forceinline__ void prefetch_tile(const TensorMap& map, int head, int row, int batch) {
#pragma unroll
    for (int p = 0; p < PANELS; ++p)
#pragma unroll
        for (int r = 0; r < ROWS; r += BOX)
            asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(&map),
                         "r"(p * 64), "r"(head), "r"(row + r), "r"(batch)
                         : "memory");
}

/// One thread starts the copy of a run of bytes (a multiple of 16, 16-byte aligned).
__device__ __forceinline__ void load_run(u32 dst, const void* src, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
        "l"(src), "r"(bytes), "r"(barrier)
        : "memory");
}

/// The low half of wgmma's description of a tile of ROWS rows: where it starts, and how far apart its panels
/// are, in units of 16 bytes. Adding n moves the start by 16 n bytes.
template <int ROWS>
__device__ __forceinline__ u32 operand(u32 tile) { return tile >> 4 | (ROWS * 8) << 16; }
// ---- products --------------------------------------------------------------------------------------

/// Starts D[64xN] = A B^T (+ D if ADD) over the head dimension, ascending by 16. A: 64 rows of a tile of
/// A_ROWS rows; B: N rows of a tile of B_ROWS rows.
template <int A_ROWS, int B_ROWS, bool ADD = false, int N2>
__device__ __forceinline__ void start_rows(float (&d)[N2], u32 a, u32 b) {
#pragma unroll
    for (int k = 0; k < HS16; ++k)
        wgmma_shared(d, describe(a + (k / 4) * A_ROWS * 8 + (k % 4) * 2),
                     describe(b + (k / 4) * B_ROWS * 8 + (k % 4) * 2), ADD || k > 0);
}

/// Starts D[64xHS] += A B over the first 16*K rows of tile B, ascending by 16. A is in registers.
template <int K>
__device__ __forceinline__ void start_columns(float (&d)[HS / 2], const u32 (&a)[K][4], u32 b) {
#pragma unroll
    for (int k = 0; k < K; ++k) wgmma_registers(d, a[k], describe(b + k * 16 * 8));
}

/// An accumulator (64 x 16*K) rounded to bf16 in the layout of operand A.
template <int K>
__device__ __forceinline__ void to_operand(u32 (&a)[K][4], const float (&c)[K * 8]) {
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[k][i] = pack_bf16(c[k * 8 + 2 * i], c[k * 8 + 2 * i + 1]);
}

template <int N>
__device__ __forceinline__ void clear(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = 0.0f;
}

/// One warp writes its 16 rows of an accumulator, times `scale` (rows lane/4 and lane/4 + 8), as bf16 to
/// global memory, by way of its own rows of a tile of TILE_ROWS rows. Rows from `valid` on are skipped.
template <int TILE_ROWS>
__device__ __forceinline__ void store_rows(bf16* dst, long long stride, int valid, u32 stage,
                                           const float (&d)[HS / 2], float scale0, float scale1, u32 lane) {
    __syncwarp();
    // stmatrix: lanes 0-7 point at rows 0-7 of the first 8 columns, 8-15 at rows 8-15, 16-31 at the next 8
    // columns.
    const u32 row_at = stage + (lane & 15) * 128, swizzle = lane & 7, right = lane >> 4;
#pragma unroll
    for (int n = 0; n < HS / 16; ++n) {
        const u32 at = row_at + n / 4 * TILE_ROWS * 128 + ((((n % 4) * 2 + right) ^ swizzle) << 4);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                     "r"(pack_bf16(d[8 * n] * scale0, d[8 * n + 1] * scale0)),
                     "r"(pack_bf16(d[8 * n + 2] * scale1, d[8 * n + 3] * scale1)),
                     "r"(pack_bf16(d[8 * n + 4] * scale0, d[8 * n + 5] * scale0)),
                     "r"(pack_bf16(d[8 * n + 6] * scale1, d[8 * n + 7] * scale1))
                     : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < HS / 16; ++i) {
        const int index = i * 32 + static_cast<int>(lane), row = index / (HS / 8), chunk = index % (HS / 8);
        const u32 at = stage + (chunk / 8) * TILE_ROWS * 128 + row * 128 + (((chunk % 8) ^ (row & 7)) << 4);
        const uint4 v = load_shared_16(at);
        if (row < valid) store_16(dst + row * stride + chunk * 8, v);
    }
}

}  // namespace attention
