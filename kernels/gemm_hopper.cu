// Matrix products of linear layers on Hopper (sm_90a): bf16 operands, fp32 sums, everything around them fused.
#include "hopper.cuh"
#include "gelu.cuh"
#include "gemm_wgmma.cuh"

#ifndef TILE_N
#define TILE_N 192
#endif

namespace gemm {
using namespace hopper;

struct GemmArgs {
    TensorMap left, right, out, pre;
    float* weight;      // result of gemm_weight, (m, n)
    float* sums;        // column sums, or null: gemm_input_gelu (ceil(m/128), n); gemm_weight (splits * column tiles, m)
    u32* turns;         // one for each tile, 0 before and after
    const bf16* bias;   // (n), or null
    int m, n, k;
    int splits;         // parts in which the sum is made
    int group;          // row tiles in a group
    u32 add;
};

enum Ending { PLAIN, GELU, GELU_GRADIENT, WEIGHT };

constexpr int BM = 128, BN = TILE_N, BK = 64;
constexpr int THREADS = 384;
// Columns of a unit of the epilogue: one warp stores 16 rows of it at a time.
constexpr int UNIT = BN % 64 == 0 ? 64 : 32, UNITS = BN / UNIT * 2, UNIT_BYTES = UNIT * 32;
constexpr u32 SHARED_BYTES = 232448;

template <bool LEFT_ALONG_M, bool RIGHT_ALONG_N, int ENDING, bool TOGETHER, int CLUSTER>
struct Product {
    static constexpr int TILE_ROWS = TOGETHER ? 2 * BM : BM;
    static constexpr int A_BYTES = TILE_ROWS * 128;
    // A right factor along N comes in panels of 64 rows of so many columns, 128 or 64 bytes.
    static constexpr int PANEL = UNIT, PANELS = BN / PANEL, PANEL_BYTES = BK * PANEL * 2;
    static constexpr u32 RIGHT_HIGH = RIGHT_ALONG_N && PANEL == 32 ? 512 >> 4 | 2u << 30 : 1024 >> 4 | 1u << 30;
    static constexpr int RIGHT_STEP = RIGHT_ALONG_N ? PANEL * 2 : 2;  // 16 terms of the sum further, in units of 16 bytes
    static constexpr int B_BYTES = BN * 128;
    static constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
    // Buffers of a warp for results on their way out (and pre-activations on their way in).
    static constexpr int BUFFERS = ENDING == WEIGHT ? 0 : BN == 160 ? (ENDING == GELU ? 10 : 5) : BN == 192 ? (ENDING == GELU ? 4 : 3) : 4;
    static constexpr int TURNS = ENDING == GELU ? BUFFERS / 2 : BUFFERS;  // units under way
    static constexpr int SUMS_BYTES = ENDING == GELU_GRADIENT ? 8 * BN * 4 : ENDING == WEIGHT ? 0 : 4 * BN * 2;  // or biases
    static constexpr int EXTRA = 8 * BUFFERS * UNIT_BYTES + SUMS_BYTES + 2048;
    static constexpr int FIT = (SHARED_BYTES - EXTRA) / STAGE_BYTES;
    static constexpr int STAGES = FIT > 6 ? 6 : FIT;
    static_assert(STAGES >= 3, "too little shared memory");
    static_assert(TURNS == 0 || UNITS % (TURNS ? TURNS : 1) == 0, "a buffer belongs to the same units of every tile");

    struct Work {
        int row, column;  // first of each
        int first, last;  // blocks of the sum
        int tile, split, column_tile;
    };

    static __device__ __forceinline__ int column_tiles(const GemmArgs& a) { return (a.n + BN - 1) / BN; }
    static __device__ __forceinline__ int row_tiles(const GemmArgs& a) { return (a.m + TILE_ROWS * CLUSTER - 1) / (TILE_ROWS * CLUSTER); }

