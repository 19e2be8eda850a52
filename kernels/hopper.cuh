// Hopper's own machinery (sm_90a): memory barriers, tiles brought and taken by the tensor memory accelerator,
// and the frame around warpgroup products.
//
// Includes nothing: attention has types of its own beside those of common.cuh.
#pragma once

namespace hopper {

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/// The driver's CUtensorMap, made by cuTensorMapEncodeTiled.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// ---- memory barriers -------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives at the barrier that has this address in block `rank` of the cluster.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(rank) : "memory");
}
/// Waits until the phase of this parity is complete.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done = 0;
    while (!done) {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, "
            "p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

/// Position in a ring of STAGES buffers: `phase` flips each time round.
template <int STAGES>
struct Ring {
    u32 stage = 0, phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    __device__ __forceinline__ void skip(u32 count) {
        const u32 to = stage + count;
        phase ^= to / STAGES & 1;
        stage = to % STAGES;
    }
};

// ---- blocks of a cluster, warpgroups of a block ------------------------------------------------------

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}
template <int THREADS>
__device__ __forceinline__ void named_sync(u32 name) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "n"(THREADS) : "memory");
}
template <int THREADS>
__device__ __forceinline__ void named_arrive(u32 name) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "n"(THREADS) : "memory");
}
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- tiles of matrices -------------------------------------------------------------------------------

/// Starts the copy of one box; `barrier` counts its bytes.
__device__ __forceinline__ void load_box(u32 to, const TensorMap& map, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}
/// As load_box, into the same place of every block of the cluster that `blocks` names; each one's barrier
/// counts the bytes.
__device__ __forceinline__ void load_box_everywhere(u32 to, const TensorMap& map, u32 barrier, int column,
                                                    int row, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(column), "r"(row), "h"(blocks)
        : "memory");
}
/// Starts the copy of one box to global memory; what lies outside of the matrix is left out.
__device__ __forceinline__ void store_box(const TensorMap& map, u32 from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(from), "r"(column), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until at most PENDING groups of stores still read shared memory.
template <int PENDING>
__device__ __forceinline__ void stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
/// What this thread wrote to shared memory is seen by the accelerator and the tensor cores after this and a
/// barrier.
__device__ __forceinline__ void shared_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Four 8x8 matrices of bf16 from the registers of a warp: lanes 0-7 point at the rows of the first, 8-15 of
/// the second, and so on.
__device__ __forceinline__ void store_matrices(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}
__device__ __forceinline__ u32 load_shared(u32 at) {
    u32 word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
    return word;
}

// ---- warpgroup products --------------------------------------------------------------------------------

/// Before the first product that reads registers written since the last one.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most PENDING committed groups are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/// Keeps the compiler from moving uses of an accumulator across this point.
template <int N>
__device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
/// A block's own shared address as wgmma wants it: in units of 16 bytes, without the block's rank in its
/// cluster.
__device__ __forceinline__ u32 operand_address(u32 at) { return (at & 0x3ffff) >> 4; }
/// wgmma's description of an operand. `at` is the low half: the address in units of 16 bytes (adding n moves
/// the start by 16 n bytes) and, shifted by 16, how far apart panels are. The high half says how far apart
/// groups of eight rows are (1024 bytes), and that the 128-byte swizzle permutes them.
template <u32 HIGH = (1024 >> 4 | 1u << 30)>
__device__ __forceinline__ u64 describe(u32 at) {
    u64 r;
    asm("mov.b64 %0, {%1, %2};" : "=l"(r) : "r"(at), "n"(HIGH));
    return r;
}

}  // namespace hopper
