//! The GPUs that `runner plan` knows, and how fast the operations of a step run on them.
//!
//! Rates were measured on one H100 80GB HBM3 and nowhere else: the tables by operation that `runner bench`
//! printed on 2026-11-24 (`docs/perf/`), fitted by family as `time = FLOPs / rate + bytes / bandwidth` over
//! the shapes of GPT-2 124M and 1558M and GPT-3 125M. They give the five measured steps within 5 %. Another
//! GPU is the H100 scaled by the vendors' peak numbers, and every such plan says that it is an estimate.

use crate::ops::Family;
use crate::ops::cuda::driver::peak_bf16_flops;

/// A GPU by the numbers on its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpec {
    /// As written after `--gpu`.
    pub key: &'static str,
    /// As the driver calls it.
    pub name: &'static str,
    /// Memory that the driver shows, MiB.
    pub memory_mib: u64,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Bytes a second and direction to the other GPUs of its machine: NVLink, or PCI Express.
    pub link: f64,
    /// Dense FLOPs a second in TF32 and in fp32 without tensor cores.
    pub tf32: f64,
    pub fp32: f64,
}

const fn gpu(
    key: &'static str,
    name: &'static str,
    memory_mib: u64,
    [gb, link_gb, tf32, fp32]: [f64; 4],
) -> GpuSpec {
    GpuSpec {
        key,
        name,
        memory_mib,
        bandwidth: gb * 1e9,
        link: link_gb * 1e9,
        tf32: tf32 * 1e12,
        fp32: fp32 * 1e12,
    }
}

/// Memory in MiB; GB/s of memory, GB/s of the link; TFLOP/s in TF32 and fp32. From the vendor's data sheets.
pub const GPUS: [GpuSpec; 12] = [
    gpu("h100", "NVIDIA H100 80GB HBM3", 81_559, [3350.0, 450.0, 494.7, 66.9]),
    gpu("h100-pcie", "NVIDIA H100 PCIe", 81_559, [2000.0, 64.0, 378.0, 51.0]),
    gpu("h200", "NVIDIA H200", 143_771, [4800.0, 450.0, 494.7, 66.9]),
    gpu("gh200", "NVIDIA GH200 480GB", 97_871, [4000.0, 450.0, 494.7, 66.9]),
    gpu("b200", "NVIDIA B200", 183_359, [8000.0, 900.0, 1125.0, 75.0]),
    gpu("a100", "NVIDIA A100-SXM4-80GB", 81_920, [2039.0, 300.0, 156.0, 19.5]),
    gpu("a100-40", "NVIDIA A100-SXM4-40GB", 40_960, [1555.0, 300.0, 156.0, 19.5]),
    gpu("l40s", "NVIDIA L40S", 46_068, [864.0, 32.0, 183.0, 91.6]),
    gpu("a10", "NVIDIA A10G", 23_028, [600.0, 32.0, 35.0, 31.2]),
    gpu("l4", "NVIDIA L4", 23_034, [300.0, 32.0, 60.0, 30.3]),
    gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24_564, [1008.0, 32.0, 82.6, 82.6]),
    gpu("rtx3090", "NVIDIA GeForce RTX 3090", 24_576, [936.0, 32.0, 35.6, 35.6]),
];

/// The one that was measured.
pub const H100: &GpuSpec = &GPUS[0];

/// The speed of the GPU's arithmetic on a CPU beside that of the CPU's own: 7 GMAC/s
/// a core (README) of the 95 GFLOP/s below.
pub const MIRROR: f64 = 0.15;

/// Driver, CUDA context and the kernels' code take this much before anything is allocated.
pub const CONTEXT_MIB: u64 = 768;

impl GpuSpec {
    /// Finds a GPU by its short name, or by the name that the driver gives.
    pub fn find(name: &str) -> Option<&'static GpuSpec> {
        let lower = name.to_lowercase();
        GPUS.iter().find(|gpu| gpu.key == lower || gpu.name.to_lowercase() == lower)
    }

    /// Whether the rates were measured on this GPU.
    pub fn is_measured(&self) -> bool {
        self.key == H100.key
    }

    /// Dense bf16 FLOPs a second.
    pub fn bf16(&self) -> f64 {
        peak_bf16_flops(self.name).expect("a test finds every GPU of the table")
    }

    /// Bytes that training can take.
    pub fn usable_bytes(&self) -> u64 {
        (self.memory_mib - CONTEXT_MIB) << 20
    }
}