    static __device__ __forceinline__ Work decode(const GemmArgs& a, int item, int rows, int columns, u32 rank) {
        Work w;
        const int tiles = rows * columns, blocks = (a.k + BK - 1) / BK;
        w.split = ENDING == WEIGHT ? item / tiles : 0;
        w.tile = ENDING == WEIGHT ? item % tiles : item;
        const int in_group = a.group * columns, first_row = w.tile / in_group * a.group, within = w.tile % in_group;
        const int height = min(a.group, rows - first_row);
        w.column_tile = within / height;
        w.row = ((first_row + within % height) * CLUSTER + static_cast<int>(rank)) * TILE_ROWS;
        w.column = w.column_tile * BN;
        w.first = ENDING == WEIGHT ? static_cast<int>(static_cast<long long>(blocks) * w.split / a.splits) : 0;
        w.last = ENDING == WEIGHT ? static_cast<int>(static_cast<long long>(blocks) * (w.split + 1) / a.splits) : blocks;
        w.tile = w.tile * CLUSTER + static_cast<int>(rank);
        return w;
    }

    static __device__ __forceinline__ void produce(const GemmArgs& args, u32 stages, u32 full, u32 empty, int id, int workers, u32 rank) {
        const int rows = row_tiles(args), columns = column_tiles(args), items = rows * columns * (ENDING == WEIGHT ? args.splits : 1);
        Ring<STAGES> use;
        for (int item = id; item < items; item += workers) {
            const Work w = decode(args, item, rows, columns, rank);
#pragma unroll 1
            for (int block = w.first; block < w.last; ++block) {
                barrier_wait(empty + 8 * use.stage, use.phase ^ 1);
                const u32 barrier = full + 8 * use.stage, a = stages + use.stage * STAGE_BYTES, b = a + A_BYTES;
                barrier_expect(barrier, STAGE_BYTES);
                if constexpr (LEFT_ALONG_M) {
#pragma unroll
                    for (int p = 0; p < TILE_ROWS / 64; ++p) load_box(a + p * 8192, args.left, barrier, w.row + p * 64, block * BK);
                } else {
#pragma unroll
                    for (int r = 0; r < TILE_ROWS; r += BM) load_box(a + r * 128, args.left, barrier, block * BK, w.row + r);
                }
                if constexpr (RIGHT_ALONG_N) {
#pragma unroll
                    for (int p = 0; p < PANELS; ++p) {
                        if constexpr (CLUSTER > 1)
                            load_box_everywhere(b + p * PANEL_BYTES + rank * (PANEL_BYTES / CLUSTER), args.right, barrier, w.column + p * PANEL, block * BK + static_cast<int>(rank) * (BK / CLUSTER), (1 << CLUSTER) - 1);
                        else
                            load_box(b + p * PANEL_BYTES, args.right, barrier, w.column + p * PANEL, block * BK);
                    }
                } else {
                    if constexpr (CLUSTER > 1)
                        load_box_everywhere(b + rank * (B_BYTES / CLUSTER), args.right, barrier, block * BK, w.column + static_cast<int>(rank) * (BN / CLUSTER), (1 << CLUSTER) - 1);
                    else
                        load_box(b, args.right, barrier, block * BK, w.column);
                }
                use.advance();
            }
        }
    }

    static __device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
        return UNIT == 64 ? row * 128 + ((chunk ^ (row & 7)) << 4) : row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
    }

    static __device__ __forceinline__ void release(u32 barrier, u32 lane) {
        if constexpr (CLUSTER > 1) {
            if (lane < CLUSTER) barrier_arrive_at(barrier, lane);
        } else {
            if (lane == 0) barrier_arrive(barrier);
        }
    }

    static __device__ __forceinline__ void load_pre(const GemmArgs& args, const Work& w, int unit, u32 staging, u32 loaded, u32 warp) {
        const u32 buffer = unit % BUFFERS;
        barrier_expect(loaded + 8 * buffer, UNIT_BYTES);
        load_box(staging + buffer * UNIT_BYTES, args.pre, loaded + 8 * buffer, w.column + unit / 2 * UNIT, w.row + unit % 2 * 64 + static_cast<int>(warp & 3) * 16);
    }

