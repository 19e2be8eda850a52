// AdamW over all tensors, and the sums of squares behind the gradient norm: one launch each.
//
//   g = grad * grad_scale
//   m = beta1*m + (1-beta1)*g;  v = beta2*v + (1-beta2)*g*g
//   p = p - learning_rate * (m*correction1 / (sqrt(v*correction2) + epsilon) + weight_decay*p)
//
// p is the float master where there is one, and the parameter is its value rounded to nearest. Without a
// master a bf16 parameter is rounded stochastically: it goes up with the probability of the 16 bits cut off,
// by the random numbers of rounding.cuh.
//
// Tensors are cut into chunks of 16384 elements that never cross a tensor; a block finds its tensor by binary
// search. Four elements a thread at a time: float streams move 16 bytes a lane, bf16 8.
#include "rounding.cuh"

constexpr u32 STEP_CHUNK = 16384;
constexpr u32 STEP_THREADS = 256;

struct AdamwTensor {
    act_t* param;        // (length), first element at logical index `offset`
    float* master;       // (length) or null
    const float* grad;   // (length)
    float* adam_m;       // (length)
    float* adam_v;       // (length)
    u64 length;          // elements here
    u64 offset;          // logical index of the first element, a multiple of 4: 0 unless sharded
    u64 first;           // chunks of all tensors before this one
    float weight_decay;
    u32 id;              // the tensor's number in the model
};

struct AdamwArgs {
    const AdamwTensor* tensors;  // (count) on the device
    u64 step;
    u32 count;
    float learning_rate;
    float beta1;
    float beta2;
    float epsilon;
    float correction1;  // 1/(1 - beta1^t)
    float correction2;  // 1/(1 - beta2^t)
    float grad_scale;
    u32 rounding_key[2];
};

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ __forceinline__ float4 load4(const bf16* p) {
    const uint2 w = *reinterpret_cast<const uint2*>(p);
    return make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u),
                       __uint_as_float(w.y << 16), __uint_as_float(w.y & 0xffff0000u));
}
__device__ __forceinline__ void store4(float* p, float4 x) { *reinterpret_cast<float4*>(p) = x; }

struct alignas(8) FourBf16 { bf16 x[4]; };
struct alignas(16) FourFloat { float x[4]; };
__device__ __forceinline__ void store4(bf16* p, const bf16 (&x)[4]) {
    *reinterpret_cast<FourBf16*>(p) = {{x[0], x[1], x[2], x[3]}};
}
__device__ __forceinline__ void store4(float* p, const float (&x)[4]) {
    *reinterpret_cast<FourFloat*>(p) = {{x[0], x[1], x[2], x[3]}};
}

// One element. Returns the new p.
__device__ __forceinline__ float adamw_element(const AdamwArgs& args, float decay, float p, float grad,
                                               float& m, float& v) {
    const float g = grad * args.grad_scale;
    m = __fmaf_rn(args.beta1, m, (1.0f - args.beta1) * g);
    v = __fmaf_rn(args.beta2, v, (1.0f - args.beta2) * g * g);
    const float direction = __fdiv_rn(m * args.correction1, __fsqrt_rn(v * args.correction2) + args.epsilon);
    return __fmaf_rn(-args.learning_rate, __fmaf_rn(decay, p, direction), p);
}

