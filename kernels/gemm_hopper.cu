// The matrix products of linear layers on Hopper (sm_90a), all around them fused: bf16 operands, fp32 sums.
//
//   gemm_forward         out = bf16(x W^T + bias)                               m rows, n = c_out, k = c_in
//   gemm_forward_gelu    pre = bf16(x W^T + bias), out = bf16(gelu(pre))
//   gemm_forward_relu2   the same with max(pre, 0)^2
//   gemm_forward_swiglu  pre the same, out = bf16(swiglu(pre)), one of each pair of columns
//   gemm_forward_softmax out = bf16(2^(y log2 e - base)), y = x W^T, unrounded, with a base for each row; of
//                        stripes of 192 columns the largest exponent of 2 and the sum of powers, unrounded,
//                        where columns from `used` on count in neither; of each row x W^T at its target
//   gemm_forward_softmax_capped  the same with y = cap tanh(x W^T / cap), and out = bf16(power dy/d(x W^T))
//   gemm_input           dx = bf16(dout W), or of (dout W) times a factor a row  m rows, n = c_in, k = c_out
//   gemm_input_gelu      dpre = bf16(bf16(dout W) gelu'(pre)), and its column sums a tile of rows
//   gemm_input_relu2     dpre = bf16(bf16(dout W) 2 max(pre, 0))
//   gemm_input_gelu_again, gemm_input_relu2_again: besides, the function of pre, which nobody kept
//   gemm_input_swiglu    dpre, twice as wide, of bf16(dout W) and pre
//   gemm_weight          dW (=|+=) dout^T x, and column sums of dout            m = c_out, n = c_in, k rows
//
// Functions see what was rounded: the results are, bit for bit, those of gemm_forward or gemm_input and a
// pass of gelu.cu or activate.cu. Matrices are row-major and dense; row lengths are multiples of 8, anything
// else is free: what a tile has beyond its matrix reads as zero and is not written.
//
// A block is two warpgroups that multiply and one thread that feeds them. Tiles of 128 rows by WIDTH columns
// are dealt out in a fixed order; the warpgroups take turns: one multiplies while the other rounds, applies
// GELU and stores. The feeder keeps a ring of stages full, 64 terms each, by the tensor memory accelerator;
// in a cluster of two, neighbours in m each bring half of the right factor for both.
//
// Launch: block 384, grid CLUSTER * min(workers, tiles * splits), 232,448 bytes of dynamic shared memory.
//
// Order of sums, whatever the number of workers: k ascending by 16 within a part; parts of a split sum
// (gemm_weight) are added to memory in their order, each after a word in `turns` says that the one before is
// there. Column sums: see finish() and multiply_tile().
//
// Tensor maps (bf16, zeros out of bounds; box {columns, rows}). PANEL is 64 columns under the 128-byte
// swizzle, or 32 under the 64-byte swizzle for WIDTH 160.
//   left    128-byte swizzle, {64, 128}; gemm_weight {64, 64}
//   right   gemm_forward: 128-byte swizzle, {64, WIDTH / CLUSTER}; otherwise {PANEL, 64 / CLUSTER}
//   out, pre, again  {PANEL, 16}; out of gemm_forward_swiglu 64-byte swizzle, {PANEL / 2, 16}
#include "common.cuh"
#include "hopper.cuh"
#include "gelu.cuh"
#include "gemm_endings.cuh"
#include "gemm_sums.cuh"
#include "gemm_wgmma.cuh"

