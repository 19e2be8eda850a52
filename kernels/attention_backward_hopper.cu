// Causal attention, backward, on Hopper (sm_90a): two kernels, launched in this order. Head sizes 64 and 128.
//
//   P = exp(S - lse),  D[q] = sum_d dout[q][d] out[q][d],  dP = dout V^T,  dS = P (dP - D)
//   dQ = dS K / sqrt(HS),  dK = dS^T Q / sqrt(HS),  dV = P^T dout
//
// Shapes: qkv (by its tensor map), dqkv (B,T,NH+2*KH,HS) bf16: query heads, then key heads, then value heads,
// each key and value head for the queries of NH/KH heads in turn; qkv without values (B,T,NH+KH,HS); out,
// dout (B,T,NH,HS) bf16, dout also by its tensor map; lse (B,NH,T) f32; rows (B,NH,2,ceil(T/64)*64) f32,
// scratch: the first kernel sets -lse*sqrt(HS) and -D of each row, zeros past T, and the second reads them.
// Any T >= 1.
//
// Launch of attention_backward_query: grid (ceil(T / R), B*NH, 1), block 128*G, R = 64*G;
//   G = 2 and N = 4 for head size 64, G = 3 and N = 3 for 128;
//   dynamic shared memory 2*HS*(2*R + 2*N*64) + 8*(1 + 2*N) bytes.
// Launch of attention_backward_key (KH = NH) or attention_backward_key_grouped: grid (ceil(T / 64), B*KH, 1),
// block 128;
//   N = 3 for head size 64, 2 for 128;
//   dynamic shared memory 2*HS*(2*64 + 2*N*64) + 8*N*64 + 8*(1 + 2*N) bytes.
//
// Method: no sum crosses a warpgroup, so there is nothing to order. dQ is summed by the warpgroup that
// owns 64 query rows, dK and dV by the one that owns 64 key rows; the price is S and dP computed twice (seven
// products instead of five). The second kernel computes S^T and dP^T, so that P^T and dS^T already have the
// layout of a left operand in registers, and its accumulators start from the row statistics instead of zero:
// they come out as S - lse and dP - D. Products are started before their turn: the scores of the next tile
// are under way while the gradients of this one are, and several warpgroups on a multiprocessor fill each
// other's waits.
//
// Order of sums: D by quads of threads over 16-byte columns; dQ over keys ascending; dK and dV over the query
// heads that share them, and the queries of each, ascending; in steps of 16.
#include "attention_hopper.cuh"

namespace attention {

struct BackwardArgs {
    TensorMap qkv_map;
    TensorMap values_map;  // of a whole qkv, of which values alone are read: that one, or another
    TensorMap dout_map;
    bf16* dqkv;
    float* rows;
    const bf16* dout;
    const bf16* out;
    const float* lse;
    int tokens;    // T
    int heads;     // NH
    int kv_heads;  // KH, divides NH
    int unused;    // 0
};

// The kernel of dQ: warpgroups of 64 query rows, and stages of K and V. At most 128 registers a thread, so
// that two blocks share a multiprocessor at head size 64; asking for that makes the compiler spill where it
// need not.
constexpr int GROUPS = HS == 64 ? 2 : 3, QUERY_STAGES = HS == 64 ? 4 : 3;
// The kernel of dK and dV: stages of Q and dout, and blocks of one warpgroup that share a multiprocessor.
constexpr int KEY_STAGES = HS == 64 ? 3 : 2, KEY_BLOCKS = HS == 64 ? 3 : 2;
/// The block so many further on is the one whose rows a block of the second kernel brings into L2: about what
/// an H100 has under way.
constexpr int AHEAD = 132 * KEY_BLOCKS;

}  // namespace attention

