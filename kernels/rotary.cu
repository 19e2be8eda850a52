// Rotary position embeddings: queries and keys turned in place by angles that grow with the position.
//
//   (a, b) -> (fma(a, cos, -(b sin)), fma(a, sin, b cos)) for neighbours a, b of a head
//   qkv (n, NH + 2 KH, HS) act_t, values untouched; table (P, HS/2, 2) float: cosine and sine of each pair
//
// The inverse takes -sin: it turns back, and makes the gradient of what was turned that of what came before.
// A thread has the same eight columns of up to four heads: the table's 32 bytes are read once for 64 bytes
// of bf16. Its heads lie a quarter of the heads apart, so that neighbouring threads read neighbouring memory.
// Each element is rounded once.
#include "rotary.cuh"

struct RotaryArgs {
    act_t* qkv;            // (n, NH + 2 KH, HS)
    const float* table;    // (P, HS/2, 2)
    const u16* positions;  // (n) below P, or null: row i has position i % seq
    u32 rows;              // n
    u32 seq;               // T; 1 with positions
    u32 heads;             // NH
    u32 kv_heads;          // KH
    u32 head_size;         // HS, a multiple of 8
    u32 inverse;           // 1: by the negative angle
};

// grid ceil(n * ceil((NH + KH) / 4) * HS/8 / 256), block 256.
extern "C" __global__ void __launch_bounds__(256) rotary(const __grid_constant__ RotaryArgs args) {
    constexpr u32 HEADS = 4;  // of a thread
    const u32 chunks = args.head_size / 8, turned = args.heads + args.kv_heads;
    const u32 apart = (turned + HEADS - 1) / HEADS;
    const u32 index = blockIdx.x * 256 + threadIdx.x;
    const u32 group = index / chunks, part = (index - group * chunks) * 8;
    const u32 row = group / apart, first = group - row * apart;
    if (row >= args.rows) return;
    const u32 position = args.positions ? args.positions[row] : row % args.seq;
    act_t* start = args.qkv + u64(row) * (turned + args.kv_heads) * args.head_size + part;

    Chunk<act_t> held[HEADS];
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 head = first + k * apart;
        if (head < turned) held[k].load(start + head * args.head_size);
    }
    Chunk<float> angles;
    float angle[8];
    angles.load(args.table + u64(position) * args.head_size + part);
    angles.widen(angle);
    if (args.inverse) invert(angle);
#pragma unroll
    for (u32 k = 0; k < HEADS; ++k) {
        const u32 head = first + k * apart;
        if (head < turned) {
            float x[8];
            held[k].widen(x);
            turn(x, angle);
            held[k].narrow(x);
            held[k].store(start + head * args.head_size);
        }
    }
}
