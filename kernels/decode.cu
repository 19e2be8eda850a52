// Decoding: a few new tokens against the keys and values of all tokens before them.
//
//   decode_embedding   out[i,:] = wte[ids[i],:] + wpe[positions[i],:], without wpe the token's row as it is
//   decode_linear      out[i,:] = f(x[i,:] weight^T + bias), f GELU, squared ReLU or nothing
//   decode_store       the keys and values of qkv go to their stream and position in the cache
//   decode_attention   out[i,h,:] = softmax(q_i,h K^T / sqrt(HS)) V over the positions 0 ... positions[i] of
//                      its stream
//
// Shapes: n rows; x (n, c_in), weight (c_out, c_in); qkv (n, NH + 2 KH, HS): query heads, then key heads,
// then value heads, each key and value head for the queries of NH/KH heads in turn; out (n, NH, HS); keys and
// values (S, KH, P, HS) with S streams of P positions, so that the keys of a head are one run of memory.
//
// The bits of a row depend on that row, its stream and its position alone, never on n: a text is the same
// whether it is written alone or with others. Everything is bound by memory: a pass reads each weight once
// for up to 8 rows, and each key and value once.
//
// Order of sums. Products: lane l of 32 takes the columns 8l ... 8l+7, then 256 further on, each by column;
// then the tree of lane numbers. Attention: a group of LANES lanes takes the keys g, g + G, g + 2G, ... of G
// groups in order, its softmax rescaled after every four; then the groups in order.
#include "common.cuh"
#include "activate.cuh"
#include "exact.cuh"
#include "gelu.cuh"

struct DecodeEmbeddingArgs {
    act_t* out;            // (n, C)
    const u16* ids;        // (n)
    const u16* positions;  // (n), not read without wpe
    const act_t* wte;      // (V, C)
    const act_t* wpe;      // (>=P, C), or null
    u32 rows;              // n
    u32 channels;          // C, a multiple of 8
};

// grid ceil(n * C/8 / 256), block 256.
extern "C" __global__ void __launch_bounds__(256)
    decode_embedding(const __grid_constant__ DecodeEmbeddingArgs args) {
    const u32 chunks = args.channels / 8;
    const u64 index = u64(blockIdx.x) * 256 + threadIdx.x;
    const u64 row = index / chunks;
    if (row >= args.rows) return;
    const u64 column = (index - row * chunks) * 8;
    Chunk<act_t> token, position;
    token.load(args.wte + u64(args.ids[row]) * args.channels + column);
    if (args.wpe) {
        position.load(args.wpe + u64(args.positions[row]) * args.channels + column);
        float a[8], b[8];
        token.widen(a);
        position.widen(b);
#pragma unroll
        for (int i = 0; i < 8; ++i) a[i] += b[i];
        token.narrow(a);
    }
    token.store(args.out + row * args.channels + column);
}

struct DecodeLinearArgs {
    act_t* out;           // (n, c_out), or null
    float* wide;          // (n, c_out) instead of out, or null
    const act_t* x;       // (n, c_in)
    const act_t* weight;  // (c_out, c_in)
    const act_t* bias;    // (c_out), or null
    u32 rows;             // n
    u32 c_in;             // a multiple of 8
    u32 c_out;            // any
    u32 function;         // of the float sum. 0: none, 1: GELU, 2: squared ReLU
};

