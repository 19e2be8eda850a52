// Causal attention, forward, on Hopper (sm_90a). Head sizes 64 and 128.
//
//   S = Q K^T / sqrt(HS),  S[q][k] = -infinity for k > q
//   out = softmax(S) V,    lse[q] = ln sum_k exp(S[q][k])
//
// Shapes: qkv (B,T,NH+2*KH,HS) bf16, by its tensor map: query heads, then key heads, then value heads, each
// key and value head for the queries of NH/KH heads in turn, or without values (B,T,NH+KH,HS); out
// (B,T,NH,HS) bf16; lse (B,NH,T) f32. Any T >= 1.
//
// Launch: grid (ceil(T / R), B*NH, 1), block 128*G, R = 64*G, G = 2 for head size 64 and 3 for 128;
// dynamic shared memory 2*HS*(R + 8*64) + 104 bytes. The longest rows of a head start first.
//
// Method: a warpgroup owns 64 query rows and walks the keys in ascending tiles. The product of this tile's
// probabilities with V and the scores of the next tile are started together, so that a warpgroup waits for
// the matrix unit once a tile, and the other warpgroups of the multiprocessor fill its time in the
// exponentials. One thread keeps TMA up to four tiles ahead; no warp is spent on that alone.
//
// Order of sums: head dimension and keys ascending by 16; each row's sum by thread over its columns
// ascending, tile by tile, threads of a quad combined once at the end.
#include "attention_hopper.cuh"

namespace attention {

struct ForwardArgs {
    TensorMap qkv;
    TensorMap values;  // of a whole qkv, of which values alone are read: that one, or another
    bf16* out;
    float* lse;
    int tokens;    // T
    int heads;     // NH
    int kv_heads;  // KH, divides NH
    int unused;    // 0
};

constexpr int GROUPS = HS == 64 ? 2 : 3, ROWS = 64 * GROUPS, KEYS = 64, STAGES = 4;
/// Blocks that share a multiprocessor.
constexpr int BLOCKS = HS == 64 ? 2 : 1;
/// The block so many further on is the one whose rows this block brings into L2: about what an H100 has under
/// way.
constexpr int AHEAD = 132 * BLOCKS;
// Tiles that one warpgroup meets and another does not are never released by the latter.
static_assert((GROUPS - 1) * 64 / KEYS < STAGES, "a refill would wait for ever");
constexpr int LAG = 2;

}  // namespace attention