/// A rate in FLOP/s, 0 for none; a bandwidth in bytes/s, 0 for none; and seconds a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub flops: f64,
    pub bytes: f64,
    pub call: f64,
}

const fn rate(tera_flops: f64, giga_bytes: f64) -> Rate {
    Rate { flops: tera_flops * 1e12, bytes: giga_bytes * 1e9, call: 3e-6 }
}

/// The H100's rates, bf16. Where a table has TFLOP/s alone, bytes do not count, and the other way round.
/// `fused` says that cuBLASLt does GELU inside the product; otherwise a kernel of its own follows.
pub const fn h100(family: Family, fused: bool) -> Rate {
    match family {
        Family::Linear => rate(718.0, 7786.0),
        Family::LinearGelu if fused => rate(612.0, 6506.0),
        Family::LinearGelu => rate(742.0, 6347.0),
        Family::InputGradient => rate(742.0, 5627.0),
        Family::InputGradientGelu if fused => rate(744.0, 2944.0),
        Family::InputGradientGelu => rate(782.0, 3395.0),
        // Bytes of fp32 gradients that are added to, and the bias's, in the same pass or another.
        Family::WeightGradient => rate(680.0, 6000.0),
        Family::Attention => rate(387.0, 3309.0),
        Family::AttentionBackward => rate(377.0, 2720.0),
        // Products, softmax and its gradient pass over the logits about three times at copy speed.
        Family::Classifier => rate(796.0, 913.0),
        Family::Layernorm => rate(0.0, 2047.0),
        Family::ResidualLayernorm => rate(0.0, 2471.0),
        Family::LayernormBackward => rate(0.0, 2402.0),
        Family::Gelu => rate(0.0, 2806.0),
        // Not measured: GELU's, which also reads and writes each element once.
        Family::Rotary => rate(0.0, 2806.0),
        Family::Embedding => rate(0.0, 2841.0),
        Family::EmbeddingBackward => rate(0.0, 991.0),
        Family::Optimizer => rate(0.0, 2880.0),
        Family::GradientNorm => rate(0.0, 3085.0),
        Family::Sum => rate(0.0, 3033.0),
        // SHA-256: bound by the integer units.
        Family::Digest => rate(0.0, 597.0),
        Family::Host => Rate { flops: 0.0, bytes: 20e9, call: 40e-6 },
    }
}

/// Undisturbed, a step takes this much of the sum of operations that are each waited for: 0.97 for the small
/// models, 0.96 for the large one, which the fit makes 3 % too fast.
pub const UNDISTURBED: f64 = 0.975;

/// A CPU thread: from the same log, two threads of an AMD EPYC with AVX-512, GPT-2 124M and the quick start.
pub const fn cpu(family: Family) -> Rate {
    match family {
        Family::Attention | Family::AttentionBackward => Rate { flops: 28e9, bytes: 0.0, call: 80e-6 },
        Family::Digest => Rate { flops: 0.0, bytes: 1.0e9, call: 0.0 },
        Family::Optimizer => Rate { flops: 0.0, bytes: 26e9, call: 80e-6 },
        Family::Host => Rate { flops: 0.0, bytes: 10e9, call: 0.0 },
        Family::GradientNorm | Family::Sum => Rate { flops: 0.0, bytes: 14e9, call: 80e-6 },
        Family::Layernorm | Family::ResidualLayernorm | Family::LayernormBackward | Family::Embedding => {
            Rate { flops: 0.0, bytes: 6e9, call: 80e-6 }
        }
        Family::Gelu | Family::Rotary | Family::EmbeddingBackward => {
            Rate { flops: 0.0, bytes: 3e9, call: 80e-6 }
        }
        Family::LinearGelu | Family::InputGradientGelu => Rate { flops: 95e9, bytes: 6e9, call: 80e-6 },
        Family::Linear | Family::InputGradient | Family::WeightGradient | Family::Classifier => {
            Rate { flops: 95e9, bytes: 0.0, call: 80e-6 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_is_found_by_both_names_and_has_a_peak() {
        for gpu in &GPUS {
            assert_eq!(GpuSpec::find(gpu.key), Some(gpu));
            assert_eq!(GpuSpec::find(gpu.name), Some(gpu), "{}", gpu.name);
            assert!(gpu.bf16() > 1e13 && gpu.usable_bytes() > 8 << 30, "{}", gpu.name);
        }
        assert_eq!(GpuSpec::find("h9000"), None);
        assert!(H100.is_measured() && H100.key == "h100");
    }
}
