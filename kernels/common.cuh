// Types, vector access and reductions that every kernel shares.
//
// NVRTC compiles kernels without include paths, for a release or on the machine that runs them, so nothing
// here comes from CUDA's headers: bf16 is a 16-bit struct converted by one PTX instruction. Compile with
// exactly one of
//   -DACT_BF16=1   weights, activations and their gradients are bf16
//   -DACT_F32=1    everything is float
//
// Conventions of all kernels
//   * One argument struct a kernel, passed by value as a __grid_constant__: 8-byte fields first, then
//     4-byte fields, padded by hand to a multiple of 8 bytes. The host mirrors it field by field.
//   * Buffers start at a multiple of 16 bytes. Rows are dense; a row's length is a multiple of 8.
//   * Grids are functions of the shape. Partial float sums go to memory and are added by index.
//   * Eight elements make a chunk: the unit of one thread's work on a row, for both element types, so
//     that the order of additions does not depend on the element type.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(2) bf16 {
    u16 bits;
};

#if defined(ACT_BF16) && ACT_BF16
typedef bf16 act_t;
#elif defined(ACT_F32) && ACT_F32
typedef float act_t;
#else
#error "define ACT_BF16=1 or ACT_F32=1"
#endif

constexpr u32 FULL_WARP = 0xffffffffu;

// ---- conversions ----------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Rounds to nearest, ties to even.
__device__ __forceinline__ void from_float(float x, float& out) { out = x; }

__device__ __forceinline__ void from_float(float x, bf16& out) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
}

// Two floats as neighbouring bf16, `low` at the lower address.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// The value that memory will hold: `x` rounded to the element type and widened again.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
    T stored;
    from_float(x, stored);
    return to_float(stored);
}

// ---- a chunk: eight elements as they lie in memory --------------------------------------------------

template <typename T>
struct Chunk;

template <>
struct Chunk<bf16> {
    uint4 words;

    __device__ __forceinline__ void load(const bf16* p) { words = *reinterpret_cast<const uint4*>(p); }
    // Of what no thread of the kernel writes: may be read before what was written above.
    __device__ __forceinline__ void load_constant(const bf16* p) {
        words = __ldg(reinterpret_cast<const uint4*>(p));
    }
    __device__ __forceinline__ void store(bf16* p) const { *reinterpret_cast<uint4*>(p) = words; }
    __device__ __forceinline__ void clear() { words = make_uint4(0, 0, 0, 0); }
    __device__ __forceinline__ void widen(float (&x)[8]) const {
        const u32 w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = __uint_as_float(w[i] << 16);
            x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
    }
    __device__ __forceinline__ void narrow(const float (&x)[8]) {
        words = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                           pack_bf16(x[6], x[7]));
    }
};

template <>
struct Chunk<float> {
    float4 low, high;

    __device__ __forceinline__ void load(const float* p) {
        low = reinterpret_cast<const float4*>(p)[0];
        high = reinterpret_cast<const float4*>(p)[1];
    }
    __device__ __forceinline__ void load_constant(const float* p) {
        low = __ldg(reinterpret_cast<const float4*>(p));
        high = __ldg(reinterpret_cast<const float4*>(p) + 1);
    }
    __device__ __forceinline__ void store(float* p) const {
        reinterpret_cast<float4*>(p)[0] = low;
        reinterpret_cast<float4*>(p)[1] = high;
    }
    __device__ __forceinline__ void clear() { low = high = make_float4(0.f, 0.f, 0.f, 0.f); }
    __device__ __forceinline__ void widen(float (&x)[8]) const {
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    }
    __device__ __forceinline__ void narrow(const float (&x)[8]) {
        low = make_float4(x[0], x[1], x[2], x[3]);
        high = make_float4(x[4], x[5], x[6], x[7]);
    }
};

// ---- reductions ------------------------------------------------------------------------------------

// Butterflies: every lane gets the same bits, the tree is that of the lane numbers.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

// Sum over a block of THREADS, once in a kernel: the butterfly of each warp, then the warps by index. Every
// thread gets the same bits.
template <u32 THREADS>
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double warps[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = warps[0];
#pragma unroll
    for (u32 w = 1; w < THREADS / 32; ++w) sum += warps[w];
    return sum;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

// Index of the last of `count` entries whose `first` is at most `index`. `first` ascends from 0 and an
// entry owns the indices up to the next entry's `first`; entries that own nothing are skipped.
template <typename Entry>
__device__ __forceinline__ u32 owner_of(const Entry* table, u32 count, u64 index) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (table[middle].first <= index) low = middle; else high = middle;
    }
    return low;
}
