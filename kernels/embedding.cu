// Token and position embeddings.
//
//   forward    out[b,t,:] = wte[ids[b,t],:] + wpe[t,:]          out (B,T,C), wte (V,C), wpe (>=T,C) act_t
//              without wpe the token's row as it is
//   backward   dwpe[t,:]  (=|+=) sum over b of dout[b,t,:]      float, in order of b
//              dwte[v,:]  +=     sum over ids[i]==v of dout[i,:] float, in order of i; to set it, the caller
//              clears it before
//
// The token gradient: positions are sorted by token with a stable radix sort (two passes of
// 8 bits, no atomics), so that each token's positions lie together and ascend. The sorted list is then cut
// into pieces of 32 positions, whatever tokens they hold: all pieces cost the same, so a token that
// occurs thousands of times is spread over the machine. A token that lies inside one piece is added to dwte
// at once; one that crosses pieces leaves a partial sum a piece, which a last kernel adds by index.
//
// Order of additions, a function of ids alone: within a piece by position, then pieces by index, then dwte.
//
// Launches of the backward pass (n = B*T rows, ids < 65536, n < 2^32):
//   tiles  = ceil(n / 1024)
//   sort_count   (shift 0, source null)     grid tiles, block 256
//   sort_scatter (shift 0, source null)     grid tiles, block 256
//   sort_count   (shift 8, source = first)  grid tiles, block 256
//   sort_scatter (shift 8, source = first)  grid tiles, block 256
//   pieces = ceil(n / 32); slices = ceil(C/8 / 128)
//   embedding_backward_tokens               grid (pieces, slices), block 128
//   embedding_backward_crossing             grid (pieces, slices), block 128
//   embedding_backward_positions            grid (table_rows, slices), block 128
// Scratch, bytes: two lists 4n each; counts 1024*tiles; partials 8*pieces*C. Nothing needs clearing.
#include "common.cuh"

struct EmbeddingArgs {
    act_t* out;        // (n, C)
    const u16* ids;    // (n)
    const act_t* wte;  // (V, C)
    const act_t* wpe;  // (>=T, C), or null
    u64 rows;          // n
    u32 seq;           // T
    u32 channels;      // C
};

// grid ceil(n * C/8 / 256), block 256.
extern "C" __global__ void embedding_forward(const __grid_constant__ EmbeddingArgs args) {
    const u32 chunks = args.channels / 8;
    const u64 index = u64(blockIdx.x) * 256 + threadIdx.x;
    const u64 row = index / chunks;
    if (row >= args.rows) return;
    const u64 column = (index - row * chunks) * 8;
    Chunk<act_t> token, position;
    token.load(args.wte + u64(args.ids[row]) * args.channels + column);
    if (args.wpe) {
        position.load(args.wpe + (row % args.seq) * args.channels + column);
        float a[8], b[8];
        token.widen(a);
        position.widen(b);
#pragma unroll
        for (int i = 0; i < 8; ++i) a[i] += b[i];
        token.narrow(a);
    }
    token.store(args.out + row * args.channels + column);
}

// ---- stable radix sort of positions by token ----------------------------------------------------------

constexpr u32 SORT_TILE = 1024;  // positions a block
constexpr u32 SORT_THREADS = 256;
constexpr u32 SORT_WARPS = SORT_THREADS / 32;
constexpr u32 SORT_ROUNDS = SORT_TILE / SORT_THREADS;
constexpr u32 DIGITS = 256;

struct SortArgs {
    const u16* ids;     // (n)
    const u32* source;  // (n) positions in the order so far; null: 0, 1, 2, ...
    u32* target;        // (n) positions in the new order (unused when counting)
    u32* counts;        // (tiles, 256) positions of each digit in each tile
    u32 rows;           // n
    u32 shift;          // 0, then 8: which digit of the token
};

struct SortTile {
    u32 warp_counts[SORT_WARPS][DIGITS];
};