namespace gemm {
using namespace hopper;
struct GemmArgs {
    TensorMap left;
    TensorMap right;
    TensorMap out;
    TensorMap pre;
    TensorMap again;  // as `out`: where `_again` leaves the function of pre
    float* weight;     // (m, n): the result of gemm_weight
    // Column sums or null: gemm_input_gelu (ceil(m/128), n), gemm_weight (splits * shares, m). Of stripes:
    float* sums;       // gemm_forward_softmax (ceil(n/192), m, 2)
    u32* turns;        // gemm_weight: one a tile, 0 before and after
    const bf16* bias;  // (n), or null
    // gemm_input: factors (m), or null; gemm_forward_softmax (m, 2): bases, each before another number.
    const float* row_terms;
    const u16* targets;    // gemm_forward_softmax (m): a column of each row
    float* at_targets;     // gemm_forward_softmax (m)
    const u32* overflow;  // gemm_forward_softmax: nothing is done where this word is 0; or null
    int m;
    int n;
    int k;
    int splits;  // parts of the sum; 1 but for gemm_weight
    int shares;  // column tiles that share the work of the column sums, at most the number of column tiles
    int group;   // tiles (of clusters) above each other that are dealt out before the next column
    u32 add;     // gemm_weight: 1: dW += ; 0: dW =
    int used;    // gemm_forward_softmax: columns that count
    u32 keep;    // gemm_forward_softmax: whether out is stored
    float cap;   // gemm_forward_softmax_capped, like the next
    float gate;  // -2 log2(e) / cap
};

enum Ending {
    PLAIN,
    GELU, RELU2, SWIGLU,
    SOFTMAX, SOFTMAX_CAPPED,
    GELU_GRADIENT, RELU2_GRADIENT, SWIGLU_GRADIENT,
    WEIGHT
};

constexpr int THREADS = 384, ROWS = 128, TERMS = 64;
constexpr int SHARED_BYTES = 232448;
constexpr int STRIPE = 192;
// Barriers among warps: the turn of either warpgroup, and one for each warpgroup alone.
constexpr u32 TURN = 1, ALONE = 3;

// LEFT_ALONG_M, RIGHT_ALONG_N: whether a factor's rows in memory run along m or n, not along the sum.
// AGAIN: whether the function of `pre` is stored beside its slope's product.
template <int WIDTH, int CLUSTER, int ENDING, bool LEFT_ALONG_M, bool RIGHT_ALONG_N, bool AGAIN = false>
struct Product {
    static constexpr int PANEL = WIDTH % 64 == 0 ? 64 : 32, PANELS = WIDTH / PANEL,
                         PANEL_BYTES = TERMS * PANEL * 2;
    static constexpr int LEFT_BYTES = ROWS * 128, RIGHT_BYTES = WIDTH * 128,
                         STAGE_BYTES = LEFT_BYTES + RIGHT_BYTES;
    // wgmma's description of the right factor, and how far 16 terms are in units of 16 bytes.
    static constexpr u32 RIGHT_HIGH =
        RIGHT_ALONG_N && PANEL == 32 ? (512 >> 4 | 2u << 30) : (1024 >> 4 | 1u << 30);
    static constexpr int LEFT_STEP = LEFT_ALONG_M ? 128 : 2, RIGHT_STEP = RIGHT_ALONG_N ? PANEL * 2 : 2;
    // Endings with SwiGLU, whose `pre` is twice as wide as what comes of it; with another function, with its
    // slope; and those that read `pre`.
    static constexpr bool PAIRS = ENDING == SWIGLU || ENDING == SWIGLU_GRADIENT,
                          ACTIVATES = ENDING == GELU || ENDING == RELU2,
                          SLOPES = ENDING == GELU_GRADIENT || ENDING == RELU2_GRADIENT,
                          READS_PRE = SLOPES || ENDING == SWIGLU_GRADIENT;
    // Endings with powers of 2 for a softmax; without `pre`, but with factors or bases of rows.
    static constexpr bool POWERS = ENDING == SOFTMAX || ENDING == SOFTMAX_CAPPED,
                          OF_ROWS = POWERS || (ENDING == PLAIN && RIGHT_ALONG_N);
    static_assert(!POWERS || WIDTH == STRIPE, "a tile's columns are what is added before memory");
    static_assert(!PAIRS || PANEL == 64, "half a panel has a swizzle of its own");
    static_assert(!AGAIN || SLOPES, "only a slope has a function beside it");
    // A warp finishes 16 rows of a panel at a time, a unit, in a buffer of its own; a function needs two.
    // With AGAIN there is one more in all, behind the units': each waits until the one before is stored.
    static constexpr int UNITS = 2 * PANELS, UNIT_BYTES = 16 * PANEL * 2,
                         UNIT_BUFFERS = ACTIVATES || PAIRS ? 2 : 1;
    static constexpr int UNITS_UNDER_WAY = WIDTH == 160 ? 5 : UNIT_BUFFERS == 2 ? 2 : WIDTH == 192 ? 3 : 4;
    // Chunks of eight columns that are read, computed and written together. A warp is alone on its scheduler:
    // what memory accesses keep apart would wait for itself at each step, and eight chunks, or four with a
    // soft-cap, need more registers than there are.
    static constexpr int BATCH = ENDING == SOFTMAX_CAPPED ? 2 : 4;
    static constexpr int UNITS_BYTES = UNITS_UNDER_WAY * UNIT_BUFFERS * UNIT_BYTES,
                         WARP_BYTES = ENDING == WEIGHT ? 0 : UNITS_BYTES + (AGAIN ? UNIT_BYTES : 0);
    // Column sums of four warps a warpgroup, or two tiles of biases, or ones.
    static constexpr int EXTRA_BYTES =
        ENDING == GELU_GRADIENT ? 8 * WIDTH * 4 : ENDING == WEIGHT ? 1024 : 8 * WIDTH;
    static constexpr int MOST_STAGES = (SHARED_BYTES - 8 * WARP_BYTES - EXTRA_BYTES - 1024) / STAGE_BYTES;
    static constexpr int STAGES = MOST_STAGES > 6 ? 6 : MOST_STAGES;
    static_assert(STAGES >= 3, "too little shared memory to hide the way to memory");
    static_assert(UNITS % UNITS_UNDER_WAY == 0, "a buffer serves the same units of every tile");
    static constexpr int PRODUCER_REGISTERS =
        WIDTH == 192 || (WIDTH == 160 && SLOPES) ? 24 : 40;
    static constexpr int CONSUMER_REGISTERS = PRODUCER_REGISTERS == 24 ? 240 : 232;