extern "C" __global__ void __launch_bounds__(128 * attention::GROUPS, 1)
attention_backward_query(const __grid_constant__ attention::BackwardArgs args) {
    using namespace attention;
    constexpr int ROWS = 64 * GROUPS, KEYS = 64, STAGES = QUERY_STAGES, LAG = 2;
    // Tiles that one warpgroup meets and another does not are never released by the latter.
    static_assert((GROUPS - 1) * 64 / KEYS < STAGES, "a refill would wait for ever");
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const u32 group =
        __shfl_sync(0xffffffffu, thread >> 7, 0);  // the same in a warp, and the compiler knows it
    const int tokens = args.tokens, heads = args.heads, kv_heads = args.kv_heads;
    const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int batch = static_cast<int>(blockIdx.y) / heads, head = static_cast<int>(blockIdx.y) % heads;
    const int kv = head / (heads / kv_heads);
    const long long channels = static_cast<long long>(heads) * HS;

    constexpr u32 TILE = tile_bytes(KEYS);
    const u32 q_tile = shared_address(shared), dout_tile = q_tile + tile_bytes(ROWS);
    const u32 k_tiles = dout_tile + tile_bytes(ROWS), v_tiles = k_tiles + STAGES * TILE;
    const u32 q_full = v_tiles + STAGES * TILE, full = q_full + 8, empty = full + 8 * STAGES;

    const int tiles = (min(row0 + ROWS, tokens) - 1) / KEYS + 1;
    auto load = [&](int tile, u32 stage) {
        barrier_expect(full + 8 * stage, 2 * TILE);
        attention::load_tile<KEYS>(k_tiles + stage * TILE, args.qkv_map, full + 8 * stage, heads + kv,
                                   tile * KEYS, batch);
        attention::load_tile<KEYS>(v_tiles + stage * TILE, args.values_map, full + 8 * stage,
                                   heads + kv_heads + kv, tile * KEYS, batch);
    };
    // The last warpgroup meets every tile; its first thread feeds all.
    const bool feeder = thread == 128 * (GROUPS - 1);
    if (feeder) {
        barrier_init(q_full, 1);
        for (int s = 0; s < STAGES; ++s)
            barrier_init(full + 8 * s, 1), barrier_init(empty + 8 * s, 4 * GROUPS);
        barrier_init_done();
        barrier_expect(q_full, 2 * tile_bytes(ROWS));
        attention::load_tile<ROWS>(q_tile, args.qkv_map, q_full, head, row0, batch);
        load(0, 0);
        attention::load_tile<ROWS>(dout_tile, args.dout_map, q_full, head, row0, batch);
    }
    __syncthreads();
    if (feeder)
        for (int t = 1; t < STAGES && t < tiles; ++t) load(t, t);
    __syncwarp();

    const int group_row0 = row0 + static_cast<int>(group) * 64;
    const int group_tiles = min(tiles, (group_row0 + 63) / KEYS + 1);
    const int warp_row0 = group_row0 + static_cast<int>(warp & 3) * 16,
              row = warp_row0 + static_cast<int>(lane >> 2);  // and row + 8
    const u32 q_rows = q_tile + group * 64 * 128, dout_rows = dout_tile + group * 64 * 128;

    // For D: this thread's quarter of two rows of out, on their way from here on.
    float lse[2], delta[2];
    uint4 out[2][HS / 32];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int r = row + 8 * h;
        lse[h] = r < tokens ? args.lse[static_cast<long long>(blockIdx.y) * tokens + r] : 0.0f;
#pragma unroll
        for (int c = 0; c < HS / 32; ++c) {
            out[h][c] = make_uint4(0, 0, 0, 0);
            if (r < tokens)
                out[h][c] = load_16(args.out + (static_cast<long long>(batch) * tokens + r) * channels +
                                    head * HS + (c * 4 + (lane & 3)) * 8);
        }
    }

    const u32 q_operand = operand<ROWS>(q_rows), dout_operand = operand<ROWS>(dout_rows);
    const u32 k_operand = operand<KEYS>(k_tiles), v_operand = operand<KEYS>(v_tiles);
    float s[KEYS / 2], dp[KEYS / 2], dq[HS / 2];
    u32 ds[KEYS / 16][4];
    clear(dq);
    Ring<STAGES> use;
    // From the scores and dP of a tile, both under way, to dS.
    auto differentiate = [&](int tile) {
        wgmma_wait<1>();  // the scores
        pin(s);
        const int key0 = tile * KEYS;
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i)
            s[i] = exact::exp2(__fmaf_rn(s[i], SCALE_LOG2, -lse[(i >> 1) & 1]));
        if (key0 + KEYS - 1 > group_row0) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; ++i) {
                const int key = key0 + i / 4 * 8 + static_cast<int>(lane & 3) * 2 + (i & 1);
                if (key > row + (i & 2) * 4) s[i] = 0.0f;
            }
        }
        pin(s);  // done before the wait, not after
        wgmma_wait<0>();
        pin(dp);
