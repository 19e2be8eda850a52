// Causal attention, backward, for any GPU from sm_80 on: two kernels, launched in this order.
//
//   P = exp(S - lse),  D[q] = sum_d dout[q][d] out[q][d],  dP = dout V^T,  dS = P (dP - D)
//   dQ = dS K / sqrt(HS),  dK = dS^T Q / sqrt(HS),  dV = P^T dout
//
// Shapes: qkv, dqkv (B,T,NH+2*KH,HS) bf16: query heads, then key heads, then value heads, each key and value
// head for the queries of NH/KH heads in turn; qkv without values (B,T,NH+KH,HS); out, dout (B,T,NH,HS) bf16;
// lse, delta (B,NH,T) f32. Any T >= 1. `delta` is scratch: the first kernel sets it to D, the second reads
// it.
//
// Launch of attention_backward_query: grid (ceil(T / 64), B*NH, 1), block 128;
//   dynamic shared memory (2*64 + 4*KEYS) * (2*HS + 16) bytes, KEYS = 64 for head sizes 64 and 80, else 32.
// Launch of attention_backward_key (KH = NH) or attention_backward_key_grouped: grid (ceil(T / 64), B*KH, 1),
// block 128;
//   dynamic shared memory (2*64 + 4*32) * (2*HS + 16) + 16*32 bytes.
//
// Method: no sum crosses a warp, so there is nothing to order. dQ is summed by the warp that owns the
// query rows, dK and dV by the warp that owns the key rows; the price is S and dP computed twice (seven
// products instead of five). The second kernel computes S^T and dP^T, so that P^T and dS^T already have the
// layout of a left operand; scores never leave registers in either.
//
// Order of sums: dQ over keys ascending; dK and dV over the query heads that share them, and the queries of
// each, ascending; in steps of 16.
#include "attention.cuh"

namespace attention {

struct BackwardArgs {
    bf16* dqkv;
    float* delta;
    const bf16* dout;
    const bf16* qkv;     // without values where those are apart
    const bf16* values;  // (B,T,NH+2*KH,HS), of which values alone are read: `qkv`, or another
    const bf16* out;
    const float* lse;
    int tokens;    // T
    int heads;     // NH
    int kv_heads;  // KH, divides NH
    int slices;    // of a token in qkv: NH + 2*KH, or NH + KH
};

constexpr int THREADS = 128;
// Blocks that share a multiprocessor.
constexpr int BLOCKS = HS == 64 ? 3 : 2;

}  // namespace attention