    // Where things lie in shared memory, as addresses.
    struct Shared {
        u32 stages, buffers, extra, full, empty, loaded;
        __device__ __forceinline__ explicit Shared(u32 base)
            : stages(base), buffers(base + STAGES * STAGE_BYTES), extra(buffers + 8 * WARP_BYTES),
              full(extra + EXTRA_BYTES), empty(full + 8 * STAGES), loaded(empty + 8 * STAGES) {}
    };

    // One tile, or one part of its sum.
    struct Work {
        int row, column;   // the first of each
        int first, last;   // blocks of TERMS
        int tile, split, column_tile;
    };

    struct Plan {
        int row_tiles, column_tiles, items;
        __device__ __forceinline__ Plan(int m, int n, int splits)
            : row_tiles((m + ROWS * CLUSTER - 1) / (ROWS * CLUSTER)), column_tiles((n + WIDTH - 1) / WIDTH),
              items(row_tiles * column_tiles * (ENDING == WEIGHT ? splits : 1)) {}

        __device__ __forceinline__ Work work(const GemmArgs& a, int item, u32 rank) const {
            Work w;
            const int tiles = row_tiles * column_tiles, blocks = (a.k + TERMS - 1) / TERMS;
            w.split = 0, w.tile = item, w.first = 0, w.last = blocks;
            if (ENDING == WEIGHT) {
                w.split = item / tiles, w.tile = item - w.split * tiles;
                w.first = blocks * w.split / a.splits, w.last = blocks * (w.split + 1) / a.splits;
            }
            const int in_group = a.group * column_tiles, group = w.tile / in_group,
                      within = w.tile - group * in_group;
            const int height = min(a.group, row_tiles - group * a.group);
            w.column_tile = within / height;
            w.row = ((group * a.group + within - w.column_tile * height) * CLUSTER + static_cast<int>(rank)) *
                    ROWS;
            w.column = w.column_tile * WIDTH;
            w.tile = w.tile * CLUSTER + static_cast<int>(rank);
            return w;
        }
    };

    static __device__ __forceinline__ int worker() { return static_cast<int>(blockIdx.x / CLUSTER); }
    static __device__ __forceinline__ int workers() { return static_cast<int>(gridDim.x / CLUSTER); }
    // ---- the feeder ------------------------------------------------------------------------------------

    static __device__ __forceinline__ void load_right(u32 to, const GemmArgs& args, u32 barrier, int column,
                                                      int row, u32 part, u32 rank) {
        if (CLUSTER > 1)
            load_box_everywhere(to + rank * part, args.right, barrier, column, row, (1 << CLUSTER) - 1);
        else load_box(to, args.right, barrier, column, row);
    }

