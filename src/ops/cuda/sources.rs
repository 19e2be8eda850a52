//! What a file of `kernels/` is to the program, and the headers that files share. The files of kernels are
//! embedded where they are bound: see [`bindings!`](super::args).

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
    /// A file with a variant for each element type.
    pub const fn new(file: &'static str, text: &'static str) -> Source {
        Source { file, text, variants: ELEMENT_TYPES, only: None }
    }

    /// The file under other settings.
    pub const fn compiled(self, settings: Settings) -> Source {
        Source { variants: settings.variants, only: settings.only, ..self }
    }

    /// The variants as lists of macro definitions.
    pub fn variants(&self) -> Vec<Vec<String>> {
        if self.variants.is_empty() {
            return vec![Vec::new()];
        }
        self.variants.iter().map(|variant| vec![(*variant).to_owned()]).collect()
    }
}

/// How a file is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub variants: &'static [&'static str],
    pub only: Option<&'static str>,
}

/// Element type of weights and activations.
const ELEMENT_TYPES: &[&str] = &["ACT_BF16=1", "ACT_F32=1"];
/// For each head size of GPT-2 and GPT-3.
pub const HEAD_SIZES: Settings =
    Settings { variants: &["HEAD_SIZE=64", "HEAD_SIZE=80", "HEAD_SIZE=96", "HEAD_SIZE=128"], only: None };
/// bf16 with Hopper's instructions.
pub const HOPPER: Settings = Settings { variants: &["ACT_BF16=1"], only: Some("sm_90a") };
/// The head sizes that Hopper's attention has.
pub const HOPPER_HEAD_SIZES: Settings =
    Settings { variants: &["HEAD_SIZE=64", "HEAD_SIZE=128"], only: Some("sm_90a") };

macro_rules! header {
    ($file:literal) => {
        Source {
            file: $file,
            text: include_str!(concat!("../../../kernels/", $file)),
            variants: &[],
            only: None,
        }
    };
}

/// The headers that `#include "name"` finds.
pub const HEADERS: &[Source] = &[
    header!("common.cuh"),
    header!("rounding.cuh"),
    header!("exact.cuh"),
    header!("columns.cuh"),
    header!("gelu.cuh"),
    header!("softcap.cuh"),
    header!("rotary.cuh"),
    header!("activate.cuh"),
    header!("attention.cuh"),
    header!("attention_hopper.cuh"),
    header!("attention_wgmma.cuh"),
    header!("hopper.cuh"),
    header!("gemm_wgmma.cuh"),
    header!("gemm_endings.cuh"),
    header!("gemm_sums.cuh"),
];
