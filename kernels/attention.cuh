// What the attention kernels share: bf16 packing, the tensor-core instructions of sm_80, asynchronous
// copies, and tiles in shared memory. No CUDA header is included: NVRTC compiles these files alone.
//
// A tile is R rows of HEAD_SIZE bf16 in shared memory, each row padded by 16 bytes. For head sizes
// 64, 80, 96 and 128 that stride puts any eight consecutive rows of one 16-byte column into eight
// different bank groups, so ldmatrix and cp.async never conflict and every address is a base
// register plus a constant.
//
// HEAD_SIZE is a macro given on the compiler's command line: one of the four.
#pragma once
#include "exact.cuh"

namespace attention {

using u32 = unsigned int;
using u64 = unsigned long long;
/// The bits of a bfloat16.
using bf16 = unsigned short;

constexpr int HS = HEAD_SIZE;
/// Steps of 16 along the head dimension.
constexpr int HS16 = HS / 16;
/// Bytes from one row of a tile to the next.
constexpr int ROW_BYTES = HS * 2 + 16;
constexpr float LOG2_E = 1.4426950408889634f;
/// 1/sqrt(HS), rounded once.
constexpr float SCALE = HS == 64   ? 0.125f
                        : HS == 80 ? 0.11180339887498948f
                        : HS == 96 ? 0.10206207261596575f
                                   : 0.08838834764831845f;
static_assert(HS == 64 || HS == 80 || HS == 96 || HS == 128, "no scale for this head size");
/// Scores times this are exponents of 2.
constexpr float SCALE_LOG2 = SCALE * LOG2_E;
/// Where the maximum of a row begins. Finite, so that no difference of two is NaN.
constexpr float LOWEST = -1e30f;
/// A masked score: so far below every maximum that its weight is 0, also where all that is seen is lower yet.
constexpr float MASKED = -1e35f;

__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

/// Two floats to two bf16, round to nearest even; `lo` in the low half.
__device__ __forceinline__ u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

__device__ __forceinline__ float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Sum and maximum over the four lanes that hold one row of an accumulator. Order: lane^1, then lane^2.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// 16 bytes of global memory, in one instruction (NVRTC may split the plain assignment of a uint4 in four).
__device__ __forceinline__ void store_16(void* p, const uint4& v) {
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ uint4 load_16(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

__device__ __forceinline__ uint4 load_shared_16(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

/// `sum` plus the products of eight pairs of bf16, in order.
__device__ __forceinline__ float add_products(float sum, const uint4& a, const uint4& b) {
    sum = __fmaf_rn(low_bf16(a.x), low_bf16(b.x), sum), sum = __fmaf_rn(high_bf16(a.x), high_bf16(b.x), sum);
    sum = __fmaf_rn(low_bf16(a.y), low_bf16(b.y), sum), sum = __fmaf_rn(high_bf16(a.y), high_bf16(b.y), sum);
    sum = __fmaf_rn(low_bf16(a.z), low_bf16(b.z), sum), sum = __fmaf_rn(high_bf16(a.z), high_bf16(b.z), sum);
    sum = __fmaf_rn(low_bf16(a.w), low_bf16(b.w), sum), sum = __fmaf_rn(high_bf16(a.w), high_bf16(b.w), sum);
    return sum;
}

/// Sum of the products of one row of `x` and `y` over the head dimension by the four lanes of a quad: lane j
/// takes 16-byte columns j, j+4, ...; the quad's sum is the caller's.
__device__ __forceinline__ float row_product(const bf16* x, const bf16* y, u32 lane) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < (HS / 8 + 3) / 4; ++c) {
        const int column = c * 4 + static_cast<int>(lane & 3);
        if (HS / 8 % 4 == 0 || column < HS / 8)
            sum = add_products(sum, load_16(x + column * 8), load_16(y + column * 8));
    }
    return sum;
}

// ---- tensor cores (sm_80): D[16x8] += A[16x16] B[16x8] ---------------------------------------------

__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void load_matrix_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

// Where this lane points ldmatrix.x4, relative to the first byte of a 16x16 patch of a tile:
// - as A (tile rows = M), or as B transposed (tile rows = K, r[0..1] columns 0-7, r[2..3] columns 8-15);
// - as B (tile rows = N; r[0..1] rows 0-7, r[2..3] rows 8-15).
__device__ __forceinline__ u32 lane_offset_a(u32 lane) { return (lane & 15) * ROW_BYTES + (lane >> 4) * 16; }
__device__ __forceinline__ u32 lane_offset_b(u32 lane) {
    return ((lane & 7) + ((lane >> 4) << 3)) * ROW_BYTES + ((lane >> 3) & 1) * 16;
}

/// D[16*M x 16*N] += A B^T with A in registers and B a tile of 16*N rows: `b` is the tile's address plus
/// lane_offset_b. The head dimension is summed in steps of 16, ascending.
template <int M, int N>
__device__ __forceinline__ void multiply_rows(float (&d)[M][2 * N][4], const u32 (&a)[M][HS16][4], u32 b) {
#pragma unroll
    for (int k = 0; k < HS16; ++k) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            u32 f[4];
            load_matrix(f, b + n * 16 * ROW_BYTES + k * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(d[m][2 * n], a[m][k], f[0], f[1]);
                mma(d[m][2 * n + 1], a[m][k], f[2], f[3]);
            }
        }
    }
}