    static __device__ __forceinline__ void feed(const GemmArgs& args, const Shared& at) {
        const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
        const int items = Plan(args.m, args.n, args.splits).items;
        Ring<STAGES> use;
#pragma unroll 1
        for (int item = worker(); item < items; item += workers()) {
            // Computed anew for each tile, out of the compiler's sight: this thread has few registers.
            int m = args.m, n = args.n;
            asm volatile("" : "+r"(m), "+r"(n));
            const Work w = Plan(m, n, args.splits).work(args, item, rank);
#pragma unroll 1
            for (int block = w.first; block < w.last; ++block) {
                barrier_wait(at.empty + 8 * use.stage, use.phase ^ 1);
                const u32 barrier = at.full + 8 * use.stage, left = at.stages + use.stage * STAGE_BYTES,
                          right = left + LEFT_BYTES;
                const int term = block * TERMS;
                barrier_expect(barrier, STAGE_BYTES);
                if (LEFT_ALONG_M) {
                    load_box(left, args.left, barrier, w.row, term);
                    load_box(left + LEFT_BYTES / 2, args.left, barrier, w.row + 64, term);
                } else {
                    load_box(left, args.left, barrier, term, w.row);
                }
                if (RIGHT_ALONG_N) {
#pragma unroll
                    for (int p = 0; p < PANELS; ++p)
                        load_right(right + p * PANEL_BYTES, args, barrier, w.column + p * PANEL,
                                   term + static_cast<int>(rank) * (TERMS / CLUSTER), PANEL_BYTES / CLUSTER,
                                   rank);
                } else {
                    load_right(right, args, barrier, term,
                               w.column + static_cast<int>(rank) * (WIDTH / CLUSTER), RIGHT_BYTES / CLUSTER,
                               rank);
                }
                use.advance();
            }
        }
    }

    // ---- the sum ---------------------------------------------------------------------------------------

    // A stage may be loaded again, here and, where it holds what this block brought for others, there.
    static __device__ __forceinline__ void release(u32 barrier, u32 lane) {
        if (CLUSTER > 1) {
            if (lane < CLUSTER) barrier_arrive_at(barrier, lane);
        } else {
            if (lane == 0) barrier_arrive(barrier);
        }
    }

    // d = the sum over the work's blocks. Where column sums of the left factor are wanted (gemm_weight), the
    // column tile j of the first `shares` adds the blocks of its part that are j modulo `shares`, as a
    // product with a matrix of ones.
    static __device__ __forceinline__ void multiply_tile(float (&d)[2][WIDTH / 2], float (&s)[2][4],
                                                         const GemmArgs& args, const Work& w,
                                                         const Shared& at, Ring<STAGES>& use, u32 group,
                                                         u32 lane) {
        int next_sum = 0x7fffffff;
        if (ENDING == WEIGHT) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[0][i] = s[1][i] = 0.f;
            if (args.sums && w.column_tile < args.shares)
                next_sum = w.first + (w.column_tile - w.first % args.shares + args.shares) % args.shares;
        }
        named_sync<256>(TURN + group);
        u32 before = 0;
        for (int block = w.first; block < w.last; ++block) {
            barrier_wait(at.full + 8 * use.stage, use.phase);
            const u32 left = operand_address(at.stages + use.stage * STAGE_BYTES);
            const u32 right = left + (LEFT_BYTES >> 4) + (PANEL_BYTES >> 4 << 16);
            wgmma_fence();
            if (ENDING == WEIGHT && block == next_sum) {
                next_sum += args.shares;
#pragma unroll
                for (int k = 0; k < TERMS / 16; ++k)
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        multiply<1, 0>(s[half], describe(left + half * 512 + k * LEFT_STEP),
                                       describe(operand_address(at.extra)), 1);
            }
#pragma unroll
            for (int k = 0; k < TERMS / 16; ++k)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    multiply<LEFT_ALONG_M, RIGHT_ALONG_N>(
                        d[half], describe(left + half * 512 + k * LEFT_STEP),
                        describe<RIGHT_HIGH>(right + k * RIGHT_STEP), block > w.first || k > 0);
            wgmma_commit();
            if (block > w.first) {
                wgmma_wait<1>();
                release(at.empty + 8 * before, lane);
            }
            before = use.stage;
            use.advance();
        }
        named_arrive<256>(TURN + 1 - group);
        wgmma_wait<0>();
        pin(d[0]);
        pin(d[1]);
        if (ENDING == WEIGHT) pin(s[0]), pin(s[1]);
        release(at.empty + 8 * before, lane);
    }

    // ---- bf16 results ------------------------------------------------------------------------------------

    static __device__ __forceinline__ void load_pre(const GemmArgs& args, const Work& w, int unit,
                                                    u32 buffers, u32 loaded, u32 warp) {
        const u32 under_way = unit % UNITS_UNDER_WAY, barrier = loaded + 8 * under_way;
        const u32 buffer = buffers + under_way * UNIT_BUFFERS * UNIT_BYTES;
        const int column = (w.column + unit / 2 * PANEL) * UNIT_BUFFERS,
                  row = w.row + unit % 2 * 64 + static_cast<int>(warp & 3) * 16;
        barrier_expect(barrier, UNIT_BUFFERS * UNIT_BYTES);
        load_box(buffer, args.pre, barrier, column, row);
        if (UNIT_BUFFERS == 2) load_box(buffer + UNIT_BYTES, args.pre, barrier, column + PANEL, row);
    }

