// Causal attention for both element types and any head size: for fp32 and tf32, and in bf16 for the heads
// that attention_forward.cu is not written for. Plain, and no faster than it must be; all arithmetic is
// float.
//
//   S = Q K^T / sqrt(HS),  S[q][k] = -infinity for k > q
//   out = softmax(S) V,    lse[q] = ln sum_k exp(S[q][k])
//   P = exp(S - lse),  D[q] = sum_d dout[q][d] out[q][d],  dP = dout V^T,  dS = P (dP - D)
//   dQ = dS K / sqrt(HS),  dK = dS^T Q / sqrt(HS),  dV = P^T dout
//
// Shapes: qkv, dqkv (B,T,NH+2*KH,HS): query heads, then key heads, then value heads, each key and value head
// for the queries of NH/KH heads in turn. Where values are apart, qkv is (B,T,NH+KH,HS), and `values` has
// them in the places of a whole qkv; out, dout (B,T,NH,HS), lse, delta (B,NH,T). HS at most 128.
//
// Launch: grid (ceil(T / 4), B*NH), B*KH for keys, block 128. A warp owns one row: of queries in
// attention_any_forward and attention_any_query, of keys in attention_any_key, which runs last and reads the
// `delta` of the query kernel.
//
// The other side comes in tiles of 32 rows. First each lane takes one of them and multiplies the whole head
// dimension; then each lane takes the columns lane, lane+32, ... and adds the 32 rows in order.
//
// Order of sums: dot products by column ascending; over rows by tile and row, both ascending; over the query
// heads that share keys ascending.
#include "common.cuh"
#include "exact.cuh"

constexpr u32 COLUMNS = 4;  // columns a lane, so that HS <= 128

struct AttentionAnyArgs {
    act_t* out;           // (B, T, NH, HS)
    float* lse;           // (B, NH, T)
    const act_t* qkv;     // (B, T, slices, HS)
    const act_t* values;  // (B, T, NH + 2 KH, HS), of which values alone are read: `qkv`, or another
    u32 tokens;           // T
    u32 heads;            // NH
    u32 kv_heads;         // KH, divides NH
    u32 head_size;        // HS
    float scale;          // 1/sqrt(HS)
    u32 slices;           // NH + 2 KH, or without values NH + KH
};

struct AttentionAnyBackwardArgs {
    act_t* dqkv;          // (B, T, NH + 2 KH, HS)
    float* delta;         // (B, NH, T)
    const act_t* dout;    // (B, T, NH, HS)
    const act_t* qkv;     // (B, T, slices, HS)
    const act_t* values;  // (B, T, NH + 2 KH, HS), of which values alone are read: `qkv`, or another
    const act_t* out;     // (B, T, NH, HS)
    const float* lse;     // (B, NH, T)
    u32 tokens;           // T
    u32 heads;            // NH
    u32 kv_heads;         // KH, divides NH
    u32 head_size;        // HS
    float scale;          // 1/sqrt(HS)
    u32 slices;           // NH + 2 KH, or without values NH + KH
};

// Where one head of queries of one sequence lies, and its keys and values.
struct Head {
    u64 q, k, v, out, lse;  // of token 0, v in `values`
    u64 dq, dk, dv;         // of token 0 of dqkv
    u64 qkv_stride, out_stride, wide_stride;  // from token to token; the last of values and dqkv

    // Head `of_all` of the B NH heads of queries.
    template <typename Args>
    __device__ __forceinline__ Head(const Args& args, u32 of_all) {
        const u64 batch = of_all / args.heads, head = of_all % args.heads;
        const u64 kv = head / (args.heads / args.kv_heads), kv_channels = u64(args.kv_heads) * args.head_size;
        out_stride = u64(args.heads) * args.head_size;
        qkv_stride = u64(args.slices) * args.head_size;
        wide_stride = out_stride + 2 * kv_channels;
        out = batch * args.tokens * out_stride + head * args.head_size;
        const u64 sequence = batch * args.tokens * qkv_stride;
        q = sequence + head * args.head_size;
        k = sequence + out_stride + kv * args.head_size;
        dq = batch * args.tokens * wide_stride + head * args.head_size;
        dk = batch * args.tokens * wide_stride + out_stride + kv * args.head_size;
        v = dv = dk + kv_channels;
        lse = u64(of_all) * args.tokens;
    }
};

__device__ __forceinline__ float dot(const act_t* a, const act_t* b, u32 length) {
    float sum = 0.f;
    for (u32 i = 0; i < length; ++i) sum = __fmaf_rn(to_float(a[i]), to_float(b[i]), sum);
    return sum;
}

// sum[c] += weight of lane r times column c of row r, r ascending over `rows` rows.
__device__ __forceinline__ void add_rows(float (&sum)[COLUMNS], float weight, const act_t* row, u64 stride,
                                         u32 rows, u32 head_size) {
    const u32 lane = threadIdx.x % 32;
    for (u32 r = 0; r < rows; ++r, row += stride) {
        const float w = __shfl_sync(FULL_WARP, weight, r);
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c)
            if (c * 32 + lane < head_size) sum[c] = __fmaf_rn(w, to_float(row[c * 32 + lane]), sum[c]);
    }
}

