// Sums of whole buffers. Any length; buffers start at a multiple of 16 bytes.
//
//   add_f32   dst[i] += src[i]
//
// grid ceil(length / 4096), block 256: four groups of four elements a thread, all loaded before the first is
// used.
#include "common.cuh"

constexpr u32 EW_THREADS = 256;
constexpr u32 EW_GROUPS = 4;

struct AddArgs {
    float* dst;        // (length)
    const float* src;  // (length)
    u64 length;
};

// Calls group(i) for each of the thread's groups of four that are whole, single(i) for elements of a cut one.
template <typename Group, typename Single>
__device__ __forceinline__ void for_each_group(u64 length, Group group, Single single) {
    const u64 first = u64(blockIdx.x) * (EW_THREADS * 4 * EW_GROUPS) + threadIdx.x * 4;
#pragma unroll
    for (u32 k = 0; k < EW_GROUPS; ++k) {
        const u64 i = first + k * (EW_THREADS * 4);
        if (i + 4 <= length) group(i, k);
        else for (u64 j = i; j < length; ++j) single(j);
    }
}

extern "C" __global__ void __launch_bounds__(256) add_f32(const __grid_constant__ AddArgs args) {
    float4 a[EW_GROUPS], b[EW_GROUPS];
    for_each_group(args.length, [&](u64 i, u32 k) {
        a[k] = *reinterpret_cast<const float4*>(args.dst + i);
        b[k] = *reinterpret_cast<const float4*>(args.src + i);
    }, [](u64) {});
    for_each_group(
        args.length,
        [&](u64 i, u32 k) {
            *reinterpret_cast<float4*>(args.dst + i) =
                make_float4(a[k].x + b[k].x, a[k].y + b[k].y, a[k].z + b[k].z, a[k].w + b[k].w);
        },
        [&](u64 j) { args.dst[j] += args.src[j]; });
}