    // Rounds, applies what follows and stores the 32 rows of one warp, unit by unit. Column sums are of the
    // stored values: a thread adds its rows r, r + 8, r + 64, r + 72, then the eight threads of a column,
    // then the four warps.
    static __device__ __forceinline__ void finish(float (&d)[2][WIDTH / 2], const GemmArgs& args,
                                                  const Work& w, u32 buffers, u32 loaded, u32 parity,
                                                  u32 extra, u32 group, u32 warp, u32 lane) {
        const u32 row = lane >> 2, quad = (lane & 3) * 4;
        if (ENDING == GELU_GRADIENT && w.row + ROWS > args.m) {
            // Rows past the last are products with zeros, NaN where a weight is infinite: none counts.
            const int row0 = w.row + static_cast<int>((warp & 3) * 16 + row);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i)
                if (row0 + i / (WIDTH / 2) * 64 + (i & 2) * 4 >= args.m)
                    d[i / (WIDTH / 2)][i % (WIDTH / 2)] = 0.0f;
        }
        float sums[PANEL / 8][2];
        // Of rows r and r + 8: their factors or bases, targets, and the powers so far.
        float of_rows[2];
        int targets[2];
        PowerSum powers[2];
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            // What belongs to rows is kept for one half at a time.
            const int panel = OF_ROWS ? unit % PANELS : unit / 2, half = OF_ROWS ? unit / PANELS : unit % 2,
                      under_way = unit % UNITS_UNDER_WAY;
            const u32 buffer = buffers + under_way * UNIT_BUFFERS * UNIT_BYTES;
            if (READS_PRE)
                barrier_wait(loaded + 8 * under_way,
                             (parity * (UNITS / UNITS_UNDER_WAY) + unit / UNITS_UNDER_WAY) & 1);
            const int row0 = w.row + half * 64 + static_cast<int>(warp & 3) * 16;
            if (OF_ROWS && panel == 0) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int at = row0 + static_cast<int>(row) + i * 8;
                    of_rows[i] = POWERS ? 0.0f : 1.0f;
                    targets[i] = -1;
                    if (args.row_terms && at < args.m)
                        of_rows[i] = __ldg(args.row_terms + (POWERS ? 2ll : 1ll) * at);
                    if (POWERS && at < args.m) targets[i] = __ldg(args.targets + at);
                }
            }
            if (POWERS && w.column + (panel + 1) * PANEL > args.used) {
                const int used = args.used - w.column - panel * PANEL - static_cast<int>(lane & 3) * 2;
#pragma unroll
                for (int i = 0; i < PANEL / 2; ++i)
                    if (i / 4 * 8 + i % 2 >= used) d[half][panel * (PANEL / 2) + i] = exact::bits(0xff800000);
            }
            if (POWERS)
                store_at_targets<PANEL>(&d[half][panel * (PANEL / 2)], targets, w.column + panel * PANEL,
                                        args.at_targets + row0, lane);
            // From the unit's buffer to that of the function's values.
            const u32 beside = AGAIN ? buffers + UNITS_BYTES - buffer : UNIT_BYTES;
            const float* v = &d[half][panel * (PANEL / 2)];
            if constexpr (ENDING == SWIGLU_GRADIENT) {
                swiglu_gradient_unit<PANEL, UNIT_BYTES, BATCH>(v, buffer, lane);
            } else {
#pragma unroll
                for (int chunk0 = 0; chunk0 < PANEL / 8; chunk0 += BATCH) {
                    u32 low[BATCH], high[BATCH], low_out[BATCH], high_out[BATCH];  // rows r and r + 8
#pragma unroll
                    for (int i = 0; i < BATCH; ++i) {
                        const u32 chunk = chunk0 + i, bias = extra + panel * PANEL * 2 + chunk * 16;
                        const u32 at = READS_PRE ? buffer + swizzled<PANEL>(row, chunk) : bias;
                        if (!OF_ROWS) low[i] = load_shared(at + quad);
                        if (READS_PRE) high[i] = load_shared(buffer + swizzled<PANEL>(row + 8, chunk) + quad);
                    }
#pragma unroll
                    for (int i = 0; i < BATCH; ++i) {
                        const float *upper = v + 4 * (chunk0 + i), *lower = upper + 2;
                        if (READS_PRE) {
                            constexpr bool GELUS = ENDING == GELU_GRADIENT;
                            if (AGAIN) low_out[i] = activate_pair<GELUS>(low[i]);
                            if (AGAIN) high_out[i] = activate_pair<GELUS>(high[i]);
                            low[i] = slope_pair<GELUS>(pack_bf16(upper[0], upper[1]), low[i]);
                            high[i] = slope_pair<GELUS>(pack_bf16(lower[0], lower[1]), high[i]);
                            const float even = low_half(low[i]) + low_half(high[i]),
                                        odd = high_half(low[i]) + high_half(high[i]);
                            float(&sum)[2] = sums[chunk0 + i];  // GELU's alone are used
                            sum[0] = half == 0 ? even : sum[0] + even;
                            sum[1] = half == 0 ? odd : sum[1] + odd;
                        } else if (POWERS) {
                            constexpr bool CAPPED = ENDING == SOFTMAX_CAPPED;
                            const SoftCap cap(args.cap, args.gate);
                            low[i] = power_pair<CAPPED>(upper, of_rows[0], cap, powers[0]);
                            high[i] = power_pair<CAPPED>(lower, of_rows[1], cap, powers[1]);
                        } else if (OF_ROWS) {
                            low[i] = pack_bf16(upper[0] * of_rows[0], upper[1] * of_rows[0]);
                            high[i] = pack_bf16(lower[0] * of_rows[1], lower[1] * of_rows[1]);
                        } else {
                            const float even = low_half(low[i]), odd = high_half(low[i]);  // biases
                            low[i] = pack_bf16(upper[0] + even, upper[1] + odd);
                            high[i] = pack_bf16(lower[0] + even, lower[1] + odd);
                        }
                        if (ACTIVATES) low_out[i] = activate_pair<ENDING == GELU>(low[i]);
                        if (ACTIVATES) high_out[i] = activate_pair<ENDING == GELU>(high[i]);
                        if (ENDING == SWIGLU) low_out[i] = swiglu_pair(low[i], high[i], lane);
                    }
                    if (!READS_PRE && chunk0 == 0 && lane == 0) stores_read<UNITS_UNDER_WAY - 1>();
                    if (AGAIN && chunk0 == 0 && lane == 0) stores_read<0>();
                    // The results may take the place of what stores, or all lanes, have read.
                    if (READS_PRE || chunk0 == 0) __syncwarp();
#pragma unroll
                    for (int i = 0; i < BATCH; i += 2) {
                        const u32 at = buffer + swizzled<PANEL>(lane & 15, chunk0 + i + (lane >> 4));
                        store_matrices(at, low[i], high[i], low[i + 1], high[i + 1]);
                        if (ACTIVATES || AGAIN)
                            store_matrices(at + beside, low_out[i], high_out[i], low_out[i + 1],
                                           high_out[i + 1]);
                    }
                    if (ENDING == SWIGLU) store_swiglu(low_out, buffer + UNIT_BYTES, chunk0, lane);
                }
            }
            shared_fence();
            __syncwarp();
            if (lane == 0) {
                const int column0 = w.column + panel * PANEL;
                if (ENDING == SWIGLU_GRADIENT) {
                    store_box(args.out, buffer, 2 * column0, row0);
                    store_box(args.out, buffer + UNIT_BYTES, 2 * column0 + PANEL, row0);
                } else {
                    if (UNIT_BUFFERS == 2) store_box(args.pre, buffer, column0, row0);
                    if (!POWERS || args.keep)
                        store_box(args.out, buffer + (UNIT_BUFFERS - 1) * UNIT_BYTES,
                                  ENDING == SWIGLU ? column0 / 2 : column0, row0);
                    if (AGAIN) store_box(args.again, buffer + beside, column0, row0);
                }
                stores_commit();
                if (READS_PRE && unit >= 1 && unit - 1 + UNITS_UNDER_WAY < UNITS) {
                    stores_read<1>();
                    load_pre(args, w, unit - 1 + UNITS_UNDER_WAY, buffers, loaded, warp);
                }
            }
            if (POWERS && panel == PANELS - 1) {
                float2* to = reinterpret_cast<float2*>(args.sums) +
                             static_cast<long long>(w.column / STRIPE) * args.m;
#pragma unroll
                for (int lower = 0; lower < 2; ++lower) {
                    const PowerSum of_quad = powers[lower].quad();
                    const int at = row0 + static_cast<int>(row) + lower * 8;
                    if ((lane & 3) == 0 && at < args.m) to[at] = make_float2(of_quad.highest, of_quad.sum);
                    powers[lower] = PowerSum();
                }
            }
            if (ENDING == GELU_GRADIENT && half == 1)
                store_column_sums<PANEL>(sums, extra + ((warp & 3) * WIDTH + panel * PANEL) * 4, lane);
        }
        if (ENDING == GELU_GRADIENT && args.sums) {
            named_sync<128>(ALONE + group);
            // Nobody writes the warps' sums again before all have met at the next turn.
            for (int column = static_cast<int>((warp & 3) * 32 + lane); column < WIDTH; column += 128)
                if (w.column + column < args.n && w.row < args.m) {
                    float total = __uint_as_float(load_shared(extra + column * 4));
#pragma unroll
                    for (int i = 1; i < 4; ++i)
                        total += __uint_as_float(load_shared(extra + (i * WIDTH + column) * 4));
                    args.sums[static_cast<long long>(w.row / ROWS) * args.n + w.column + column] = total;
                }
        }
    }

    // ---- a block ---------------------------------------------------------------------------------------

    static __device__ __forceinline__ void consume(const GemmArgs& args, const Shared& at, u32 group,
                                                   u32 warp, u32 lane) {
        const Plan plan(args.m, args.n, args.splits);
        const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
        const u32 buffers = at.buffers + warp * WARP_BYTES, loaded = at.loaded + warp * UNITS_UNDER_WAY * 8;
        const u32 extra =
            at.extra + (ENDING == GELU_GRADIENT ? group * 4 * WIDTH * 4 : group * 2 * WIDTH * 2);
        if (group == 1) named_arrive<256>(TURN);  // the first turn is the other's
        Ring<STAGES> use;
        float d[2][WIDTH / 2], s[2][4];
        u32 parity = 0, turn = 0;
        for (int item = worker(); item < plan.items; item += workers(), turn ^= 1) {
            const Work w = plan.work(args, item, rank);
            if (turn != group) {
                use.skip(w.last - w.first);
                continue;
            }
            const u32 biases = extra + parity * WIDTH * 2;
            if (READS_PRE) {
                if (lane == 0) {
                    stores_read<0>();
#pragma unroll
                    for (int unit = 0; unit < UNITS_UNDER_WAY; ++unit)
                        load_pre(args, w, unit, buffers, loaded, warp);
                }
                __syncwarp();
            } else if (ENDING != WEIGHT && !OF_ROWS) {
                // Two tiles' worth, for a warp may be here while another still finishes the tile before.
                const u32 i = (warp & 3) * 32 + lane;
                const int column = w.column + static_cast<int>(i) * 2;
                const bool there = args.bias && i < WIDTH / 2 && column < args.n;
                const u32 pair = there ? __ldg(reinterpret_cast<const u32*>(args.bias + column)) : 0;
                if (i < WIDTH / 2)
                    asm volatile("st.shared.u32 [%0], %1;" ::"r"(biases + i * 4), "r"(pair) : "memory");
            }
            multiply_tile(d, s, args, w, at, use, group, lane);
            if constexpr (ENDING == WEIGHT) {
                store_sums(s, args, w, warp, lane);
                accumulate<WIDTH>(d, args, w, ALONE + group, warp, lane);
            } else {
                finish(d, args, w, buffers, loaded, parity, ENDING == GELU_GRADIENT ? extra : biases, group,
                       warp, lane);
            }
            parity ^= 1;
        }
        if (ENDING != WEIGHT && lane == 0) stores_read<0>();
    }

    static __device__ __forceinline__ void run(const GemmArgs& args) {
        extern __shared__ __align__(1024) unsigned char shared[];
        if (POWERS && args.overflow && *args.overflow == 0) return;  // all threads of all blocks
        const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
        const u32 group =
            __shfl_sync(FULL_WARP, thread >> 7, 0);  // the same in a warp, and the compiler knows it
        const Shared at(static_cast<u32>(__cvta_generic_to_shared(shared)));
        if (thread == 0) {
            for (int i = 0; i < STAGES; ++i)
                barrier_init(at.full + 8 * i, 1), barrier_init(at.empty + 8 * i, 4 * CLUSTER);
            if (READS_PRE)
                for (int i = 0; i < 8 * UNITS_UNDER_WAY; ++i) barrier_init(at.loaded + 8 * i, 1);
            barrier_init_done();
        }
        if (ENDING == WEIGHT) {
            if (thread < 256)
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(at.extra + thread * 4), "r"(0x3f803f80u)
                             : "memory");  // ones
            shared_fence();
        }
        if (CLUSTER > 1) cluster_sync();
        else __syncthreads();
        if (group == 2) {
            give_registers<PRODUCER_REGISTERS>();
            if (warp == 8 && lane == 0) feed(args, at);
        } else {
            take_registers<CONSUMER_REGISTERS>();
            consume(args, at, group, warp, lane);
        }
        if (CLUSTER > 1) {
            // A block's shared memory is written and its barriers are used by the others to the end.
            __syncwarp();
            cluster_sync();
        }
    }
};

}  // namespace gemm

