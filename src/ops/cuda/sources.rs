//! The kernels' source, embedded in the binary: `kernels/*.cu` and the headers they share.

/// One file under `kernels/`.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub file: &'static str,
    pub text: &'static str,
    /// The macro settings that the file is compiled under; empty where it needs none.
    pub variants: &'static [&'static str],
    /// The only architecture that has the file's instructions; `None` for all.
    pub only: Option<&'static str>,
}

impl Source {
    /// The variants as lists of macro definitions.
    pub fn variants(&self) -> Vec<Vec<String>> {
        if self.variants.is_empty() {
            return vec![Vec::new()];
        }
        self.variants.iter().map(|variant| vec![(*variant).to_owned()]).collect()
    }
}

/// Element type of weights and activations.
const ELEMENT_TYPES: &[&str] = &["ACT_BF16=1", "ACT_F32=1"];
const BF16: &[&str] = &["ACT_BF16=1"];
/// Head sizes of GPT-2 and GPT-3.
const HEAD_SIZES: &[&str] = &["HEAD_SIZE=64", "HEAD_SIZE=80", "HEAD_SIZE=96", "HEAD_SIZE=128"];

const HOPPER_HEAD_SIZES: &[&str] = &["HEAD_SIZE=64", "HEAD_SIZE=128"];

const fn hopper(source: Source) -> Source {
    Source { only: Some("sm_90a"), ..source }
}

macro_rules! source {
    ($file:literal, $variants:expr) => {
        Source {
            file: $file,
            text: include_str!(concat!("../../../kernels/", $file)),
            variants: $variants,
            only: None,
        }
    };
}

/// The headers that `#include "name"` finds.
pub const HEADERS: &[Source] = &[
    source!("common.cuh", &[]),
    source!("columns.cuh", &[]),
    source!("gelu.cuh", &[]),
    source!("attention.cuh", &[]),
    source!("attention_hopper.cuh", &[]),
    source!("attention_wgmma.cuh", &[]),
    source!("hopper.cuh", &[]),
    source!("gemm_wgmma.cuh", &[]),
];

/// Every file that holds kernels.
pub const SOURCES: &[Source] = &[
    source!("embedding.cu", ELEMENT_TYPES),
    source!("layernorm.cu", ELEMENT_TYPES),
    source!("reduce.cu", ELEMENT_TYPES),
    source!("gelu.cu", ELEMENT_TYPES),
    source!("classifier.cu", ELEMENT_TYPES),
    source!("adamw.cu", ELEMENT_TYPES),
    source!("elementwise.cu", ELEMENT_TYPES),
    source!("digest.cu", ELEMENT_TYPES),
    source!("attention_any.cu", ELEMENT_TYPES),
    source!("decode.cu", ELEMENT_TYPES),
    source!("attention_forward.cu", HEAD_SIZES),
    source!("attention_backward.cu", HEAD_SIZES),
    hopper(source!("gemm_hopper.cu", BF16)),
    hopper(source!("attention_forward_hopper.cu", HOPPER_HEAD_SIZES)),
    hopper(source!("attention_backward_hopper.cu", HOPPER_HEAD_SIZES)),
];