/// D[16*M x HS] += A B with A in registers (16*M x 16*K) and B a tile of 16*K rows: `b` is the tile's
/// address plus lane_offset_a. The rows of B are summed in steps of 16, ascending.
template <int M, int K>
__device__ __forceinline__ void multiply_columns(float (&d)[M][2 * HS16][4], const u32 (&a)[M][K][4], u32 b) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int n = 0; n < HS16; ++n) {
            u32 f[4];
            load_matrix_transposed(f, b + k * 16 * ROW_BYTES + n * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(d[m][2 * n], a[m][k], f[0], f[1]);
                mma(d[m][2 * n + 1], a[m][k], f[2], f[3]);
            }
        }
    }
}

/// Accumulators (16*M x 16*N) rounded to bf16 in the layout of operand A.
template <int M, int N>
__device__ __forceinline__ void to_operand(u32 (&a)[M][N][4], const float (&c)[M][2 * N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            a[m][n][0] = pack_bf16(c[m][2 * n][0], c[m][2 * n][1]);
            a[m][n][1] = pack_bf16(c[m][2 * n][2], c[m][2 * n][3]);
            a[m][n][2] = pack_bf16(c[m][2 * n + 1][0], c[m][2 * n + 1][1]);
            a[m][n][3] = pack_bf16(c[m][2 * n + 1][2], c[m][2 * n + 1][3]);
        }
    }
}

template <int M, int N>
__device__ __forceinline__ void clear(float (&d)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) d[m][n][e] = 0.0f;
}

// ---- moving tiles ----------------------------------------------------------------------------------

/// 16 bytes from global to shared memory, past the registers; zeros when `valid` is false.
__device__ __forceinline__ void copy_async_16(u32 dst, const void* src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_4(u32 dst, const void* src, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(valid ? 4 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/// Starts the copy of ROWS rows into a tile by THREADS threads. `src` is row 0 of the tile in global memory,
/// rows are `stride` elements apart, and rows from `valid` on become zeros.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(u32 tile, const bf16* src, long long stride, int valid,
                                          int thread) {
    constexpr int CHUNKS = HS / 8;
#pragma unroll
    for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; ++i) {
        const int index = i * THREADS + thread;
        const int row = index / CHUNKS, chunk = index % CHUNKS;
        if (ROWS * CHUNKS % THREADS != 0 && row >= ROWS) break;
        const bool ok = row < valid;
        copy_async_16(tile + row * ROW_BYTES + chunk * 16, src + (ok ? row * stride : 0) + chunk * 8, ok);
    }
}

/// Starts the copy of N floats by the threads numbered 0 to N-1 (any other number copies nothing); zeros from
/// `valid` on.
template <int N>
__device__ __forceinline__ void load_floats(u32 dst, const float* src, int valid, int thread) {
    if (thread >= 0 && thread < N)
        copy_async_4(dst + thread * 4, src + (thread < valid ? thread : 0), thread < valid);
}

/// Operand A of one warp, 16*M rows of a tile: `patch` is the address of its first row plus lane_offset_a.
template <int M>
__device__ __forceinline__ void load_operand(u32 (&a)[M][HS16][4], u32 patch) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int k = 0; k < HS16; ++k) load_matrix(a[m][k], patch + m * 16 * ROW_BYTES + k * 32);
}

/// One warp writes its accumulators (16*M x HS), each times `scale`, as bf16 rows of global memory, by way of
/// its own rows of a tile at `stage`, so that every store is 16 bytes of a run. Rows from `valid` on are
/// skipped.
template <int M>
__device__ __forceinline__ void store_rows(bf16* dst, long long stride, int valid, u32 stage,
                                           const float (&d)[M][2 * HS16][4], const float (&scale)[M][2],
                                           u32 lane) {
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < 2 * HS16; ++n) {
            const u32 at = stage + (m * 16 + lane / 4) * ROW_BYTES + n * 16 + (lane & 3) * 4;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(at),
                         "r"(pack_bf16(d[m][n][0] * scale[m][0], d[m][n][1] * scale[m][0]))
                         : "memory");
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + 8 * ROW_BYTES),
                         "r"(pack_bf16(d[m][n][2] * scale[m][1], d[m][n][3] * scale[m][1]))
                         : "memory");
        }
    }
    __syncwarp();
    constexpr int CHUNKS = HS / 8;
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / 32; ++i) {
        const int index = i * 32 + static_cast<int>(lane);
        const int row = index / CHUNKS, chunk = index % CHUNKS;
        const uint4 v = load_shared_16(stage + row * ROW_BYTES + chunk * 16);
        if (row < valid) store_16(dst + row * stride + chunk * 8, v);
    }
}

}  // namespace attention
