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

extern "C" __global__ void __launch_bounds__(256) add_f32(const __grid_constant__ AddArgs args) {
    const u64 first = u64(blockIdx.x) * (EW_THREADS * 4 * EW_GROUPS) + threadIdx.x * 4;
    float4 a[EW_GROUPS], b[EW_GROUPS];
#pragma unroll
    for (u32 k = 0; k < EW_GROUPS; ++k) {
        const u64 i = first + k * (EW_THREADS * 4);
        if (i + 4 > args.length) continue;
        a[k] = *reinterpret_cast<const float4*>(args.dst + i);
        b[k] = *reinterpret_cast<const float4*>(args.src + i);
    }
#pragma unroll
    for (u32 k = 0; k < EW_GROUPS; ++k) {
        const u64 i = first + k * (EW_THREADS * 4);
        if (i + 4 <= args.length)
            *reinterpret_cast<float4*>(args.dst + i) =
                make_float4(a[k].x + b[k].x, a[k].y + b[k].y, a[k].z + b[k].z, a[k].w + b[k].w);
        else for (u64 j = i; j < args.length; ++j) args.dst[j] += args.src[j];
    }
}
