// Causal attention, forward, for any GPU from sm_80 on.
//
//   S = Q K^T / sqrt(HS),  S[q][k] = -infinity for k > q
//   out = softmax(S) V,    lse[q] = ln sum_k exp(S[q][k])
//
// Shapes: qkv (B,T,NH+2*KH,HS) bf16: query heads, then key heads, then value heads, each key and value head
// for the queries of NH/KH heads in turn, or without values (B,T,NH+KH,HS); out (B,T,NH,HS) bf16, lse
// (B,NH,T) f32. Any T >= 1.
//
// Launch: grid (ceil(T / ROWS), B*NH, 1), block 128, with ROWS = 128 for head size 64, else 64;
// dynamic shared memory (ROWS + 4*64) * (2*HS + 16) bytes. The longest rows of a head start first.
//
// Method: scores never leave registers. Each of four warps owns 16*M query rows and walks the keys in
// ascending tiles of 64, keeping a running maximum and sum of every row; the accumulators of S, rounded to
// bf16, have the layout of the left operand of the product with V. K and V of the next tile
// arrive by cp.async while this one is multiplied.
//
// Order of sums: head dimension ascending by 16 inside the matrix unit; keys ascending by tile, each tile's
// row sum by thread over its columns ascending, threads of a quad combined once at the end.
#include "attention.cuh"

namespace attention {

struct ForwardArgs {
    bf16* out;
    float* lse;
    const bf16* qkv;     // without values where those are apart
    const bf16* values;  // (B,T,NH+2*KH,HS), of which values alone are read: `qkv`, or another
    int tokens;    // T
    int heads;     // NH
    int kv_heads;  // KH, divides NH
    int slices;    // of a token in qkv: NH + 2*KH, or NH + KH
};

/// Query rows of a warp, in sixteens.
constexpr int M = HS == 64 ? 2 : 1;
constexpr int ROWS = 64 * M;
constexpr int KEYS = 64;
constexpr int THREADS = 128;

}  // namespace attention

extern "C" __global__ void __launch_bounds__(128, 2)
attention_forward(const __grid_constant__ attention::ForwardArgs args) {
    using namespace attention;
    extern __shared__ __align__(128) unsigned char shared[];
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int tokens = args.tokens, heads = args.heads, kv_heads = args.kv_heads;
    const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int batch = static_cast<int>(blockIdx.y) / heads, head = static_cast<int>(blockIdx.y) % heads;
    const long long channels = static_cast<long long>(heads) * HS, kv_channels = kv_heads * HS;
    const long long stride = args.slices * HS, v_stride = channels + 2 * kv_channels;
    const bf16* sequence = args.qkv + batch * tokens * stride;
    const bf16* q = sequence + head * HS;
    const long long of_kv = channels + head / (heads / kv_heads) * HS;
    const bf16* k = sequence + of_kv;
    const bf16* v = args.values + batch * tokens * v_stride + of_kv + kv_channels;

    const u32 q_tile = shared_address(shared);
    const u32 kv_tiles = q_tile + ROWS * ROW_BYTES;  // K, V of even tiles, then of odd ones
    constexpr u32 TILE = KEYS * ROW_BYTES;

    load_tile<ROWS, THREADS>(q_tile, q + row0 * stride, stride, tokens - row0, thread);
    load_tile<KEYS, THREADS>(kv_tiles, k, stride, tokens, thread);
    load_tile<KEYS, THREADS>(kv_tiles + TILE, v, v_stride, tokens, thread);
    copy_async_commit();

    const int warp_row0 = row0 + static_cast<int>(warp) * 16 * M;
    const int last_row = min(row0 + ROWS, tokens) - 1;
    const int tiles = last_row / KEYS + 1;
    u32 qa[M][HS16][4];
    float o[M][2 * HS16][4];
    float row_max[M][2], row_sum[M][2];
    clear(o);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) row_max[m][h] = LOWEST, row_sum[m][h] = 0.0f;

    for (int tile = 0; tile < tiles; ++tile) {
        const int key0 = tile * KEYS;
        const u32 k_tile = kv_tiles + (tile & 1) * 2 * TILE, v_tile = k_tile + TILE;
        copy_async_wait<0>();
        __syncthreads();  // this tile has arrived, and all warps are done with the one before
        if (tile + 1 < tiles) {
            const u32 next = kv_tiles + ((tile + 1) & 1) * 2 * TILE;
            const int at = key0 + KEYS;
            load_tile<KEYS, THREADS>(next, k + at * stride, stride, tokens - at, thread);
            load_tile<KEYS, THREADS>(next + TILE, v + at * v_stride, v_stride, tokens - at, thread);
            copy_async_commit();
        }
        if (tile == 0) load_operand<M>(qa, q_tile + warp * 16 * M * ROW_BYTES + lane_offset_a(lane));
        if (key0 > warp_row0 + 16 * M - 1) continue;  // wholly masked for this warp

        float s[M][KEYS / 8][4];
        clear(s);
        multiply_rows<M, KEYS / 16>(s, qa, k_tile + lane_offset_b(lane));
        if (key0 + KEYS - 1 > warp_row0) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int key = key0 + n * 8 + static_cast<int>(lane & 3) * 2 + (e & 1);
                        const int row = warp_row0 + m * 16 + static_cast<int>(lane >> 2) + (e >> 1) * 8;
                        if (key > row) s[m][n][e] = MASKED;
                    }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float top = row_max[m][h];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
                    top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                top = quad_max(top);
                const float rescale = exact::exp2((row_max[m][h] - top) * SCALE_LOG2);
                const float shift = top * SCALE_LOG2;
                row_max[m][h] = top;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
                    s[m][n][2 * h] = exact::exp2(__fmaf_rn(s[m][n][2 * h], SCALE_LOG2, -shift));
                    s[m][n][2 * h + 1] = exact::exp2(__fmaf_rn(s[m][n][2 * h + 1], SCALE_LOG2, -shift));
                    sum += s[m][n][2 * h] + s[m][n][2 * h + 1];
                }
                row_sum[m][h] = __fmaf_rn(row_sum[m][h], rescale, sum);
#pragma unroll
                for (int n = 0; n < 2 * HS16; ++n) o[m][n][2 * h] *= rescale, o[m][n][2 * h + 1] *= rescale;
            }
        }
        u32 p[M][KEYS / 16][4];
        to_operand<M, KEYS / 16>(p, s);
        multiply_columns<M, KEYS / 16>(o, p, v_tile + lane_offset_a(lane));
    }

    float inverse[M][2];
    float* lse = args.lse + static_cast<long long>(blockIdx.y) * tokens;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float sum = quad_sum(row_sum[m][h]);
            const int row = warp_row0 + m * 16 + static_cast<int>(lane >> 2) + h * 8;
            inverse[m][h] = __frcp_rn(sum);
            if ((lane & 3) == 0 && row < tokens) lse[row] = __fmaf_rn(row_max[m][h], SCALE, exact::ln(sum));
        }
    // The warp's own rows of Q have been read: stage the result there.
    store_rows<M>(args.out + (static_cast<long long>(batch) * tokens + warp_row0) * channels + head * HS,
                  channels, tokens - warp_row0, q_tile + warp * 16 * M * ROW_BYTES, o, inverse, lane);
}
