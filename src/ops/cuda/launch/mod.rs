//! Typed launches: one Rust function a kernel, which checks lengths and limits, computes the geometry
//! and passes one argument struct. One file for each .cu file.

pub mod activate;
pub mod attention;
pub mod attention_hopper;
pub mod average;
pub mod classifier;
pub mod classifier_hopper;
pub mod decode;
pub mod digest;
pub mod elementwise;
pub mod embedding;
pub mod gelu;
pub mod gemm_hopper;
pub mod layernorm;
pub mod muon;
pub mod optimizer;
pub mod qk_norm;
pub mod reduce;
pub mod rotary;
pub mod tensor_map;
#[cfg(test)]
mod tests;

use super::args::{Bindings, KernelInfo};
use super::sources::Source;

/// Threads of the kernels that own eight channels a thread.
const SLICE: u32 = 128;

/// Blocks that it takes to cover a row with [`SLICE`] threads of eight channels.
fn slices(channels: usize) -> u64 {
    (channels as u64 / 8).div_ceil(u64::from(SLICE))
}

/// What every file of this folder binds.
pub static BINDINGS: [Bindings; 18] = [
    activate::BINDINGS,
    attention::BINDINGS,
    attention_hopper::BINDINGS,
    average::BINDINGS,
    classifier::BINDINGS,
    classifier_hopper::BINDINGS,
    decode::BINDINGS,
    digest::BINDINGS,
    elementwise::BINDINGS,
    embedding::BINDINGS,
    gelu::BINDINGS,
    gemm_hopper::BINDINGS,
    layernorm::BINDINGS,
    muon::BINDINGS,
    optimizer::BINDINGS,
    qk_norm::BINDINGS,
    reduce::BINDINGS,
    rotary::BINDINGS,
];

/// Every file that holds kernels.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    BINDINGS.iter().flat_map(|file| file.sources)
}

/// Every kernel that is launched anywhere.
pub fn kernels() -> Vec<KernelInfo> {
    BINDINGS.iter().flat_map(|file| (file.kernels)()).collect()
}
