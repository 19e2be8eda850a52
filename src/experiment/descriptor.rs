//! Model descriptors: the sizes that have names.
//!
//! `d12` or `gpt2:d12` is GPT-2 of that depth (Radford et al. 2019 for d12 to d48; d6 and d60 to d84
//! are llm.c's own), `gpt3:c768` is GPT-3 of that width (Brown et al. 2020, table 2.1). `modern:d12` has the
//! sizes of `gpt2:d12` and blocks of later models, of which a Hugging Face `Qwen3ForCausalLM` is made too.

/// What full descriptors begin with.
const FAMILIES: [&str; 3] = ["gpt2:", "gpt3:", "modern:"];

/// The sizes a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub layers: usize,
    pub heads: usize,
    pub channels: usize,
    pub context: usize,
}

/// Depth, width, heads. The context is 1024.
const GPT2: [(usize, usize, usize); 8] = [
    (6, 384, 6),
    (12, 768, 12),
    (24, 1024, 16),
    (36, 1280, 20),
    (48, 1600, 25),
    (60, 1920, 30),
    (72, 2880, 30),
    (84, 3456, 36),
];

/// Width, depth, head size. The context is 2048.
const GPT3: [(usize, usize, usize); 9] = [
    (384, 6, 64),
    (768, 12, 64),
    (1024, 24, 64),
    (1536, 24, 96),
    (2048, 24, 128),
    (2560, 32, 80),
    (4096, 32, 128),
    (5120, 40, 128),
    (12288, 96, 128),
];

/// The value of a key of what blocks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenValue {
    Word(&'static str),
    Flag(bool),
}

impl std::fmt::Display for GivenValue {
    /// As TOML has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GivenValue::Word(word) => write!(f, "{word:?}"),
            GivenValue::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

/// What `modern:dN` is made of.
const MODERN: [(&str, GivenValue); 6] = [
    ("model.norm", GivenValue::Word("rmsnorm")),
    ("model.positions", GivenValue::Word("rotary")),
    ("model.activation", GivenValue::Word("swiglu")),
    ("model.bias", GivenValue::Flag(false)),
    ("model.tied_head", GivenValue::Flag(false)),
    ("model.qk_norm", GivenValue::Flag(true)),
];

/// The keys that a descriptor sets beside the sizes, where they are not given.
pub(super) fn parts(descriptor: &str) -> &'static [(&'static str, GivenValue)] {
    if descriptor.starts_with("modern:") { &MODERN } else { &[] }
}

/// Whether some descriptors set this key.
pub fn is_given_by_descriptor(key: &str) -> bool {
    MODERN.iter().any(|(part, _)| *part == key)
}

/// Why a descriptor is refused: what is wrong, and a hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UnknownDescriptor {
    pub message: String,
    pub hint: String,
}

/// Every descriptor in its full form.
pub fn descriptors() -> Vec<String> {
    let of_depth = |family: &'static str| GPT2.iter().map(move |(depth, ..)| format!("{family}:d{depth}"));
    let gpt3 = GPT3.iter().map(|(width, ..)| format!("gpt3:c{width}"));
    of_depth("gpt2").chain(gpt3).chain(of_depth("modern")).collect()
}

/// The sizes of `dN`, `gpt2:dN`, `modern:dN` or `gpt3:cC`.
pub fn sizes(descriptor: &str) -> Result<Sizes, UnknownDescriptor> {
    let full =
        if descriptor.starts_with('d') { format!("gpt2:{descriptor}") } else { descriptor.to_string() };
    if let Some(depth) = full.strip_prefix("gpt2:d").or(full.strip_prefix("modern:d")) {
        if let Some(&(layers, channels, heads)) = GPT2.iter().find(|(d, ..)| d.to_string() == depth) {
            return Ok(Sizes { layers, heads, channels, context: 1024 });
        }
    } else if let Some(width) = full.strip_prefix("gpt3:c")
        && let Some(&(channels, layers, head_size)) = GPT3.iter().find(|(c, ..)| c.to_string() == width)
    {
        return Ok(Sizes { layers, heads: channels / head_size, channels, context: 2048 });
    }
    let message = format!("no model is called `{descriptor}`");
    if full == "gpt3:c5140" {
        return Err(UnknownDescriptor {
            message: format!(
                "`{descriptor}` cannot be built: 5140 channels are not a multiple of the head \
                 size 128"
            ),
            hint: "GPT-3 13B is printed as 5140 wide but is 5120 wide, with 40 layers and 40 heads: write \
                   `gpt3:c5120`"
                .into(),
        });
    }
    let known = descriptors();
    let hint = match FAMILIES.iter().find(|family| full.starts_with(**family)) {
        // All depths look alike, so the nearest name is no useful hint: show the family.
        Some(of) => {
            let family: Vec<&str> = known.iter().filter(|k| k.starts_with(of)).map(String::as_str).collect();
            format!(
                "the family has {}; other sizes go in `layers`, `heads` and `channels`",
                family.join(", ")
            )
        }
        None => {
            "write `d12`, `gpt2:d12`, `gpt3:c768` or `modern:d12`, or give `layers`, `heads` and `channels`"
                .into()
        }
    };
    Err(UnknownDescriptor { message, hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headline_model_is_gpt2_xl() {
        let xl = Sizes { layers: 48, heads: 25, channels: 1600, context: 1024 };
        assert_eq!(sizes("d48"), Ok(xl));
        assert_eq!(sizes("gpt2:d48"), Ok(xl));
    }

    #[test]
    fn every_descriptor_has_whole_heads_of_a_size_that_cuda_has() {
        for name in descriptors() {
            let s = sizes(&name).unwrap();
            assert_eq!(s.channels % s.heads, 0, "{name}");
            assert!([64, 80, 96, 128].contains(&(s.channels / s.heads)), "{name}");
            assert_eq!(s.context, if name.starts_with("gpt3") { 2048 } else { 1024 }, "{name}");
        }
        assert_eq!(descriptors().len(), 25);
    }

    #[test]
    fn the_width_that_cannot_work_is_explained_and_its_true_size_works() {
        let refused = sizes("gpt3:c5140").unwrap_err();
        assert!(
            refused.message.contains("not a multiple") && refused.hint.contains("gpt3:c5120"),
            "{refused:?}"
        );
        assert_eq!(sizes("gpt3:c5120"), Ok(Sizes { layers: 40, heads: 40, channels: 5120, context: 2048 }));
    }

    #[test]
    fn a_hint_lists_the_family_that_was_asked_for() {
        let hint = sizes("gpt3:d12").unwrap_err().hint;
        assert!(hint.contains("gpt3:c768") && !hint.contains("gpt2:"), "{hint}");
    }

    #[test]
    fn anything_else_is_refused() {
        for name in [
            "",
            "d",
            "d13",
            "d012",
            "gpt2:12",
            "gpt2:d",
            "gpt3:c",
            "gpt3:d12",
            "gpt4:d12",
            "modern:d13",
            "modern:12",
            "modern",
            "ddd",
            "d+12",
            "π",
        ] {
            assert!(sizes(name).is_err(), "{name}");
        }
    }
}
