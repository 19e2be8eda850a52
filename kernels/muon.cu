// Muon: what surrounds its matrix products (src/optim/muon.rs). One matrix (rows, cols), row-major, a launch.
//
//   g = grad * grad_scale
//   m = fma(beta, m, (1 - beta) * g)                       momentum
//   u = fma(beta, m, (1 - beta) * g)                       what is ahead of it
//   x = bf16(u * float(1 / max(|u|, 1e-7)))                direction
//   square = bf16(fma(c, square, b * gram) + a I)          polynomial of an iteration
//   w = fma(-rate, fma(decay, w, scale * x), w)            update
//
// A direction is stored (short, long): transposed where rows > cols. Squares are exact in double. Order of
// |u|^2: thread t of 256 adds the elements t, t+256, ... of a chunk of 4096, the butterfly of a warp, the 8
// warps by index; over chunks likewise.
#include "rounding.cuh"

constexpr u32 MUON_CHUNK = 4096;
constexpr u32 MUON_THREADS = 256;
constexpr u32 MUON_TILE = 64;  // rows and columns of a block's part of a matrix
constexpr double MUON_LEAST_NORM = 1e-7;

struct MuonDirectionArgs {
    act_t* direction;   // (short, long)
    float* momentum;    // (rows, cols)
    const float* grad;  // (rows, cols)
    double* partials;   // (ceil(rows * cols / 4096))
    u64 rows;
    u64 cols;
    float beta;
    float grad_scale;
};

struct MuonPolynomialArgs {
    act_t* square;      // (order, order)
    const act_t* gram;  // (order, order)
    u64 order;
    float a;
    float b;
    float c;
    u32 unused;  // 0
};

struct MuonUpdateArgs {
    act_t* param;            // (rows, cols)
    float* master;           // (rows, cols) or null
    const act_t* direction;  // (short, long)
    u64 rows;
    u64 cols;
    u64 offset;  // logical index of the first element in its tensor
    u64 step;
    float learning_rate;
    float weight_decay;
    float scale;
    u32 id;  // the tensor's number in the model
    u32 rounding_key[2];
};

__device__ __forceinline__ float muon_ahead(float beta, float grad_scale, float m, float grad) {
    return __fmaf_rn(beta, m, __fmul_rn(1.0f - beta, __fmul_rn(grad, grad_scale)));
}

// Moves the momentum on, and leaves the sums of squares of what is ahead of it.
// grid ceil(rows * cols / 4096), block 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_momentum(const __grid_constant__ MuonDirectionArgs args) {
    const u64 begin = u64(blockIdx.x) * MUON_CHUNK + threadIdx.x, length = args.rows * args.cols;
    constexpr u32 EACH = MUON_CHUNK / MUON_THREADS, BATCH = 8;
    double sum = 0.0;
#pragma unroll
    for (u32 first = 0; first < EACH; first += BATCH) {
        float m[BATCH], grad[BATCH];
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            const u64 i = begin + (first + k) * MUON_THREADS;
            m[k] = i < length ? args.momentum[i] : 0.f;
            grad[k] = i < length ? args.grad[i] : 0.f;
        }
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            const u64 i = begin + (first + k) * MUON_THREADS;
            if (i >= length) break;
            const float next = muon_ahead(args.beta, args.grad_scale, m[k], grad[k]);
            const float u = muon_ahead(args.beta, args.grad_scale, next, grad[k]);
            args.momentum[i] = next;
            sum += double(u) * double(u);
        }
    }
    sum = block_sum<MUON_THREADS>(sum);
    if (threadIdx.x == 0) args.partials[blockIdx.x] = sum;
}

// Divides what is ahead of the momentum by its norm.
// grid ceil(rows / 64) * ceil(cols / 64), block 256.
extern "C" __global__ void __launch_bounds__(256)
    muon_normalize(const __grid_constant__ MuonDirectionArgs args) {
    __shared__ float tile[MUON_TILE][MUON_TILE + 1];
    const u64 chunks = (args.rows * args.cols + MUON_CHUNK - 1) / MUON_CHUNK;
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < chunks; i += MUON_THREADS) sum += args.partials[i];
    const double norm = __dsqrt_rn(block_sum<MUON_THREADS>(sum));
    const float scale = __double2float_rn(__ddiv_rn(1.0, norm < MUON_LEAST_NORM ? MUON_LEAST_NORM : norm));
    const bool tall = args.rows > args.cols;
    const u64 across = (args.cols + MUON_TILE - 1) / MUON_TILE;
    const u64 row0 = blockIdx.x / across * MUON_TILE, col0 = blockIdx.x % across * MUON_TILE;
    const u32 x = threadIdx.x % MUON_TILE, y = threadIdx.x / MUON_TILE;