// Each warp takes 128 neighbouring positions, 32 a round. Gives each its rank among those of its warp with
// the same digit, and leaves the digit counts of each warp in `tile`.
__device__ __forceinline__ void rank_in_warp(const SortArgs& args, SortTile& tile,
                                             u32 (&position)[SORT_ROUNDS], u32 (&digit)[SORT_ROUNDS],
                                             u32 (&rank)[SORT_ROUNDS]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (u32 w = 0; w < SORT_WARPS; ++w) tile.warp_counts[w][threadIdx.x] = 0;
    __syncthreads();
#pragma unroll
    for (u32 round = 0; round < SORT_ROUNDS; ++round) {
        const u32 index = blockIdx.x * SORT_TILE + warp * (32 * SORT_ROUNDS) + round * 32 + lane;
        const bool exists = index < args.rows;
        position[round] = exists ? (args.source ? args.source[index] : index) : 0;
        // Lanes past the end share a digit of their own.
        digit[round] = exists ? (u32(args.ids[position[round]]) >> args.shift) & 255u : DIGITS;
    }
#pragma unroll
    for (u32 round = 0; round < SORT_ROUNDS; ++round) {
        const bool exists = digit[round] < DIGITS;
        const u32 peers = __match_any_sync(FULL_WARP, digit[round]);
        const u32 before = __popc(peers & ((1u << lane) - 1));
        u32 seen = 0;
        if (exists) seen = tile.warp_counts[warp][digit[round]];
        __syncwarp();
        if (exists && before == 0) tile.warp_counts[warp][digit[round]] = seen + __popc(peers);
        __syncwarp();
        rank[round] = seen + before;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(256) sort_count(const __grid_constant__ SortArgs args) {
    __shared__ SortTile tile;
    u32 position[SORT_ROUNDS], digit[SORT_ROUNDS], rank[SORT_ROUNDS];
    rank_in_warp(args, tile, position, digit, rank);
    u32 count = 0;
#pragma unroll
    for (u32 warp = 0; warp < SORT_WARPS; ++warp) count += tile.warp_counts[warp][threadIdx.x];
    args.counts[u64(blockIdx.x) * DIGITS + threadIdx.x] = count;
}

extern "C" __global__ void __launch_bounds__(256) sort_scatter(const __grid_constant__ SortArgs args) {
    __shared__ SortTile tile;
    __shared__ u32 warp_totals[SORT_WARPS];
    u32 position[SORT_ROUNDS], digit[SORT_ROUNDS], rank[SORT_ROUNDS];
    rank_in_warp(args, tile, position, digit, rank);

    // Thread d finds where this tile's positions of digit d begin: after all smaller digits, and after
    // those of digit d in earlier tiles.
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 total = 0, earlier = 0;
#pragma unroll 16
    for (u32 other = 0; other < gridDim.x; ++other) {
        const u32 count = args.counts[u64(other) * DIGITS + threadIdx.x];
        total += count;
        earlier += other < blockIdx.x ? count : 0;
    }
    u32 inclusive = total;
#pragma unroll
    for (u32 step = 1; step < 32; step <<= 1) {
        const u32 left = __shfl_up_sync(FULL_WARP, inclusive, step);
        inclusive += lane >= step ? left : 0;
    }
    if (lane == 31) warp_totals[warp] = inclusive;
    __syncthreads();
    u32 start = inclusive - total + earlier;
    for (u32 w = 0; w < warp; ++w) start += warp_totals[w];
#pragma unroll
    for (u32 w = 0; w < SORT_WARPS; ++w) {
        const u32 count = tile.warp_counts[w][threadIdx.x];
        tile.warp_counts[w][threadIdx.x] = start;
        start += count;
    }
    __syncthreads();
#pragma unroll
    for (u32 round = 0; round < SORT_ROUNDS; ++round)
        if (digit[round] < DIGITS)
            args.target[tile.warp_counts[warp][digit[round]] + rank[round]] = position[round];
}

// ---- sums -----------------------------------------------------------------------------------------------

constexpr u32 PIECE = 32;  // sorted positions a block

struct TokenGradArgs {
    float* dwte;        // (V, C), added to
    // (2, pieces, C): of the token that began before the piece; of the one that ends after it
    float* partials;
    const act_t* dout;  // (n, C)
    const u16* ids;     // (n)
    const u32* sorted;  // (n) positions by token, then by position
    u32 rows;           // n
    u32 channels;       // C
};

__device__ __forceinline__ void add_to(float* target, const float (&sum)[8]) {
    Chunk<float> chunk;
    float old[8];
    chunk.load(target);
    chunk.widen(old);
#pragma unroll
    for (int i = 0; i < 8; ++i) old[i] += sum[i];
    chunk.narrow(old);
    chunk.store(target);
}

// One block a piece and slice of 128 chunks of channels: 8 channels a thread.
extern "C" __global__ void __launch_bounds__(128)
    embedding_backward_tokens(const __grid_constant__ TokenGradArgs args) {
    __shared__ u32 positions[PIECE];
    __shared__ u32 tokens[PIECE + 2];  // one neighbour on each side; 0x10000 is no token
    const u32 piece = blockIdx.x, first = piece * PIECE;
    const u32 length = min(PIECE, args.rows - first);
    if (threadIdx.x < PIECE + 2) {
        const u32 index = first + threadIdx.x - 1;  // wraps to a large number before the first
        const bool exists = index < args.rows && threadIdx.x <= length + 1;
        const u32 position = exists ? args.sorted[index] : 0;
        tokens[threadIdx.x] = exists ? args.ids[position] : 0x10000u;
        if (threadIdx.x >= 1 && threadIdx.x <= PIECE) positions[threadIdx.x - 1] = position;
    }
    __syncthreads();
    const u32 column = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (column >= args.channels) return;

    float sum[8] = {};
    bool from_before = tokens[0] == tokens[1];
    constexpr u32 BATCH = 8;  // rows in flight
    for (u32 at = 0; at < length; at += BATCH) {
        Chunk<act_t> rows[BATCH];
#pragma unroll
        for (u32 i = 0; i < BATCH; ++i)
            if (at + i < length) rows[i].load(args.dout + u64(positions[at + i]) * args.channels + column);
#pragma unroll
        for (u32 i = 0; i < BATCH; ++i) {
            if (at + i >= length) break;
            float x[8];
            rows[i].widen(x);
#pragma unroll
            for (int k = 0; k < 8; ++k) sum[k] += x[k];
            const u32 token = tokens[at + i + 1], next = tokens[at + i + 2];
            const bool last_of_piece = at + i + 1 == length;
            if (token == next && !last_of_piece) continue;
            const bool to_after = token == next;
            if (!from_before && !to_after) {
                add_to(args.dwte + u64(token) * args.channels + column, sum);
            } else {
                // A piece that one token fills, coming from before and going on, counts as `before`.
                const u64 slot = from_before ? piece : u64(gridDim.x) + piece;
                Chunk<float> chunk;
                chunk.narrow(sum);
                chunk.store(args.partials + slot * args.channels + column);
            }
            from_before = false;
#pragma unroll
            for (int k = 0; k < 8; ++k) sum[k] = 0.f;
        }
    }
}

// Same grid. The block of the piece in which a crossing token begins adds its partial sums in order.
extern "C" __global__ void __launch_bounds__(128)
    embedding_backward_crossing(const __grid_constant__ TokenGradArgs args) {
    const u32 piece = blockIdx.x, pieces = gridDim.x, first = piece * PIECE;
    const u32 column = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (column >= args.channels || piece + 1 == pieces) return;
    const u32 token = args.ids[args.sorted[first + PIECE - 1]];
    if (args.ids[args.sorted[first + PIECE]] != token) return;                       // ends here
    if (first > 0 && args.ids[args.sorted[first - 1]] == token) return;              // began before
    float sum[8];
    Chunk<float> begun;
    begun.load(args.partials + (u64(pieces) + piece) * args.channels + column);
    begun.widen(sum);
    // The token goes on through piece p while the first position of p is of it. A batch is read before it is
    // known how much of it belongs to the token: what lies beyond is not added.
    constexpr u32 BATCH = 8;
    bool goes_on = true;
    for (u32 p = piece + 1; goes_on && p < pieces; p += BATCH) {
        Chunk<float> chunks[BATCH];
        u32 tokens[BATCH];
#pragma unroll
        for (u32 i = 0; i < BATCH; ++i) {
            const u32 other = min(p + i, pieces - 1);
            tokens[i] = args.ids[args.sorted[other * PIECE]];
            chunks[i].load(args.partials + u64(other) * args.channels + column);
        }
#pragma unroll
        for (u32 i = 0; i < BATCH; ++i) {
            goes_on = goes_on && p + i < pieces && tokens[i] == token;
            float x[8];
            chunks[i].widen(x);
            if (goes_on) {
#pragma unroll
                for (int k = 0; k < 8; ++k) sum[k] += x[k];
            }
        }
    }
    add_to(args.dwte + u64(token) * args.channels + column, sum);
}

struct PositionGradArgs {
    float* dwpe;        // (table_rows, C)
    const act_t* dout;  // (B, T, C)
    u32 batch;          // B
    u32 seq;            // T
    u32 channels;       // C
    u32 add;            // 1: dwpe += ; 0: dwpe = , and rows from T on become zero
};

// grid (table_rows when setting, T when adding; slices), block 128.
extern "C" __global__ void __launch_bounds__(128)
    embedding_backward_positions(const __grid_constant__ PositionGradArgs args) {
    const u32 column = (blockIdx.y * 128 + threadIdx.x) * 8, t = blockIdx.x;
    if (column >= args.channels) return;
    float* target = args.dwpe + u64(t) * args.channels + column;
    float sum[8] = {};
    if (t < args.seq) {
        const act_t* source = args.dout + u64(t) * args.channels + column;
        const u64 stride = u64(args.seq) * args.channels;
        constexpr u32 BATCH = 8;  // rows in flight
        for (u32 b = 0; b < args.batch; b += BATCH) {
            Chunk<act_t> rows[BATCH];
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i)
                if (b + i < args.batch) rows[i].load(source + (b + i) * stride);
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                if (b + i >= args.batch) break;
                float x[8];
                rows[i].widen(x);
#pragma unroll
                for (int k = 0; k < 8; ++k) sum[k] += x[k];
            }
        }
    }
    if (args.add) {
        add_to(target, sum);
    } else {
        Chunk<float> chunk;
        chunk.narrow(sum);
        chunk.store(target);
    }
}