#pragma unroll
        for (int i = 0; i < KEYS / 2; ++i) s[i] *= dp[i] - delta[(i >> 1) & 1];
        to_operand(ds, s);
    };

    barrier_wait(q_full, 0);
    barrier_wait(full, 0);
    pin(dq);
    wgmma_fence();
    start_rows<ROWS, KEYS>(s, q_operand, k_operand);
    wgmma_commit();
    start_rows<ROWS, KEYS>(dp, dout_operand, v_operand);
    wgmma_commit();
    const int padded = (tokens + 63) / 64 * 64;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const u32 at =
            dout_rows + ((warp & 3) * 16 + (lane >> 2) + 8 * h) * 128;  // (lane >> 2) is the row modulo 8
        float sum = 0.0f;
#pragma unroll
        for (int c = 0; c < HS / 32; ++c)
            sum = add_products(
                sum,
                load_shared_16(at + c / 2 * ROWS * 128 + (((c % 2 * 4 + (lane & 3)) ^ (lane >> 2)) << 4)),
                out[h][c]);
        delta[h] = quad_sum(sum);
        if ((lane & 3) == 0 && row + 8 * h < padded) {
            float* stats = args.rows + static_cast<long long>(blockIdx.y) * 2 * padded + row + 8 * h;
            stats[0] = -lse[h] / SCALE;
            stats[padded] = -delta[h];
        }
        lse[h] *= LOG2_E;
    }
    differentiate(0);
    for (int tile = 1; tile < group_tiles; ++tile) {
        const Ring<STAGES> before = use;
        use.advance();
        barrier_wait(full + 8 * use.stage, use.phase);
        wgmma_fence();
        start_columns(dq, ds, k_operand + before.stage * (TILE / 16));
        wgmma_commit();
        start_rows<ROWS, KEYS>(s, q_operand, k_operand + use.stage * (TILE / 16));
        wgmma_commit();
        wgmma_wait<1>();  // the registers of dS are free for dP, and the matrix unit is busy with the scores
        wgmma_fence();
        start_rows<ROWS, KEYS>(dp, dout_operand, v_operand + use.stage * (TILE / 16));
        wgmma_commit();
        if (lane == 0) barrier_arrive(empty + 8 * before.stage);
        if (feeder) refill<STAGES, LAG>(tile, tiles, 0, before, empty, load);
        __syncwarp();
        differentiate(tile);
    }
    wgmma_fence();
    start_columns(dq, ds, k_operand + use.stage * (TILE / 16));
    wgmma_commit();
    wgmma_wait<0>();
    pin(dq);

    asm volatile("bar.sync %0, 128;" ::"r"(group + 1)
                 : "memory");  // all four warps are done with their rows of Q
    const long long stride = channels + 2 * kv_heads * HS;
    store_rows<ROWS>(args.dqkv + (static_cast<long long>(batch) * tokens + warp_row0) * stride + head * HS,
                     stride, tokens - warp_row0, q_rows + (warp & 3) * 16 * 128, dq, SCALE, SCALE, lane);
}