__device__ __forceinline__ void store_row(act_t* target, const float (&sum)[COLUMNS], float factor,
                                          u32 head_size) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c)
        if (c * 32 + lane < head_size) from_float(sum[c] * factor, target[c * 32 + lane]);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_any_forward(const __grid_constant__ AttentionAnyArgs args) {
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= args.tokens) return;
    const Head head(args, blockIdx.y);
    const act_t* q = args.qkv + head.q + row * head.qkv_stride;
    const act_t* k = args.qkv + head.k;
    const act_t* v = args.values + head.v;
    float highest = -3.402823466e38f, total = 0.f, sum[COLUMNS] = {};
    for (u32 first = 0; first <= row; first += 32) {
        const u32 keys = min(32u, row + 1 - first);
        float score = -3.402823466e38f;
        if (lane < keys) score = dot(q, k + (first + lane) * head.qkv_stride, args.head_size) * args.scale;
        const float top = fmaxf(highest, warp_max(score));
        const float rescale = exact::exp(highest - top);
        const float p = lane < keys ? exact::exp(score - top) : 0.f;
        highest = top;
        total = __fmaf_rn(total, rescale, warp_sum(p));
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) sum[c] *= rescale;
        add_rows(sum, p, v + first * head.wide_stride, head.wide_stride, keys, args.head_size);
    }
    store_row(args.out + head.out + row * head.out_stride, sum, __frcp_rn(total), args.head_size);
    if (lane == 0) args.lse[head.lse + row] = highest + exact::ln(total);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_any_query(const __grid_constant__ AttentionAnyBackwardArgs args) {
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= args.tokens) return;
    const Head head(args, blockIdx.y);
    const act_t* q = args.qkv + head.q + row * head.qkv_stride;
    const act_t* k = args.qkv + head.k;
    const act_t* v = args.values + head.v;
    const act_t* dout = args.dout + head.out + row * head.out_stride;
    const act_t* out = args.out + head.out + row * head.out_stride;
    float delta = 0.f;
    for (u32 c = lane; c < args.head_size; c += 32)
        delta = __fmaf_rn(to_float(dout[c]), to_float(out[c]), delta);
    delta = warp_sum(delta);
    if (lane == 0) args.delta[head.lse + row] = delta;
    const float lse = args.lse[head.lse + row];
    float sum[COLUMNS] = {};
    for (u32 first = 0; first <= row; first += 32) {
        const u32 keys = min(32u, row + 1 - first);
        float ds = 0.f;
        if (lane < keys) {
            const u64 key = first + lane;
            const float p =
                exact::exp(dot(q, k + key * head.qkv_stride, args.head_size) * args.scale - lse);
            ds = p * (dot(dout, v + key * head.wide_stride, args.head_size) - delta);
        }
        add_rows(sum, ds, k + first * head.qkv_stride, head.qkv_stride, keys, args.head_size);
    }
    store_row(args.dqkv + head.dq + row * head.wide_stride, sum, args.scale, args.head_size);
}

extern "C" __global__ void __launch_bounds__(128, 6)
    attention_any_key(const __grid_constant__ AttentionAnyBackwardArgs args) {
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= args.tokens) return;
    const u32 group = args.heads / args.kv_heads, batch = blockIdx.y / args.kv_heads;
    const u32 first_head = batch * args.heads + blockIdx.y % args.kv_heads * group;
    float dk[COLUMNS] = {}, dv[COLUMNS] = {};
    for (u32 member = 0; member < group; ++member) {
        const Head head(args, first_head + member);
        const act_t* q = args.qkv + head.q;
        const act_t* k = args.qkv + head.k + row * head.qkv_stride;
        const act_t* v = args.values + head.v + row * head.wide_stride;
        const act_t* dout = args.dout + head.out;
        for (u32 first = row; first < args.tokens; first += 32) {
            const u32 queries = min(32u, args.tokens - first);
            float p = 0.f, ds = 0.f;
            if (lane < queries) {
                const u64 query = first + lane;
                p = exact::exp(dot(q + query * head.qkv_stride, k, args.head_size) * args.scale -
                               args.lse[head.lse + query]);
                ds = p *
                     (dot(dout + query * head.out_stride, v, args.head_size) - args.delta[head.lse + query]);
            }
            add_rows(dv, p, dout + first * head.out_stride, head.out_stride, queries, args.head_size);
            add_rows(dk, ds, q + first * head.qkv_stride, head.qkv_stride, queries, args.head_size);
        }
    }
    const Head head(args, first_head);
    store_row(args.dqkv + head.dk + row * head.wide_stride, dk, args.scale, args.head_size);
    store_row(args.dqkv + head.dv + row * head.wide_stride, dv, 1.0f, args.head_size);
}
