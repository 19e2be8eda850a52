// Squared ReLU and SwiGLU, and their gradients, element by element.
//
//   squared_relu_forward    out  = max(pre, 0)^2
//   squared_relu_backward   dpre = dout * 2 max(pre, 0)
//   swiglu_forward          out  = silu(gate) * up,  silu(x) = x / (1 + exp(-x))
//   swiglu_backward         dgate = dout * up * silu'(gate),  dup = dout * silu(gate)
//
//   out, dout (length) act_t; pre, dpre (length), of SwiGLU (length, 2): neighbours are gate and up
//
// All four are bound by memory. A load is 16 bytes of pre (of floats two loads of them), neighbours in a
// warp, and a thread loads all that it needs before it computes. Of SwiGLU they make four outputs, 8 bytes.
#include "common.cuh"
#include "activate.cuh"

struct ActivateArgs {
    act_t* out;
    const act_t* pre;
    u64 length;  // elements of out, any
};

struct ActivateBackwardArgs {
    act_t* dpre;        // of squared ReLU may be dout itself
    const act_t* dout;
    const act_t* pre;
    u64 length;         // elements of dout, any
};

constexpr u32 UNROLL = 2;

// Four elements.
template <typename T>
struct HalfChunk;

template <>
struct HalfChunk<bf16> {
    uint2 words;

    __device__ __forceinline__ void load(const bf16* p) { words = *reinterpret_cast<const uint2*>(p); }
    __device__ __forceinline__ void store(bf16* p) const { *reinterpret_cast<uint2*>(p) = words; }
    __device__ __forceinline__ void widen(float (&x)[4]) const {
        x[0] = __uint_as_float(words.x << 16), x[1] = __uint_as_float(words.x & 0xffff0000u);
        x[2] = __uint_as_float(words.y << 16), x[3] = __uint_as_float(words.y & 0xffff0000u);
    }
    __device__ __forceinline__ void narrow(const float (&x)[4]) {
        words = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
    }
};

template <>
struct HalfChunk<float> {
    float4 values;

    __device__ __forceinline__ void load(const float* p) { values = *reinterpret_cast<const float4*>(p); }
    __device__ __forceinline__ void store(float* p) const { *reinterpret_cast<float4*>(p) = values; }
    __device__ __forceinline__ void widen(float (&x)[4]) const {
        x[0] = values.x, x[1] = values.y, x[2] = values.z, x[3] = values.w;
    }
    __device__ __forceinline__ void narrow(const float (&x)[4]) {
        values = make_float4(x[0], x[1], x[2], x[3]);
    }
};

// First of the elements that the thread takes `width` at a time, the next ones 256 threads further on.
template <u32 width>
__device__ __forceinline__ u64 first_of_thread() {
    return u64(blockIdx.x) * (256 * width * UNROLL) + threadIdx.x * width;
}

// grid ceil(length / 4096), block 256.
extern "C" __global__ void __launch_bounds__(256)
    squared_relu_forward(const __grid_constant__ ActivateArgs args) {
    const u64 first = first_of_thread<8>();
    Chunk<act_t> held[UNROLL];
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k)
        if (first + k * 2048 + 8 <= args.length) held[k].load(args.pre + first + k * 2048);
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 2048;
        if (at + 8 <= args.length) {
            float x[8];
            held[k].widen(x);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = squared_relu(x[i]);
            held[k].narrow(x);
            held[k].store(args.out + at);
        } else {
            for (u64 i = at; i < args.length; ++i)
                from_float(squared_relu(to_float(args.pre[i])), args.out[i]);
        }
    }
}

// grid ceil(length / 4096), block 256.
extern "C" __global__ void __launch_bounds__(256)
    squared_relu_backward(const __grid_constant__ ActivateBackwardArgs args) {
    const u64 first = first_of_thread<8>();
    Chunk<act_t> dout[UNROLL], pre[UNROLL];
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 2048;
        if (at + 8 <= args.length) dout[k].load(args.dout + at), pre[k].load(args.pre + at);
    }
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 2048;
        if (at + 8 <= args.length) {
            float d[8], x[8];
            dout[k].widen(d), pre[k].widen(x);
#pragma unroll
            for (int i = 0; i < 8; ++i) d[i] *= squared_relu_slope(x[i]);
            dout[k].narrow(d);
            dout[k].store(args.dpre + at);
        } else {
            for (u64 i = at; i < args.length; ++i) {
                const float slope = squared_relu_slope(to_float(args.pre[i]));
                from_float(to_float(args.dout[i]) * slope, args.dpre[i]);
            }
        }
    }
}

// grid ceil(length / 2048), block 256.
extern "C" __global__ void __launch_bounds__(256) swiglu_forward(const __grid_constant__ ActivateArgs args) {
    const u64 first = first_of_thread<4>();
    Chunk<act_t> held[UNROLL];
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k)
        if (first + k * 1024 + 4 <= args.length) held[k].load(args.pre + 2 * (first + k * 1024));
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 1024;
        if (at + 4 <= args.length) {
            float x[8], y[4];
            held[k].widen(x);
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = swiglu(x[2 * i], x[2 * i + 1]);
            HalfChunk<act_t> out;
            out.narrow(y);
            out.store(args.out + at);
        } else {
            for (u64 i = at; i < args.length; ++i) {
                const float y = swiglu(to_float(args.pre[2 * i]), to_float(args.pre[2 * i + 1]));
                from_float(y, args.out[i]);
            }
        }
    }
}

// grid ceil(length / 2048), block 256.
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward(const __grid_constant__ ActivateBackwardArgs args) {
    const u64 first = first_of_thread<4>();
    HalfChunk<act_t> dout[UNROLL];
    Chunk<act_t> pre[UNROLL];
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 1024;
        if (at + 4 <= args.length) dout[k].load(args.dout + at), pre[k].load(args.pre + 2 * at);
    }
#pragma unroll
    for (u32 k = 0; k < UNROLL; ++k) {
        const u64 at = first + k * 1024;
        if (at + 4 <= args.length) {
            float d[4], x[8], y[8];
            dout[k].widen(d), pre[k].widen(x);
#pragma unroll
            for (int i = 0; i < 4; ++i) swiglu_gradient(d[i], x[2 * i], x[2 * i + 1], y[2 * i], y[2 * i + 1]);
            pre[k].narrow(y);
            pre[k].store(args.dpre + 2 * at);
        } else {
            for (u64 i = at; i < args.length; ++i) {
                float dgate, dup;
                swiglu_gradient(to_float(args.dout[i]), to_float(args.pre[2 * i]),
                                to_float(args.pre[2 * i + 1]), dgate, dup);
                from_float(dgate, args.dpre[2 * i]);
                from_float(dup, args.dpre[2 * i + 1]);
            }
        }
    }
}