// Query heads that share keys take turns, GROUPED; else there is one, whose tiles need no counters of their
// own. `k_tile` is where the block's shared memory begins.
template <bool GROUPED>
__device__ __forceinline__ void attention_backward_keys(const attention::BackwardArgs& args,
                                                        attention::u32 k_tile) {
    using namespace attention;
    constexpr int KEYS = 64, ROWS = 64, STAGES = KEY_STAGES, LAG = 1;
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int tokens = args.tokens, heads = args.heads, kv_heads = GROUPED ? args.kv_heads : heads;
    const int key0 = static_cast<int>(blockIdx.x) * KEYS;  // block 0 meets every query: the longest first
    const int batch = static_cast<int>(blockIdx.y) / kv_heads, kv = static_cast<int>(blockIdx.y) % kv_heads;
    const int group = GROUPED ? heads / kv_heads : 1;  // query heads with these keys
    const int padded = (tokens + 63) / 64 * 64;

    constexpr u32 TILE = tile_bytes(ROWS);
    const u32 v_tile = k_tile + tile_bytes(KEYS);
    const u32 q_tiles = v_tile + tile_bytes(KEYS), dout_tiles = q_tiles + STAGES * TILE,
              stats = dout_tiles + STAGES * TILE;
    const u32 kv_full = stats + STAGES * ROWS * 8, full = kv_full + 8, empty = full + 8 * STAGES;

    // A turn is a tile of queries of one head.
    const int first = key0 / ROWS, tiles = (tokens + ROWS - 1) / ROWS;
    const int begin = GROUPED ? 0 : first, end = GROUPED ? group * (tiles - first) : tiles;
    int next_tile = first, next_head = kv * group;
    // Tiles are loaded in the order of the turns.
    auto load = [&](int turn, u32 stage) {
        const u32 barrier = full + 8 * stage;
        const int tile = GROUPED ? next_tile : turn, head = GROUPED ? next_head : kv;
        barrier_expect(barrier, 2 * TILE + ROWS * 8);
        attention::load_tile<ROWS>(q_tiles + stage * TILE, args.qkv_map, barrier, head, tile * ROWS, batch);
        attention::load_tile<ROWS>(dout_tiles + stage * TILE, args.dout_map, barrier, head, tile * ROWS,
                                   batch);
        const long long of_head = GROUPED ? static_cast<long long>(batch) * heads + head : blockIdx.y;
        const float* rows = args.rows + of_head * 2 * padded + tile * ROWS;
        load_run(stats + stage * ROWS * 8, rows, ROWS * 4, barrier);
        load_run(stats + stage * ROWS * 8 + ROWS * 4, rows + padded, ROWS * 4, barrier);
        if (GROUPED && ++next_tile == tiles) next_tile = first, ++next_head;
    };
    const bool feeder = thread == 0;
    if (feeder) {
        barrier_init(kv_full, 1);
        for (int s = 0; s < STAGES; ++s) barrier_init(full + 8 * s, 1), barrier_init(empty + 8 * s, 4);
        barrier_init_done();
        barrier_expect(kv_full, 2 * tile_bytes(KEYS));
        attention::load_tile<KEYS>(k_tile, args.qkv_map, kv_full, heads + kv, key0, batch);
        load(begin, 0);
        attention::load_tile<KEYS>(v_tile, args.values_map, kv_full, heads + kv_heads + kv, key0,
                                   batch);
    }
    __syncthreads();
    if (feeder)
        for (int t = 1; t < STAGES && begin + t < end; ++t) load(begin + t, t);
    if (thread == 32) {
        const int block = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x) + AHEAD;
        const int y = block / static_cast<int>(gridDim.x), r = block % static_cast<int>(gridDim.x) * KEYS;
        if (y < static_cast<int>(gridDim.y)) {
            const int later = y / kv_heads, later_kv = y % kv_heads;
            prefetch_tile<KEYS>(args.qkv_map, later_kv * group, r, later);
            prefetch_tile<KEYS>(args.qkv_map, heads + later_kv, r, later);
            prefetch_tile<KEYS>(args.values_map, heads + kv_heads + later_kv, r, later);
            prefetch_tile<KEYS>(args.dout_map, later_kv * group, r, later);
        }
    }
    __syncwarp();

    const int warp_key0 = key0 + static_cast<int>(warp) * 16,
              key = warp_key0 + static_cast<int>(lane >> 2);  // and key + 8
    const u32 k_operand = operand<KEYS>(k_tile), v_operand = operand<KEYS>(v_tile);
    const u32 q_operand = operand<ROWS>(q_tiles), dout_operand = operand<ROWS>(dout_tiles);
    float s[ROWS / 2], dp[ROWS / 2], dk[HS / 2], dv[HS / 2];
    u32 p[ROWS / 16][4], ds[ROWS / 16][4];
    clear(dk);
    clear(dv);
    Ring<STAGES> use;

    // Rows of these accumulators are keys, columns are queries. They start from a statistic of each query.
    auto begin_with = [&](float(&d)[ROWS / 2], u32 statistic) {
        const u32 at = stats + use.stage * ROWS * 8 + statistic * ROWS * 4 + (lane & 3) * 8;
#pragma unroll
        for (int n = 0; n < ROWS / 8; ++n) {
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                         : "=f"(d[4 * n]), "=f"(d[4 * n + 1])
                         : "r"(at + n * 32)
                         : "memory");
            d[4 * n + 2] = d[4 * n];
            d[4 * n + 3] = d[4 * n + 1];
        }
        pin(d);
    };
    // From S - lse and dP - D of a tile, both under way, to P and dS.
    auto differentiate = [&](int tile) {
        // Rows of Q and dout past the last token are zeros, and so are their statistics: P is then 1 at most,
        // dS is 0, and all products with them vanish.
        wgmma_wait<1>();  // the scores
        pin(s);
        const int row0 = tile * ROWS;
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) s[i] = exact::exp2(s[i] * SCALE_LOG2);
        if (row0 < key0 + 63) {
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) {
                const int row = row0 + i / 4 * 8 + static_cast<int>(lane & 3) * 2 + (i & 1);
                if (key + (i & 2) * 4 > row) s[i] = 0.0f;
            }
        }
        pin(s);  // done before the wait, not after
        wgmma_wait<0>();
        pin(dp);
        to_operand(p, s);
