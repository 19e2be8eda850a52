// SHA-256 (FIPS 180-4) Merkle trees over many tensors at once: the state digest.
//
//   leaf = SHA256(tag(leaf) || up to 4096 bytes),  node = SHA256(tag(node) || left || right)
//
// A tag is one 64-byte block, so a hash starts from the state after it, which the host passes in. The tree of
// RFC 9162 (split at the largest power of two below the count) is, level by level, the pairing of neighbours
// with an odd last one moved up unchanged; so aligned groups of 512 can be reduced on their own.
//
//   digest_leaves  one thread a leaf: 64 data blocks and one of padding, all in registers; the integer units,
//                  not memory, are the limit (about 1,400 instructions a block of 64 bytes)
//   digest_nodes   one block a group of up to 512 neighbours of one tensor: nine levels in shared memory.
//                  Launched until each tensor has one digest left: 2 launches to 1 GiB a tensor, 3 to 512 GiB
//
// Empty tensors do not appear in the tables: the host knows their root, SHA256("").
#include "common.cuh"

struct DigestValue {
    u32 word[8];  // big-endian words as numbers: byte-swapped in memory with respect to the digest's bytes
};

__constant__ const u32 ROUND_CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

__device__ __forceinline__ u32 rotate_right(u32 x, u32 n) { return __funnelshift_r(x, x, n); }

// One block of 16 words into the state. The schedule rolls through w.
__device__ __forceinline__ void compress(u32 (&state)[8], u32 (&w)[16]) {
    u32 a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6],
        h = state[7];
#pragma unroll
    for (int t = 0; t < 64; ++t) {
        if (t >= 16) {
            const u32 w15 = w[(t + 1) % 16], w2 = w[(t + 14) % 16];
            const u32 s0 = rotate_right(w15, 7) ^ rotate_right(w15, 18) ^ (w15 >> 3);
            const u32 s1 = rotate_right(w2, 17) ^ rotate_right(w2, 19) ^ (w2 >> 10);
            w[t % 16] += s0 + w[(t + 9) % 16] + s1;
        }
        const u32 s1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
        const u32 t1 = h + ROUND_CONSTANTS[t] + w[t % 16] + s1 + ((e & f) ^ (~e & g));
        const u32 s0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
        const u32 t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e, state[5] += f, state[6] += g,
        state[7] += h;
}

__device__ __forceinline__ u32 swap_bytes(u32 x) { return __byte_perm(x, 0, 0x0123); }

struct DigestTensor {
    const u8* data;  // at a multiple of 16 bytes
    u64 bytes;       // logical length, at least 1
    u64 first;       // leaves of all tensors before this one
};

struct DigestLeavesArgs {
    const DigestTensor* tensors;  // (count) on the device
    DigestValue* digests;         // (leaves of all tensors)
    u64 leaves;                   // the sum of ceil(bytes / 4096)
    u32 count;
    u32 after_tag[8];  // state after the leaf tag's block
    u32 unused;        // 0
};

// Word `index` of a leaf's message after the tag: its bytes, then 0x80, zeros and the length in bits.
__device__ __forceinline__ u32 padded_word(const u8* leaf, u32 bytes, u32 index, u32 words) {
    if (index == words - 1) return (bytes + 64) * 8;
    u32 word = 0;
    for (u32 i = 0; i < 4; ++i) {
        const u32 at = index * 4 + i;
        word = word << 8 | (at < bytes ? leaf[at] : at == bytes ? 0x80u : 0u);
    }
    return word;
}

// grid ceil(leaves / 128), block 128.
extern "C" __global__ void __launch_bounds__(128)
    digest_leaves(const __grid_constant__ DigestLeavesArgs args) {
    const u64 index = u64(blockIdx.x) * 128 + threadIdx.x;
    if (index >= args.leaves) return;
    const DigestTensor tensor = args.tensors[owner_of(args.tensors, args.count, index)];
    const u64 offset = (index - tensor.first) * 4096;
    const u8* leaf = tensor.data + offset;
    const u32 bytes = u32(min(u64(4096), tensor.bytes - offset));
    const u32 blocks = (bytes + 9 + 63) / 64;
    u32 state[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) state[i] = args.after_tag[i];
#pragma unroll 1
    for (u32 block = 0; block < blocks; ++block) {
        u32 w[16];
        if ((block + 1) * 64 <= bytes) {
            const uint4* source = reinterpret_cast<const uint4*>(leaf + block * 64);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint4 four = source[i];
                w[4 * i] = swap_bytes(four.x), w[4 * i + 1] = swap_bytes(four.y);
                w[4 * i + 2] = swap_bytes(four.z), w[4 * i + 3] = swap_bytes(four.w);
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < 16; ++i) w[i] = padded_word(leaf, bytes, block * 16 + i, blocks * 16);
        }
        compress(state, w);
    }
    uint4* target = reinterpret_cast<uint4*>(args.digests + index);
    target[0] = make_uint4(state[0], state[1], state[2], state[3]);
    target[1] = make_uint4(state[4], state[5], state[6], state[7]);
}

struct DigestRun {
    u64 source;  // index of the tensor's first digest in `source`
    u64 count;   // its digests, at least 1
    u64 first;   // groups of all tensors before this one: index in `target`
};

struct DigestNodesArgs {
    const DigestRun* runs;      // (count) on the device
    const DigestValue* source;  // digests of the level below
    DigestValue* target;        // (groups of all tensors); not `source`
    u32 count;
    u32 after_tag[8];  // state after the node tag's block
    u32 bytes_out;     // 1: write digests as their bytes (last launch), 0: as words
};

// grid: groups of all tensors, the sum of ceil(count / 512); block 256.
extern "C" __global__ void __launch_bounds__(256) digest_nodes(const __grid_constant__ DigestNodesArgs args) {
    __shared__ u32 values[8][512 + 1];  // word-major: neighbours lie in neighbouring banks
    const DigestRun run = args.runs[owner_of(args.runs, args.count, blockIdx.x)];
    const u64 begin = (blockIdx.x - run.first) * 512;
    u32 count = u32(min(u64(512), run.count - begin));
    const u32* source = args.source[run.source + begin].word;
    for (u32 i = threadIdx.x; i < count * 8; i += 256) values[i % 8][i / 8] = source[i];
    __syncthreads();
    while (count > 1) {
        const u32 nodes = (count + 1) / 2, left = 2 * threadIdx.x;
        u32 state[8];
        if (left + 1 < count) {
            u32 w[16];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                state[i] = args.after_tag[i];
                w[i] = values[i][left], w[8 + i] = values[i][left + 1];
            }
#pragma unroll 1
            for (int block = 0; block < 2; ++block) {
                compress(state, w);
#pragma unroll
                for (int i = 0; i < 16; ++i) w[i] = i == 0 ? 0x80000000u : i == 15 ? 128 * 8u : 0u;
            }
        } else if (left < count) {
#pragma unroll
            for (int i = 0; i < 8; ++i) state[i] = values[i][left];
        }
        __syncthreads();
        if (left < count) {
#pragma unroll
            for (int i = 0; i < 8; ++i) values[i][threadIdx.x] = state[i];
        }
        __syncthreads();
        count = nodes;
    }
    if (threadIdx.x < 8) {
        const u32 word = values[threadIdx.x][0];
        args.target[blockIdx.x].word[threadIdx.x] = args.bytes_out ? swap_bytes(word) : word;
    }
}