using namespace gemm;

// NAME_WIDTH_CLUSTER: its ending, whether factors run along m and n, AGAIN.
#define KERNEL(name, width, cluster, ...)                                                        \
    extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(THREADS, 1)     \
        name##_##width##_##cluster(const __grid_constant__ GemmArgs args) {                      \
        Product<width, cluster, __VA_ARGS__>::run(args);                                         \
    }
KERNEL(gemm_forward, 192, 1, PLAIN, false, false)
KERNEL(gemm_forward, 192, 2, PLAIN, false, false)
KERNEL(gemm_forward, 160, 2, PLAIN, false, false)
KERNEL(gemm_forward, 128, 2, PLAIN, false, false)
KERNEL(gemm_forward_gelu, 192, 1, GELU, false, false)
KERNEL(gemm_forward_gelu, 192, 2, GELU, false, false)
KERNEL(gemm_forward_gelu, 160, 2, GELU, false, false)
KERNEL(gemm_forward_gelu, 128, 2, GELU, false, false)
KERNEL(gemm_forward_relu2, 192, 1, RELU2, false, false)
KERNEL(gemm_forward_relu2, 192, 2, RELU2, false, false)
KERNEL(gemm_forward_relu2, 160, 2, RELU2, false, false)
KERNEL(gemm_forward_relu2, 128, 2, RELU2, false, false)
KERNEL(gemm_forward_swiglu, 192, 1, SWIGLU, false, false)
KERNEL(gemm_forward_swiglu, 192, 2, SWIGLU, false, false)
KERNEL(gemm_forward_swiglu, 128, 2, SWIGLU, false, false)
KERNEL(gemm_forward_softmax, 192, 1, SOFTMAX, false, false)
KERNEL(gemm_forward_softmax, 192, 2, SOFTMAX, false, false)
KERNEL(gemm_forward_softmax_capped, 192, 2, SOFTMAX_CAPPED, false, false)
KERNEL(gemm_input, 192, 1, PLAIN, false, true)
KERNEL(gemm_input, 192, 2, PLAIN, false, true)
KERNEL(gemm_input, 160, 2, PLAIN, false, true)
KERNEL(gemm_input, 128, 2, PLAIN, false, true)
KERNEL(gemm_input_gelu, 160, 2, GELU_GRADIENT, false, true)
KERNEL(gemm_input_gelu, 128, 1, GELU_GRADIENT, false, true)
KERNEL(gemm_input_gelu, 128, 2, GELU_GRADIENT, false, true)
KERNEL(gemm_input_gelu_again, 160, 2, GELU_GRADIENT, false, true, true)
KERNEL(gemm_input_gelu_again, 128, 1, GELU_GRADIENT, false, true, true)
KERNEL(gemm_input_gelu_again, 128, 2, GELU_GRADIENT, false, true, true)
KERNEL(gemm_input_relu2, 160, 2, RELU2_GRADIENT, false, true)
KERNEL(gemm_input_relu2, 128, 1, RELU2_GRADIENT, false, true)
KERNEL(gemm_input_relu2, 128, 2, RELU2_GRADIENT, false, true)
KERNEL(gemm_input_relu2_again, 160, 2, RELU2_GRADIENT, false, true, true)
KERNEL(gemm_input_relu2_again, 128, 1, RELU2_GRADIENT, false, true, true)
KERNEL(gemm_input_relu2_again, 128, 2, RELU2_GRADIENT, false, true, true)
KERNEL(gemm_input_swiglu, 128, 1, SWIGLU_GRADIENT, false, true)
KERNEL(gemm_input_swiglu, 128, 2, SWIGLU_GRADIENT, false, true)
KERNEL(gemm_weight, 192, 1, WEIGHT, true, true)
KERNEL(gemm_weight, 192, 2, WEIGHT, true, true)
KERNEL(gemm_weight, 160, 2, WEIGHT, true, true)
KERNEL(gemm_weight, 128, 2, WEIGHT, true, true)
