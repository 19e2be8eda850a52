//! The kernels' source, embedded in the binary: `kernels/*.cu` and the headers they share.

/// One file under `kernels/`.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub file: &'static str,
    pub text: &'static str,
    /// The macro settings that the file is compiled under; empty where it needs none.
    pub variants: &'static [&'static str],
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
/// Head sizes of GPT-2 and GPT-3.
const HEAD_SIZES: &[&str] = &["HEAD_SIZE=64", "HEAD_SIZE=80", "HEAD_SIZE=96", "HEAD_SIZE=128"];

macro_rules! sources {
    ($($file:literal),* $(,)? ; $variants:expr) => {
        &[$(Source { file: $file, text: include_str!(concat!("../../../kernels/", $file)), variants: $variants }),*]
    };
}

/// What `#include "name"` finds.
pub const HEADERS: &[Source] = sources!["common.cuh"; &[]];

/// Kernels whose element type is a macro.
pub const SOURCES: &[Source] = sources!["embedding.cu", "layernorm.cu"; ELEMENT_TYPES];

/// Kernels whose head size is a macro.
pub const ATTENTION: &[Source] = sources![; HEAD_SIZES];