extern "C" __global__ void __launch_bounds__(128, attention::BLOCKS)
attention_backward_query(const __grid_constant__ attention::BackwardArgs args) {
    using namespace attention;
    constexpr int M = 1, ROWS = 64, KEYS = HS <= 80 ? 64 : 32;
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int tokens = args.tokens, heads = args.heads, kv_heads = args.kv_heads;
    const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int batch = static_cast<int>(blockIdx.y) / heads, head = static_cast<int>(blockIdx.y) % heads;
    const long long channels = static_cast<long long>(heads) * HS, kv_channels = kv_heads * HS;
    const long long stride = args.slices * HS, wide = channels + 2 * kv_channels;  // wide: of values, dqkv
    const long long in_qkv = batch * tokens * stride, in_wide = batch * tokens * wide;
    const long long in_out = static_cast<long long>(batch) * tokens * channels + head * HS;
    const long long of_kv = channels + head / (heads / kv_heads) * HS;
    const bf16* q = args.qkv + in_qkv + head * HS;
    const bf16* k = args.qkv + in_qkv + of_kv;
    const bf16* v = args.values + in_wide + of_kv + kv_channels;
    const bf16* dout = args.dout + in_out;

    const u32 q_tile = shared_address(shared);
    const u32 dout_tile = q_tile + ROWS * ROW_BYTES;
    const u32 kv_tiles = dout_tile + ROWS * ROW_BYTES;
    constexpr u32 TILE = KEYS * ROW_BYTES;

    load_tile<ROWS, THREADS>(q_tile, q + row0 * stride, stride, tokens - row0, thread);
    load_tile<ROWS, THREADS>(dout_tile, dout + row0 * channels, channels, tokens - row0, thread);
    load_tile<KEYS, THREADS>(kv_tiles, k, stride, tokens, thread);
    load_tile<KEYS, THREADS>(kv_tiles + TILE, v, wide, tokens, thread);
    copy_async_commit();

    const int warp_row0 = row0 + static_cast<int>(warp) * 16 * M;
    const int last_row = min(row0 + ROWS, tokens) - 1;
    const int tiles = last_row / KEYS + 1;

    // D of this thread's rows, by the quad that holds a row.
    float delta[M][2], lse_log2[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp_row0 + m * 16 + static_cast<int>(lane >> 2) + h * 8;
            float sum = 0.0f;
            if (row < tokens)
                sum = row_product(dout + row * channels, args.out + in_out + row * channels, lane);
            delta[m][h] = quad_sum(sum);
            const long long at = static_cast<long long>(blockIdx.y) * tokens + row;
            lse_log2[m][h] = row < tokens ? args.lse[at] * LOG2_E : 0.0f;
            if ((lane & 3) == 0 && row < tokens) args.delta[at] = delta[m][h];
        }

    u32 qa[M][HS16][4], da[M][HS16][4];
    float dq[M][2 * HS16][4];
    clear(dq);
    for (int tile = 0; tile < tiles; ++tile) {
        const int key0 = tile * KEYS;
        const u32 k_tile = kv_tiles + (tile & 1) * 2 * TILE, v_tile = k_tile + TILE;
        copy_async_wait<0>();
        __syncthreads();  // this tile has arrived, and all warps are done with the one before
        if (tile + 1 < tiles) {
            const u32 next = kv_tiles + ((tile + 1) & 1) * 2 * TILE;
            const int at = key0 + KEYS;
            load_tile<KEYS, THREADS>(next, k + at * stride, stride, tokens - at, thread);
            load_tile<KEYS, THREADS>(next + TILE, v + at * wide, wide, tokens - at, thread);
            copy_async_commit();
        }
        const u32 patch = warp * 16 * M * ROW_BYTES + lane_offset_a(lane);
        if (tile == 0) load_operand<M>(qa, q_tile + patch), load_operand<M>(da, dout_tile + patch);
        if (key0 > warp_row0 + 16 * M - 1) continue;  // wholly masked for this warp

        float s[M][KEYS / 8][4], dp[M][KEYS / 8][4];
        clear(s);
        clear(dp);
        multiply_rows<M, KEYS / 16>(s, qa, k_tile + lane_offset_b(lane));
        multiply_rows<M, KEYS / 16>(dp, da, v_tile + lane_offset_b(lane));
        const bool diagonal = key0 + KEYS - 1 > warp_row0;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float p = exact::exp2(__fmaf_rn(s[m][n][e], SCALE_LOG2, -lse_log2[m][e >> 1]));
                    s[m][n][e] = p * (dp[m][n][e] - delta[m][e >> 1]);
                    const int key = key0 + n * 8 + static_cast<int>(lane & 3) * 2 + (e & 1);
                    const int row = warp_row0 + m * 16 + static_cast<int>(lane >> 2) + (e >> 1) * 8;
                    if (diagonal && key > row) s[m][n][e] = 0.0f;
                }
        u32 ds[M][KEYS / 16][4];
        to_operand<M, KEYS / 16>(ds, s);
        multiply_columns<M, KEYS / 16>(dq, ds, k_tile + lane_offset_a(lane));
    }

    float scale[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) scale[m][0] = scale[m][1] = SCALE;
    store_rows<M>(args.dqkv + in_wide + head * HS + warp_row0 * wide, wide, tokens - warp_row0,
                  q_tile + warp * 16 * M * ROW_BYTES, dq, scale, lane);
}