// grid: chunks of all tensors, the sum of ceil(length / 16384); block 256.
extern "C" __global__ void __launch_bounds__(256) adamw(const __grid_constant__ AdamwArgs args) {
    const AdamwTensor tensor = args.tensors[owner_of(args.tensors, args.count, blockIdx.x)];
    const u64 begin = (blockIdx.x - tensor.first) * STEP_CHUNK;
    const u64 end = min(begin + STEP_CHUNK, tensor.length);
    const bool has_master = tensor.master != nullptr;
    constexpr u32 BATCH = 2;  // groups of four a thread has in flight
    for (u64 at = begin + threadIdx.x * 4; at < end; at += BATCH * STEP_THREADS * 4) {
        float4 p[BATCH], grad[BATCH], m[BATCH], v[BATCH];
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            const u64 i = at + k * STEP_THREADS * 4;
            if (i + 4 <= end) {
                p[k] = has_master ? load4(tensor.master + i) : load4(tensor.param + i);
                grad[k] = load4(tensor.grad + i);
                m[k] = load4(tensor.adam_m + i);
                v[k] = load4(tensor.adam_v + i);
            }
        }
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            const u64 i = at + k * STEP_THREADS * 4;
            if (i >= end) break;
            Words4 random = {};
            if (sizeof(act_t) == 2 && !has_master)
                random = philox(args.rounding_key[0], args.rounding_key[1], (tensor.offset + i) / 4,
                                u32(args.step), tensor.id);
            if (i + 4 <= end) {
                float x[4] = {p[k].x, p[k].y, p[k].z, p[k].w};
                x[0] = adamw_element(args, tensor.weight_decay, x[0], grad[k].x, m[k].x, v[k].x);
                x[1] = adamw_element(args, tensor.weight_decay, x[1], grad[k].y, m[k].y, v[k].y);
                x[2] = adamw_element(args, tensor.weight_decay, x[2], grad[k].z, m[k].z, v[k].z);
                x[3] = adamw_element(args, tensor.weight_decay, x[3], grad[k].w, m[k].w, v[k].w);
                store4(tensor.adam_m + i, m[k]);
                store4(tensor.adam_v + i, v[k]);
                act_t narrow[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (has_master) from_float(x[j], narrow[j]);
                    else from_float_stochastic(x[j], random.word[j], narrow[j]);
                }
                if (has_master) store4(tensor.master + i, x);
                store4(tensor.param + i, narrow);
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    if (i + j >= end) break;
                    const u64 e = i + j;
                    float moment1 = tensor.adam_m[e], moment2 = tensor.adam_v[e];
                    const float old = has_master ? tensor.master[e] : to_float(tensor.param[e]);
                    const float x =
                        adamw_element(args, tensor.weight_decay, old, tensor.grad[e], moment1, moment2);
                    tensor.adam_m[e] = moment1;
                    tensor.adam_v[e] = moment2;
                    if (has_master) {
                        tensor.master[e] = x;
                        from_float(x, tensor.param[e]);
                    } else {
                        from_float_stochastic(x, random.word[j], tensor.param[e]);
                    }
                }
            }
        }
    }
}

// ---- sum of squares ---------------------------------------------------------------------------------------

// Squares of four neighbours are added in float, everything above in double. Order: groups t, t+256, ... of a
// chunk in thread t, the butterfly of a warp, the 8 warps by index; over chunks likewise, one block a tensor.
// Infinity and NaN come out as infinity or NaN.

struct SquaresTensor {
    const float* data;  // (length)
    u64 length;
    u64 first;  // chunks of all tensors before this one
};

struct SquaresArgs {
    const SquaresTensor* tensors;  // (count) on the device
    double* partials;              // (chunks of all tensors)
    double* sums;                  // (count), written by the second kernel
    u64 chunks;                    // of all tensors
    u32 count;
    u32 unused;  // 0
};

// grid: chunks of all tensors; block 256.
extern "C" __global__ void __launch_bounds__(256)
    sum_squares_partial(const __grid_constant__ SquaresArgs args) {
    const SquaresTensor tensor = args.tensors[owner_of(args.tensors, args.count, blockIdx.x)];
    const u64 begin = (blockIdx.x - tensor.first) * STEP_CHUNK;
    const u64 end = min(begin + STEP_CHUNK, tensor.length);
    constexpr u32 BATCH = 8;  // groups of four a thread has in flight
    double sum = 0.0;
    for (u64 at = begin + threadIdx.x * 4; at < end; at += BATCH * STEP_THREADS * 4) {
        float4 x[BATCH];
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k) {
            const u64 i = at + k * STEP_THREADS * 4;
            x[k] = make_float4(0.f, 0.f, 0.f, 0.f);
            if (i + 4 <= end) {
                x[k] = load4(tensor.data + i);
            } else if (i < end) {
                x[k].x = tensor.data[i];
                if (i + 1 < end) x[k].y = tensor.data[i + 1];
                if (i + 2 < end) x[k].z = tensor.data[i + 2];
            }
        }
#pragma unroll
        for (u32 k = 0; k < BATCH; ++k)
            sum += double(x[k].x * x[k].x + x[k].y * x[k].y + x[k].z * x[k].z + x[k].w * x[k].w);
    }
    sum = block_sum<STEP_THREADS>(sum);
    if (threadIdx.x == 0) args.partials[blockIdx.x] = sum;
}

// grid count, block 256.
extern "C" __global__ void __launch_bounds__(256)
    sum_squares_reduce(const __grid_constant__ SquaresArgs args) {
    const u64 begin = args.tensors[blockIdx.x].first;
    const u64 end = blockIdx.x + 1 < args.count ? args.tensors[blockIdx.x + 1].first : args.chunks;
    double sum = 0.0;
    for (u64 i = begin + threadIdx.x; i < end; i += STEP_THREADS) sum += args.partials[i];
    sum = block_sum<STEP_THREADS>(sum);
    if (threadIdx.x == 0) args.sums[blockIdx.x] = sum;
}