extern "C" __global__ void __launch_bounds__(128 * attention::GROUPS, attention::BLOCKS)
attention_forward(const __grid_constant__ attention::ForwardArgs args) {
    using namespace attention;
    extern __shared__ __align__(1024) unsigned char shared[];
    const u32 thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const u32 group =
        __shfl_sync(0xffffffffu, thread >> 7, 0);  // the same in a warp, and the compiler knows it
    const int tokens = args.tokens, heads = args.heads, kv_heads = args.kv_heads;
    const int row0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int batch = static_cast<int>(blockIdx.y) / heads, head = static_cast<int>(blockIdx.y) % heads;
    const int sharing = heads / kv_heads, kv = head / sharing;  // query heads with the same keys

    constexpr u32 TILE = tile_bytes(KEYS);
    const u32 q_tile = shared_address(shared), k_tiles = q_tile + tile_bytes(ROWS),
              v_tiles = k_tiles + STAGES * TILE;
    const u32 q_full = v_tiles + STAGES * TILE, k_full = q_full + 8, v_full = k_full + 8 * STAGES,
              empty = v_full + 8 * STAGES;

    const int tiles = (min(row0 + ROWS, tokens) - 1) / KEYS + 1;
    auto load = [&](int tile, u32 stage) {
        barrier_expect(k_full + 8 * stage, TILE);
        attention::load_tile<KEYS>(k_tiles + stage * TILE, args.qkv, k_full + 8 * stage, heads + kv,
                                   tile * KEYS, batch);
        barrier_expect(v_full + 8 * stage, TILE);
        attention::load_tile<KEYS>(v_tiles + stage * TILE, args.values, v_full + 8 * stage,
                                   heads + kv_heads + kv, tile * KEYS, batch);
    };
    // The last warpgroup meets every tile; its first thread feeds all.
    const bool feeder = thread == 128 * (GROUPS - 1);
    if (feeder) {
        barrier_init(q_full, 1);
        for (int s = 0; s < STAGES; ++s)
            barrier_init(k_full + 8 * s, 1), barrier_init(v_full + 8 * s, 1),
                barrier_init(empty + 8 * s, 4 * GROUPS);
        barrier_init_done();
        barrier_expect(q_full, tile_bytes(ROWS));
        attention::load_tile<ROWS>(q_tile, args.qkv, q_full, head, row0, batch);
        load(0, 0);
    }
    __syncthreads();
    if (feeder)
        for (int t = 1; t < STAGES && t < tiles; ++t) load(t, t);
    if (thread == 128 * (GROUPS - 1) + 32) {
        const int later = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x) + AHEAD;
        const int y = later / static_cast<int>(gridDim.x),
                  r = (static_cast<int>(gridDim.x) - 1 - later % static_cast<int>(gridDim.x)) * ROWS;
        if (y < static_cast<int>(gridDim.y)) {
            const int later_kv = y % heads / sharing;
            prefetch_tile<ROWS>(args.qkv, y % heads, r, y / heads);
            prefetch_tile<ROWS>(args.qkv, heads + later_kv, r, y / heads);
            prefetch_tile<ROWS>(args.values, heads + kv_heads + later_kv, r, y / heads);
        }
    }
    __syncwarp();

    const int group_row0 = row0 + static_cast<int>(group) * 64;
    const int group_tiles = min(tiles, (group_row0 + 63) / KEYS + 1);
    const int row =
        group_row0 + static_cast<int>(warp & 3) * 16 + static_cast<int>(lane >> 2);  // and row + 8
    const u32 q_rows = q_tile + group * 64 * 128;
    const u32 q_operand = operand<ROWS>(q_rows), k_operand = operand<KEYS>(k_tiles),
              v_operand = operand<KEYS>(v_tiles);
    float s[KEYS / 2], o[HS / 2], row_max[2] = {LOWEST, LOWEST}, row_sum[2] = {0.0f, 0.0f};
    clear(o);
    u32 p[KEYS / 16][4];
    float rescale[2];

    // From the scores of a tile to its probabilities: the part that may run beside the product with V of the
    // tile before.
    auto exponentiate = [&](int tile) {
        pin(s);
        const int key0 = tile * KEYS;
        if (key0 + KEYS - 1 > group_row0) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; ++i) {
                const int key = key0 + i / 4 * 8 + static_cast<int>(lane & 3) * 2 + (i & 1);
                if (key > row + (i & 2) * 4) s[i] = MASKED;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float top = row_max[h];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
                top = fmaxf(top, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
            top = quad_max(top);
            const float shift = top * SCALE_LOG2;
            rescale[h] = exact::exp2((row_max[h] - top) * SCALE_LOG2);
            row_max[h] = top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                float& a = s[4 * n + 2 * h];
                float& b = s[4 * n + 2 * h + 1];
                a = exact::exp2(__fmaf_rn(a, SCALE_LOG2, -shift));
                b = exact::exp2(__fmaf_rn(b, SCALE_LOG2, -shift));
                sum += a + b;
            }
            row_sum[h] = __fmaf_rn(row_sum[h], rescale[h], sum);
        }
    };

    Ring<STAGES> use;
    barrier_wait(q_full, 0);
    barrier_wait(k_full, 0);
    wgmma_fence();
    start_rows<ROWS, KEYS>(s, q_operand, k_operand);
    wgmma_commit();
    wgmma_wait<0>();
    exponentiate(0);
    to_operand(p, s);
    pin(o);
    barrier_wait(v_full, 0);
    for (int tile = 1; tile < group_tiles; ++tile) {
        const Ring<STAGES> before = use;
        use.advance();
        barrier_wait(k_full + 8 * use.stage, use.phase);
        wgmma_fence();
        start_rows<ROWS, KEYS>(s, q_operand, k_operand + use.stage * (TILE / 16));
        wgmma_commit();
        start_columns(o, p, v_operand + before.stage * (TILE / 16));
        wgmma_commit();
        wgmma_wait<1>();
        exponentiate(tile);
        pin(s);
        barrier_wait(v_full + 8 * use.stage,
                     use.phase);  // here, so that the compiler cannot move the next wait up
        wgmma_wait<0>();
        pin(o);
        if (lane == 0) barrier_arrive(empty + 8 * before.stage);
        if (feeder) refill<STAGES, LAG>(tile, tiles, 0, before, empty, load);
        __syncwarp();
        // A factor of one changes no bit, and maxima seldom move after the first tiles.
        if (__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
            for (int i = 0; i < HS / 2; ++i) o[i] *= rescale[(i >> 1) & 1];
        }
        to_operand(p, s);
        pin(o);
    }
    wgmma_fence();
    start_columns(o, p, v_operand + use.stage * (TILE / 16));
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);

    float* lse = args.lse + static_cast<long long>(blockIdx.y) * tokens;
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float sum = quad_sum(row_sum[h]);
        inverse[h] = __frcp_rn(sum);
        if ((lane & 3) == 0 && row + 8 * h < tokens)
            lse[row + 8 * h] = __fmaf_rn(row_max[h], SCALE, exact::ln(sum));
    }
    // The warpgroup's own rows of Q have been read by all its warps only now that all are past their waits.
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    const long long channels = static_cast<long long>(heads) * HS;
    const int warp_row0 = group_row0 + static_cast<int>(warp & 3) * 16;
    store_rows<ROWS>(args.out + (static_cast<long long>(batch) * tokens + warp_row0) * channels + head * HS,
                     channels, tokens - warp_row0, q_rows + (warp & 3) * 16 * 128, o, inverse[0], inverse[1],
                     lane);
}