#pragma unroll 4
    for (u32 k = y; k < MUON_TILE; k += MUON_THREADS / MUON_TILE) {
        const u64 row = row0 + k, col = col0 + x;
        if (row >= args.rows || col >= args.cols) continue;
        const u64 i = row * args.cols + col;
        const float u = muon_ahead(args.beta, args.grad_scale, args.momentum[i], args.grad[i]);
        if (tall) tile[k][x] = __fmul_rn(u, scale);
        else from_float(__fmul_rn(u, scale), args.direction[i]);
    }
    if (!tall) return;
    __syncthreads();
#pragma unroll 4
    for (u32 k = y; k < MUON_TILE; k += MUON_THREADS / MUON_TILE) {
        const u64 row = row0 + x, col = col0 + k;
        if (row < args.rows && col < args.cols) from_float(tile[x][k], args.direction[col * args.rows + row]);
    }
}

// grid ceil(order * order / 1024), block 256: four elements a thread, 256 apart.
extern "C" __global__ void __launch_bounds__(256)
    muon_polynomial(const __grid_constant__ MuonPolynomialArgs args) {
    const u64 first = u64(blockIdx.x) * 1024 + threadIdx.x;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = first + k * 256;
        if (i >= args.order * args.order) return;
        const float sum =
            __fmaf_rn(args.c, to_float(args.square[i]), __fmul_rn(args.b, to_float(args.gram[i])));
        from_float(i / args.order == i % args.order ? __fadd_rn(sum, args.a) : sum, args.square[i]);
    }
}

// grid ceil(rows / 64) * ceil(cols / 64), block 256.
extern "C" __global__ void __launch_bounds__(256) muon_update(const __grid_constant__ MuonUpdateArgs args) {
    __shared__ float tile[MUON_TILE][MUON_TILE + 1];
    const bool tall = args.rows > args.cols;
    const u64 across = (args.cols + MUON_TILE - 1) / MUON_TILE;
    const u64 row0 = blockIdx.x / across * MUON_TILE, col0 = blockIdx.x % across * MUON_TILE;
    const u32 x = threadIdx.x % MUON_TILE, y = threadIdx.x / MUON_TILE;
    if (tall) {
#pragma unroll 4
        for (u32 k = y; k < MUON_TILE; k += MUON_THREADS / MUON_TILE) {
            const u64 row = row0 + x, col = col0 + k;
            if (row < args.rows && col < args.cols)
                tile[x][k] = to_float(args.direction[col * args.rows + row]);
        }
        __syncthreads();
    }
#pragma unroll 4
    for (u32 k = y; k < MUON_TILE; k += MUON_THREADS / MUON_TILE) {
        const u64 row = row0 + k, col = col0 + x;
        if (row >= args.rows || col >= args.cols) continue;
        const u64 i = row * args.cols + col;
        const float direction = tall ? tile[k][x] : to_float(args.direction[i]);
        const float old = args.master != nullptr ? args.master[i] : to_float(args.param[i]);
        const float step = __fmaf_rn(args.weight_decay, old, __fmul_rn(args.scale, direction));
        const float w = __fmaf_rn(-args.learning_rate, step, old);
        if (args.master != nullptr) {
            args.master[i] = w;
            from_float(w, args.param[i]);
        } else {
            const u64 at = args.offset + i;
            const Words4 random =
                philox(args.rounding_key[0], args.rounding_key[1], at / 4, u32(args.step), args.id);
            const u32 word = at % 4;
            from_float_stochastic(w, word == 0   ? random.word[0]
                                     : word == 1 ? random.word[1]
                                     : word == 2 ? random.word[2]
                                                 : random.word[3],
                                  args.param[i]);
        }
    }
}