    // The bf16 results of one warp, unit by unit.
    static __device__ __forceinline__ void finish(const GemmArgs& args, const Work& w, float (&d)[2][BN / 2], u32 staging, u32 loaded, u32 parity, float* sums, u32 biases, u32 warp, u32 lane, u32 group) {
        const u32 row = lane >> 2;
        float column_sums[UNIT / 8][2];
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            const int panel = unit / 2, half = unit % 2;
            const u32 buffer = staging + unit % TURNS * (ENDING == GELU ? 2 : 1) * UNIT_BYTES;
            const int column0 = w.column + panel * UNIT;
            if constexpr (ENDING == GELU_GRADIENT) {
                // An even number of uses a tile leaves no parity over, and so does one.
                barrier_wait(loaded + 8 * (unit % BUFFERS), (parity * (UNITS / BUFFERS) + unit / BUFFERS) & 1);
            } else {
                if (lane == 0) stores_read<TURNS - 1>();
                __syncwarp();
            }
#pragma unroll
            for (int q = 0; q < UNIT / 16; ++q) {
                u32 low[2], high[2], low2[2], high2[2];  // rows r and r + 8
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int j = 2 * q + i;
                    const float* v = &d[half][(panel * (UNIT / 8) + j) * 4];
                    if constexpr (ENDING == GELU_GRADIENT) {
                        const u32 first = pack_bf16(v[0], v[1]), second = pack_bf16(v[2], v[3]);
                        const u32 x0 = load_shared(buffer + swizzled(row, j) + (lane & 3) * 4), x1 = load_shared(buffer + swizzled(row + 8, j) + (lane & 3) * 4);
                        low[i] = pack_bf16(__uint_as_float(first << 16) * gelu_slope(__uint_as_float(x0 << 16)), __uint_as_float(first & 0xffff0000u) * gelu_slope(__uint_as_float(x0 & 0xffff0000u)));
                        high[i] = pack_bf16(__uint_as_float(second << 16) * gelu_slope(__uint_as_float(x1 << 16)), __uint_as_float(second & 0xffff0000u) * gelu_slope(__uint_as_float(x1 & 0xffff0000u)));
                        const float even = __uint_as_float(low[i] << 16) + __uint_as_float(high[i] << 16), odd = __uint_as_float(low[i] & 0xffff0000u) + __uint_as_float(high[i] & 0xffff0000u);
                        column_sums[j][0] = half == 0 ? even : column_sums[j][0] + even;
                        column_sums[j][1] = half == 0 ? odd : column_sums[j][1] + odd;
                    } else {
                        const u32 pair = load_shared(biases + (panel * UNIT + j * 8) * 2 + (lane & 3) * 4);
                        const float b0 = __uint_as_float(pair << 16), b1 = __uint_as_float(pair & 0xffff0000u);
                        low[i] = pack_bf16(v[0] + b0, v[1] + b1);
                        high[i] = pack_bf16(v[2] + b0, v[3] + b1);
                        if constexpr (ENDING == GELU) {
                            float x[4] = {__uint_as_float(low[i] << 16), __uint_as_float(low[i] & 0xffff0000u), __uint_as_float(high[i] << 16), __uint_as_float(high[i] & 0xffff0000u)};
#pragma unroll
                            for (int e = 0; e < 4; ++e) x[e] = gelu(x[e]);
                            low2[i] = pack_bf16(x[0], x[1]);
                            high2[i] = pack_bf16(x[2], x[3]);
                        }
                    }
                }
                if constexpr (ENDING == GELU_GRADIENT) __syncwarp();  // the results take the place of what all have read
                const u32 at = buffer + swizzled(lane & 15, 2 * q + (lane >> 4));
                store_matrices(at, low[0], high[0], low[1], high[1]);
                if constexpr (ENDING == GELU) store_matrices(at + UNIT_BYTES, low2[0], high2[0], low2[1], high2[1]);
            }
            shared_fence();
            __syncwarp();
            if (lane == 0) {
                const int row0 = w.row + half * 64 + static_cast<int>(warp & 3) * 16;
                if constexpr (ENDING == GELU) {
                    store_box(args.pre, buffer, column0, row0);
                    store_box(args.out, buffer + UNIT_BYTES, column0, row0);
                } else {
                    store_box(args.out, buffer, column0, row0);
                }
                stores_commit();
                if constexpr (ENDING == GELU_GRADIENT) {
                    if (unit >= 1 && unit - 1 + BUFFERS < UNITS) {
                        stores_read<1>();
                        load_pre(args, w, unit - 1 + BUFFERS, staging, loaded, warp);
                    }
                }
            }
            if constexpr (ENDING == GELU_GRADIENT) {
                if (half == 1) {
                    // Over the eight rows of a quad column: each step halves the columns that a lane keeps.
                    constexpr int J = UNIT / 8;
#pragma unroll
                    for (int keep = J / 2, bit = 16; bit >= 4; bit >>= 1, keep = keep > 1 ? keep / 2 : keep) {
                        const bool upper = lane & bit;
                        if (J == 4 && bit == 4) {
                            column_sums[0][0] += __shfl_xor_sync(FULL_WARP, column_sums[0][0], bit);
                            column_sums[0][1] += __shfl_xor_sync(FULL_WARP, column_sums[0][1], bit);
                        } else {
#pragma unroll
                            for (int j = 0; j < keep; ++j)
#pragma unroll
                                for (int i = 0; i < 2; ++i) {
                                    const float mine = upper ? column_sums[j + keep][i] : column_sums[j][i];
                                    const float theirs = upper ? column_sums[j][i] : column_sums[j + keep][i];
                                    column_sums[j][i] = mine + __shfl_xor_sync(FULL_WARP, theirs, bit);
                                }
                        }
                    }
                    const u32 j = J == 8 ? lane >> 2 : lane >> 3;
                    if (J == 8 || (lane & 4) == 0) {
                        float* to = sums + (warp & 3) * BN + panel * UNIT + j * 8 + (lane & 3) * 2;
                        to[0] = column_sums[0][0], to[1] = column_sums[0][1];
                    }
                }
            }
        }
        if constexpr (ENDING == GELU_GRADIENT) {
            if (args.sums) {
                named_sync<128>(3 + group);
                const u32 thread = (warp & 3) * 32 + lane;
                for (int column = static_cast<int>(thread); column < BN; column += 128)
                    if (w.column + column < args.n && w.row < args.m)
                        args.sums[static_cast<long long>(w.row / BM) * args.n + w.column + column] = ((sums[column] + sums[BN + column]) + sums[2 * BN + column]) + sums[3 * BN + column];
            }
        }
    }

    // Adds a tile of the weight's gradient to memory, after the part of the sum before it.
    static __device__ __forceinline__ void accumulate(const GemmArgs& args, const Work& w, float (&d)[2][BN / 2], u32 warp, u32 lane, u32 group) {
        const bool add = args.add || w.split > 0;
        const bool first = (warp & 3) == 0 && lane == 0;
        if (w.split > 0) {
            if (first) {
                u32 turn;
                do {
                    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(turn) : "l"(args.turns + w.tile) : "memory");
                } while (turn != static_cast<u32>(w.split));
            }
            named_sync<128>(3 + group);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = w.row + half * 64 + static_cast<int>(warp & 3) * 16 + static_cast<int>(lane >> 2);
            float* at = args.weight + static_cast<long long>(row) * args.n + w.column + (lane & 3) * 2;
#pragma unroll
            for (int j0 = 0; j0 < BN / 8; j0 += 4) {
                float2 old[4][2];
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        old[j][h] = make_float2(0.f, 0.f);
                        if (add && row + 8 * h < args.m && w.column + (j0 + j) * 8 < args.n)
                            old[j][h] = __ldcg(reinterpret_cast<const float2*>(at + static_cast<long long>(8 * h) * args.n + (j0 + j) * 8));
                    }
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        if (row + 8 * h < args.m && w.column + (j0 + j) * 8 < args.n) {
                            const float* v = &d[half][(j0 + j) * 4 + 2 * h];
                            __stcg(reinterpret_cast<float2*>(at + static_cast<long long>(8 * h) * args.n + (j0 + j) * 8), make_float2(old[j][h].x + v[0], old[j][h].y + v[1]));
                        }
            }
        }
        if (args.splits > 1) {
            __threadfence();
            named_sync<128>(3 + group);
            if (first) {
                const u32 next = w.split + 1 == args.splits ? 0 : w.split + 1;
                asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(args.turns + w.tile), "r"(next) : "memory");
            }
        }
    }

    static __device__ __forceinline__ void consume(const GemmArgs& args, u32 stages, u32 full, u32 empty, u32 staging, u32 loaded, float* sums, u32 biases, u32 ones, int id, int workers, u32 rank, u32 group, u32 warp, u32 lane) {
        const int rows = row_tiles(args), columns = column_tiles(args), items = rows * columns * (ENDING == WEIGHT ? args.splits : 1);
        if (!TOGETHER && group == 1) named_arrive<256>(1);
        Ring<STAGES> use;
        float d[2][BN / 2];
        u32 parity = 0;
        u32 turn = 0;
        for (int item = id; item < items; item += workers, turn ^= 1) {
            Work w = decode(args, item, rows, columns, rank);
            if (TOGETHER) {
                w.row += static_cast<int>(group) * BM;
                w.tile = w.tile * 2 + static_cast<int>(group);
            } else if (turn != group) {
                use.skip(w.last - w.first);
                continue;
            }
            if constexpr (ENDING == PLAIN || ENDING == GELU) {
                const u32 at = (warp & 3) * 32 + lane;
                const int column = w.column + static_cast<int>(at) * 2;
                if (at < BN / 2) {
                    const u32 pair = args.bias && column < args.n ? __ldg(reinterpret_cast<const u32*>(args.bias + column)) : 0;
                    asm volatile("st.shared.u32 [%0], %1;" ::"r"(biases + parity * BN * 2 + at * 4), "r"(pair) : "memory");
                }
                if (TOGETHER) named_sync<128>(3 + group);
            }
            if constexpr (ENDING == GELU_GRADIENT) {
                if (lane == 0) {
                    stores_read<0>();
#pragma unroll
                    for (int unit = 0; unit < BUFFERS; ++unit) load_pre(args, w, unit, staging, loaded, warp);
                }
                __syncwarp();
            }
            float s[2][4];
            int next_sum = 0;
            if constexpr (ENDING == WEIGHT) {
#pragma unroll
                for (int i = 0; i < 4; ++i) s[0][i] = s[1][i] = 0.f;
                // Each column tile sums its share of the rows.
                next_sum = args.sums ? w.first + (w.column_tile - w.first % columns + columns) % columns : 0x7fffffff;
            }
            if (!TOGETHER) named_sync<256>(1 + group);
            u32 before = 0;
            for (int block = w.first; block < w.last; ++block) {
                barrier_wait(full + 8 * use.stage, use.phase);
                const u32 tile = operand_address(stages + use.stage * STAGE_BYTES), b = tile + (A_BYTES >> 4) + (PANEL_BYTES >> 4 << 16);
                const u32 a = tile + (TOGETHER ? group * (BM * 128 >> 4) : 0);
                wgmma_fence();
                if (ENDING == WEIGHT && block == next_sum) {
                    next_sum += columns;
#pragma unroll
                    for (int k = 0; k < BK / 16; ++k)
#pragma unroll
                        for (int half = 0; half < 2; ++half)
                            multiply<1, 0>(s[half], describe(a + half * 512 + k * 128), describe(operand_address(ones)), 1);
                }
#pragma unroll
                for (int k = 0; k < BK / 16; ++k)
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        multiply<LEFT_ALONG_M, RIGHT_ALONG_N>(d[half], describe(a + half * 512 + k * (LEFT_ALONG_M ? 128 : 2)), describe<RIGHT_HIGH>(b + k * RIGHT_STEP), block > w.first || k > 0);
                wgmma_commit();
                if (block > w.first) {
                    wgmma_wait<1>();
                    release(empty + 8 * before, lane);
                }
                before = use.stage;
                use.advance();
            }
            if (!TOGETHER) named_arrive<256>(2 - group);
            wgmma_wait<0>();
            pin(d[0]);
            pin(d[1]);
            release(empty + 8 * before, lane);
            if constexpr (ENDING == WEIGHT) {
                pin(s[0]);
                pin(s[1]);
                if (args.sums && (lane & 3) == 0) {
                    float* to = args.sums + static_cast<long long>(w.split * columns + w.column_tile) * args.m;
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int row = w.row + i / 2 * 64 + static_cast<int>(warp & 3) * 16 + static_cast<int>(lane >> 2) + i % 2 * 8;
                        if (row < args.m) to[row] = s[i / 2][i % 2 * 2];
                    }
                }
                accumulate(args, w, d, warp, lane, group);
            } else {
                finish(args, w, d, staging, loaded, parity, sums, biases + parity * BN * 2, warp, lane, group);
            }
            parity ^= 1;
        }
        if (ENDING != WEIGHT && lane == 0) stores_read<0>();
    }

    static __device__ __forceinline__ void run(const GemmArgs& args) {
        extern __shared__ __align__(1024) unsigned char shared[];
        const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
        const u32 group = __shfl_sync(FULL_WARP, thread >> 7, 0);
        const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
        const u32 stages = shared_address(shared), staging = stages + STAGES * STAGE_BYTES, ones = staging + 8 * BUFFERS * UNIT_BYTES;
        const u32 sums_at = ones + (ENDING == WEIGHT ? 1024 : 0), full = sums_at + SUMS_BYTES, empty = full + 8 * STAGES, loaded = empty + 8 * STAGES;
        if (thread == 0) {
            for (int i = 0; i < STAGES; ++i) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, (TOGETHER ? 8 : 4) * CLUSTER);
            if (ENDING == GELU_GRADIENT)
                for (int i = 0; i < 8 * BUFFERS; ++i) barrier_init(loaded + 8 * i, 1);
            barrier_init_done();
        }
        if (ENDING == WEIGHT) {
            if (thread < 256) asm volatile("st.shared.u32 [%0], %1;" ::"r"(ones + thread * 4), "r"(0x3f803f80u) : "memory");
            shared_fence();
        }
        if (CLUSTER > 1) cluster_sync(); else __syncthreads();
        const int id = static_cast<int>(blockIdx.x / CLUSTER), workers = static_cast<int>(gridDim.x / CLUSTER);
        if (group == 2) {
            give_registers<24>();
            if (warp == 8 && lane == 0) produce(args, stages, full, empty, id, workers, rank);
        } else {
            take_registers<240>();
            consume(args, stages, full, empty, staging + warp * BUFFERS * UNIT_BYTES, loaded + warp * BUFFERS * 8, reinterpret_cast<float*>(shared + (sums_at - stages)) + group * 4 * BN, sums_at + group * 4 * BN, ones, id, workers, rank, group, warp, lane);
        }
        if (CLUSTER > 1) {
            __syncwarp();
            cluster_sync();
        }
    }
};

}  // namespace gemm