// grid (ceil(c_out / 8), ceil(n / ROWS)), block 256: a warp an output column, for ROWS rows.
template <u32 ROWS, u32 UNROLL>
__device__ __forceinline__ void decode_linear(const DecodeLinearArgs& args) {
    const u32 lane = threadIdx.x % 32, column = blockIdx.x * 8 + threadIdx.x / 32, first = blockIdx.y * ROWS;
    if (column >= args.c_out) return;
    const act_t* weight = args.weight + u64(column) * args.c_in;
    float sum[ROWS] = {};
    for (u32 begin = lane * 8; begin < args.c_in; begin += 256 * UNROLL) {
        Chunk<act_t> held[UNROLL];
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u)
            if (begin + u * 256 < args.c_in) held[u].load(weight + begin + u * 256);
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            const u32 k = begin + u * 256;
            if (k < args.c_in) {
                float w[8];
                held[u].widen(w);
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r) {
                    // A row past the last is the last once more, and is not stored.
                    Chunk<act_t> chunk;
                    float x[8];
                    chunk.load(args.x + u64(min(first + r, args.rows - 1)) * args.c_in + k);
                    chunk.widen(x);
#pragma unroll
                    for (int i = 0; i < 8; ++i) sum[r] = __fmaf_rn(w[i], x[i], sum[r]);
                }
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) sum[r] = warp_sum(sum[r]);
    if (lane != 0) return;
    const float bias = args.bias ? to_float(args.bias[column]) : 0.f;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        if (first + r < args.rows) {
            float y = __fadd_rn(sum[r], bias);
            if (args.function == 1) y = gelu(y);
            else if (args.function == 2) y = squared_relu(y);
            const u64 at = u64(first + r) * args.c_out + column;
            if (args.wide) args.wide[at] = y; else from_float(y, args.out[at]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    decode_linear_1(const __grid_constant__ DecodeLinearArgs args) {
    decode_linear<1, 4>(args);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_linear_2(const __grid_constant__ DecodeLinearArgs args) {
    decode_linear<2, 4>(args);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_linear_4(const __grid_constant__ DecodeLinearArgs args) {
    decode_linear<4, 2>(args);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_linear_8(const __grid_constant__ DecodeLinearArgs args) {
    decode_linear<8, 2>(args);
}

struct DecodeStoreArgs {
    act_t* keys;           // (S, KH, P, HS)
    act_t* values;         // (S, KH, P, HS)
    const act_t* qkv;      // (n, NH + 2 KH, HS)
    const u16* streams;    // (n) below S
    const u16* positions;  // (n) below P
    u32 heads;             // NH
    u32 kv_heads;          // KH, divides NH
    u32 head_size;         // HS
    u32 capacity;          // P
};

// grid n, block 256.
extern "C" __global__ void __launch_bounds__(256) decode_store(const __grid_constant__ DecodeStoreArgs args) {
    const u32 channels = args.kv_heads * args.head_size, row = blockIdx.x;
    const u64 stream = args.streams[row], position = args.positions[row];
    const u32 of_row = args.heads + 2 * args.kv_heads;
    const act_t* key = args.qkv + (u64(row) * of_row + args.heads) * args.head_size;
    for (u32 c = threadIdx.x; c < channels; c += 256) {
        const u32 head = c / args.head_size;
        const u64 at = ((stream * args.kv_heads + head) * args.capacity + position) * args.head_size +
                       (c - head * args.head_size);
        args.keys[at] = key[c];
        args.values[at] = key[channels + c];
    }
}

struct DecodeAttentionArgs {
    act_t* out;            // (n, NH, HS)
    const act_t* keys;     // (S, KH, P, HS)
    const act_t* values;   // (S, KH, P, HS)
    const act_t* qkv;      // (n, NH + 2 KH, HS)
    const u16* streams;    // (n)
    const u16* positions;  // (n)
    u32 heads;             // NH
    u32 kv_heads;          // KH, divides NH
    u32 head_size;         // HS
    u32 capacity;          // P
    float scale;           // 1/sqrt(HS)
    u32 unused;            // 0
};

// The eight elements of a head from `first` on; zeros past its end.
__device__ __forceinline__ void load_part(Chunk<float>& part, const act_t* head, u32 first, u32 head_size) {
    float x[8] = {};
    if (head_size % 8 == 0) {
        Chunk<act_t> chunk;
        chunk.clear();
        if (first < head_size) chunk.load(head + first);
        chunk.widen(x);
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; ++i)
            if (first + i < head_size) x[i] = to_float(head[first + i]);
    }
    part.narrow(x);
}

// grid (NH, n), block 256. LANES * 8 >= HS.
template <u32 LANES>
__device__ __forceinline__ void decode_attention(const DecodeAttentionArgs& args) {
    constexpr u32 GROUPS = 256 / LANES, UNROLL = 4;
    constexpr float LOWEST = -3.402823466e38f;
    __shared__ float tops[GROUPS], totals[GROUPS], factors[GROUPS];
    __shared__ float sums[GROUPS][LANES * 8 + 1];
    const u32 head = blockIdx.x, row = blockIdx.y, group = threadIdx.x / LANES,
              part = threadIdx.x % LANES * 8;
    const u32 last = args.positions[row], head_size = args.head_size;
    const u32 kv = head / (args.heads / args.kv_heads), of_row = args.heads + 2 * args.kv_heads;
    const u64 start = (u64(args.streams[row]) * args.kv_heads + kv) * args.capacity * head_size;
    Chunk<float> held;
    float q[8];
    load_part(held, args.qkv + (u64(row) * of_row + head) * head_size, part, head_size);
    held.widen(q);
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] *= args.scale;

    float top = LOWEST, total = 0.f, sum[8] = {};
    // The same number of turns for all threads: they shuffle together.
    for (u32 first = 0; first <= last; first += GROUPS * UNROLL) {
        Chunk<float> value[UNROLL];
        float score[UNROLL];
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            // A key past the last is the last once more, and its value is not added.
            const u32 key = first + u * GROUPS + group;
            const u64 at = start + u64(min(key, last)) * head_size;
            float k[8];
            load_part(held, args.keys + at, part, head_size);
            load_part(value[u], args.values + at, part, head_size);
            held.widen(k);
            float dot = 0.f;
#pragma unroll
            for (int i = 0; i < 8; ++i) dot = __fmaf_rn(q[i], k[i], dot);
#pragma unroll
            for (u32 step = LANES / 2; step > 0; step >>= 1)
                dot = __fadd_rn(dot, __shfl_xor_sync(FULL_WARP, dot, step));
            score[u] = key <= last ? dot : LOWEST;
        }
        float highest = top;
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) highest = fmaxf(highest, score[u]);
        const float rescale = exact::exp(top - highest);
        top = highest;
        total *= rescale;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] *= rescale;
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            if (first + u * GROUPS + group > last) continue;
            const float p = exact::exp(score[u] - top);
            float v[8];
            value[u].widen(v);
            total = __fadd_rn(total, p);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] = __fmaf_rn(p, v[i], sum[i]);
        }
    }
    if (part == 0) tops[group] = top, totals[group] = total;
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[group][part + i] = sum[i];
    __syncthreads();
    if (threadIdx.x < GROUPS) {
        float highest = tops[0];
        for (u32 g = 1; g < GROUPS; ++g) highest = fmaxf(highest, tops[g]);
        factors[threadIdx.x] = exact::exp(tops[threadIdx.x] - highest);
    }
    __syncthreads();
    const u32 d = threadIdx.x;
    if (d >= head_size) return;
    float whole = 0.f, mixed = 0.f;
    for (u32 g = 0; g < GROUPS; ++g) {
        whole = __fmaf_rn(factors[g], totals[g], whole);
        mixed = __fmaf_rn(factors[g], sums[g][d], mixed);
    }
    from_float(__fdiv_rn(mixed, whole), args.out[(u64(row) * args.heads + head) * head_size + d]);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_attention_8(const __grid_constant__ DecodeAttentionArgs args) {
    decode_attention<8>(args);
}

extern "C" __global__ void __launch_bounds__(256)
    decode_attention_16(const __grid_constant__ DecodeAttentionArgs args) {
    decode_attention<16>(args);
}