// Query heads that share keys take turns, GROUPED, and K and V are read anew for each tile of theirs; else
// there is one head, and registers for both. `k_tile` is where the block's shared memory begins.
template <bool GROUPED>
__device__ __forceinline__ void attention_backward_keys(const attention::BackwardArgs& args,
                                                        attention::u32 k_tile) {
    using namespace attention;
    constexpr int KEYS = 64, ROWS = 32;
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int tokens = args.tokens, heads = args.heads, kv_heads = args.kv_heads;
    const int key0 = static_cast<int>(blockIdx.x) * KEYS;  // block 0 meets every query: the longest first
    const int batch = static_cast<int>(blockIdx.y) / kv_heads, kv = static_cast<int>(blockIdx.y) % kv_heads;
    const int group = GROUPED ? heads / kv_heads : 1;  // query heads with these keys
    const long long channels = static_cast<long long>(heads) * HS, kv_channels = kv_heads * HS;
    const long long stride = args.slices * HS, wide = channels + 2 * kv_channels;  // wide: of values, dqkv
    const long long in_qkv = batch * tokens * stride, in_wide = batch * tokens * wide;
    const long long of_kv = channels + kv * HS;
    const bf16* k = args.qkv + in_qkv + of_kv;
    const bf16* v = args.values + in_wide + of_kv + kv_channels;
    const u32 v_tile = k_tile + KEYS * ROW_BYTES;
    const u32 tiles0 = v_tile + KEYS * ROW_BYTES;  // Q, dout, lse, D of even tiles, then of odd ones
    constexpr u32 TILE = ROWS * ROW_BYTES, STAGE = 2 * TILE + ROWS * 8;

    auto load = [&](u32 stage, int head, int row) {
        const bf16* q = args.qkv + in_qkv + head * HS + row * stride;
        const bf16* dout =
            args.dout + (static_cast<long long>(batch) * tokens + row) * channels + head * HS;
        const long long of_row = (static_cast<long long>(batch) * heads + head) * tokens + row;
        load_tile<ROWS, THREADS>(stage, q, stride, tokens - row, thread);
        load_tile<ROWS, THREADS>(stage + TILE, dout, channels, tokens - row, thread);
        load_floats<ROWS>(stage + 2 * TILE, args.lse + of_row, tokens - row, thread);
        load_floats<ROWS>(stage + 2 * TILE + ROWS * 4, args.delta + of_row, tokens - row,
                          static_cast<int>(thread) - 64);
        copy_async_commit();
    };
    load_tile<KEYS, THREADS>(k_tile, k + key0 * stride, stride, tokens - key0, thread);
    load_tile<KEYS, THREADS>(v_tile, v + key0 * wide, wide, tokens - key0, thread);
    const int first = key0 / ROWS, tiles = (tokens + ROWS - 1) / ROWS;
    load(tiles0 + (first & 1) * STAGE, kv * group, first * ROWS);

    const int warp_key0 = key0 + static_cast<int>(warp) * 16;
    u32 ka[1][HS16][4], va[1][HS16][4];
    float dk[1][2 * HS16][4], dv[1][2 * HS16][4];
    clear(dk);
    clear(dv);
    int head = kv * group;
    for (int tile = first;; ++tile) {
        if (tile == tiles) {
            if (!GROUPED || ++head == (kv + 1) * group) break;
            tile = first;
            __syncthreads();  // all warps are done with the head before
            load(tiles0 + (first & 1) * STAGE, head, first * ROWS);
        }
        const int row0 = tile * ROWS;
        const u32 stage = tiles0 + (tile & 1) * STAGE, q_tile = stage, dout_tile = stage + TILE;
        copy_async_wait<0>();
        __syncthreads();  // this tile has arrived, and all warps are done with the one before
        if (tile + 1 < tiles) load(tiles0 + ((tile + 1) & 1) * STAGE, head, row0 + ROWS);
        const u32 patch = warp * 16 * ROW_BYTES + lane_offset_a(lane);
        if (!GROUPED && tile == first)
            load_operand<1>(ka, k_tile + patch), load_operand<1>(va, v_tile + patch);
        if (row0 + ROWS - 1 < warp_key0) continue;  // wholly masked for this warp

        // Rows of these accumulators are keys, columns are queries. Rows of Q and dout past the last token
        // are zeros, and so are their lse and D: P is then 1, dP and dS are 0, and all products with them
        // vanish.
        float s[1][ROWS / 8][4], dp[1][ROWS / 8][4];
        clear(s);
        clear(dp);
        if (GROUPED) load_operand<1>(ka, k_tile + patch);
        multiply_rows<1, ROWS / 16>(s, ka, q_tile + lane_offset_b(lane));
        if (GROUPED) load_operand<1>(va, v_tile + patch);
        multiply_rows<1, ROWS / 16>(dp, va, dout_tile + lane_offset_b(lane));
        const bool diagonal = row0 < warp_key0 + 15;
#pragma unroll
        for (int n = 0; n < ROWS / 8; ++n) {
            float lse_pair[2], delta_pair[2];
            const u32 at = stage + 2 * TILE + (n * 8 + (lane & 3) * 2) * 4;
            asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(lse_pair[0]), "=f"(lse_pair[1]) : "r"(at));
            asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                         : "=f"(delta_pair[0]), "=f"(delta_pair[1])
                         : "r"(at + ROWS * 4));
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                float p = exact::exp2(__fmaf_rn(s[0][n][e], SCALE_LOG2, -lse_pair[e & 1] * LOG2_E));
                const int row = row0 + n * 8 + static_cast<int>(lane & 3) * 2 + (e & 1);
                const int key = warp_key0 + static_cast<int>(lane >> 2) + (e >> 1) * 8;
                if (diagonal && key > row) p = 0.0f;
                s[0][n][e] = p;
                dp[0][n][e] = p * (dp[0][n][e] - delta_pair[e & 1]);
            }
        }
        u32 a[1][ROWS / 16][4];
        to_operand<1, ROWS / 16>(a, s);
        multiply_columns<1, ROWS / 16>(dv, a, dout_tile + lane_offset_a(lane));
        to_operand<1, ROWS / 16>(a, dp);
        multiply_columns<1, ROWS / 16>(dk, a, q_tile + lane_offset_a(lane));
    }

    // The warp's own rows of K and V have been read: stage the results there.
    const float scale[1][2] = {{SCALE, SCALE}}, one[1][2] = {{1.0f, 1.0f}};
    bf16* dst = args.dqkv + in_wide + of_kv + warp_key0 * wide;
    store_rows<1>(dst, wide, tokens - warp_key0, k_tile + warp * 16 * ROW_BYTES, dk, scale, lane);
    store_rows<1>(dst + kv_channels, wide, tokens - warp_key0, v_tile + warp * 16 * ROW_BYTES, dv, one,
                  lane);
}

extern "C" __global__ void __launch_bounds__(128, attention::BLOCKS)
attention_backward_key(const __grid_constant__ attention::BackwardArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    attention_backward_keys<false>(args, attention::shared_address(shared));
}

extern "C" __global__ void __launch_bounds__(128, attention::BLOCKS)
attention_backward_key_grouped(const __grid_constant__ attention::BackwardArgs args) {
    extern __shared__ __align__(128) unsigned char shared[];
    attention_backward_keys<true>(args, attention::shared_address(shared));
}