#define KERNEL(name, clusters, ...) \
    extern "C" __global__ void __cluster_dims__(clusters, 1, 1) __launch_bounds__(gemm::THREADS, 1) name(const __grid_constant__ gemm::GemmArgs args) { \
        gemm::Product<__VA_ARGS__, clusters>::run(args); \
    }

KERNEL(gemm_forward_1, 1, false, false, gemm::PLAIN, false)
KERNEL(gemm_forward_2, 2, false, false, gemm::PLAIN, false)
KERNEL(gemm_forward_gelu_1, 1, false, false, gemm::GELU, false)
KERNEL(gemm_forward_gelu_2, 2, false, false, gemm::GELU, false)
KERNEL(gemm_input_1, 1, false, true, gemm::PLAIN, false)
KERNEL(gemm_input_2, 2, false, true, gemm::PLAIN, false)
KERNEL(gemm_input_gelu_1, 1, false, true, gemm::GELU_GRADIENT, false)
KERNEL(gemm_input_gelu_2, 2, false, true, gemm::GELU_GRADIENT, false)
KERNEL(gemm_weight_1, 1, true, true, gemm::WEIGHT, false)
KERNEL(gemm_weight_2, 2, true, true, gemm::WEIGHT, false)
KERNEL(gemm_forward_t1, 1, false, false, gemm::PLAIN, true)
KERNEL(gemm_forward_t2, 2, false, false, gemm::PLAIN, true)
KERNEL(gemm_input_t1, 1, false, true, gemm::PLAIN, true)
KERNEL(gemm_input_t2, 2, false, true, gemm::PLAIN, true)
KERNEL(gemm_weight_t1, 1, true, true, gemm::WEIGHT, true)
KERNEL(gemm_weight_t2, 2, true, true, gemm::WEIGHT, true)
