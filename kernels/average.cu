// The average of the weights over the updates, one tensor a launch.
//
//   average[i] = fma(rate, weight[i] - average[i], average[i])
//
// The difference is rounded, then the fused product and sum. weight is the float master where there is one,
// else the parameter, widened. Any length; buffers start at a multiple of 8 bytes.
//
// grid ceil(length / 1024), block 256: four elements a thread, 256 apart.
#include "common.cuh"

struct AverageArgs {
    float* average;       // (length)
    const act_t* param;   // (length)
    const float* master;  // (length) or null
    u64 length;
    float rate;
    u32 unused;  // 0
};

extern "C" __global__ void __launch_bounds__(256) average(const __grid_constant__ AverageArgs args) {
    const u64 first = u64(blockIdx.x) * 1024 + threadIdx.x;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u64 i = first + k * 256;
        if (i >= args.length) return;
        const float weight = args.master != nullptr ? args.master[i] : to_float(args.param[i]);
        const float old = args.average[i];
        args.average[i] = __fmaf_rn(args.rate, __fsub_rn(weight, old), old);
    }
}