#pragma unroll
        for (int i = 0; i < ROWS / 2; ++i) dp[i] *= s[i];
        to_operand(ds, dp);
    };

    barrier_wait(kv_full, 0);
    barrier_wait(full + 8 * use.stage, use.phase);
    pin(dk);
    pin(dv);
    begin_with(s, 0);
    begin_with(dp, 1);
    wgmma_fence();
    start_rows<KEYS, ROWS, true>(s, k_operand, q_operand + use.stage * (TILE / 16));
    wgmma_commit();
    start_rows<KEYS, ROWS, true>(dp, v_operand, dout_operand + use.stage * (TILE / 16));
    wgmma_commit();
    differentiate(first);
    int grouped_tile = first;
    for (int turn = begin + 1; turn < end; ++turn) {
        if (GROUPED && ++grouped_tile == tiles) grouped_tile = first;
        const Ring<STAGES> before = use;
        use.advance();
        barrier_wait(full + 8 * use.stage, use.phase);
        wgmma_fence();
        start_columns(dv, p, dout_operand + before.stage * (TILE / 16));
        start_columns(dk, ds, q_operand + before.stage * (TILE / 16));
        wgmma_commit();
        begin_with(s, 0);
        wgmma_fence();
        start_rows<KEYS, ROWS, true>(s, k_operand, q_operand + use.stage * (TILE / 16));
        wgmma_commit();
        wgmma_wait<
            1>();  // the registers of P and dS are free for dP, and the matrix unit is busy with the scores
        begin_with(dp, 1);
        wgmma_fence();
        start_rows<KEYS, ROWS, true>(dp, v_operand, dout_operand + use.stage * (TILE / 16));
        wgmma_commit();
        if (lane == 0) barrier_arrive(empty + 8 * before.stage);
        if (feeder) refill<STAGES, LAG>(turn, end, begin, before, empty, load);
        __syncwarp();
        differentiate(GROUPED ? grouped_tile : turn);
    }
    wgmma_fence();
    start_columns(dv, p, dout_operand + use.stage * (TILE / 16));
    start_columns(dk, ds, q_operand + use.stage * (TILE / 16));
    wgmma_commit();
    wgmma_wait<0>();
    pin(dk);
    pin(dv);

    __syncthreads();  // all four warps are done with their rows of K and V
    const long long stride = static_cast<long long>(heads + 2 * kv_heads) * HS;
    bf16* dst = args.dqkv + (static_cast<long long>(batch) * tokens + warp_key0) * stride + (heads + kv) * HS;
    store_rows<KEYS>(dst, stride, tokens - warp_key0, k_tile + warp * 16 * 128, dk, SCALE, SCALE, lane);
    store_rows<KEYS>(dst + kv_heads * HS, stride, tokens - warp_key0, v_tile + warp * 16 * 128, dv, 1.0f,
                     1.0f, lane);
}

extern "C" __global__ void __launch_bounds__(128, attention::KEY_BLOCKS)
attention_backward_key(const __grid_constant__ attention::BackwardArgs args) {
    extern __shared__ __align__(1024) unsigned char shared[];
    attention_backward_keys<false>(args, attention::shared_address(shared));
}

extern "C" __global__ void __launch_bounds__(128, attention::KEY_BLOCKS)
attention_backward_key_grouped(const __grid_constant__ attention::BackwardArgs args) {
    extern __shared__ __align__(1024) unsigned char shared[];
    attention_backward_keys<true>(args, attention::shared_address(shared));
}
