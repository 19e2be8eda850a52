//! `[model]`: sizes, and what the blocks are made of.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::declare::{SectionText, Word, choice, section};

/// Rows of the token table in memory are a multiple of this.
pub const VOCAB_ALIGN: u64 = 128;

section! {
    /// Sizes of the network, by `descriptor` or one by one, and what its blocks are made of. Descriptors are
    /// `d12`, `gpt2:d12`, `gpt3:c768` and `modern:d12`; without further keys the blocks are GPT-2's.
    pub struct Model {
        /// A model to start from in place of random weights: a Hugging Face folder of GPT-2, Llama or Qwen3,
        /// llm.c's `.bin`, version 3 or 5, or a checkpoint of a run: its folder, or `run:NAME@STEP` for a run
        /// under `--runs` (without `@STEP` its newest). The schedule begins anew, and without
        /// `optimizer.from_init` so do the optimizer and the data. Sizes and parts that are not given are the
        /// model's. The lock pins the weights by content, a checkpoint's by its state root. Default: not set.
        pub init: Option<String>,
        /// The sizes by name: `d12` or `gpt2:d12` is GPT-2 of that depth, `gpt3:c768` GPT-3 of that width.
        /// `modern:d12` has the sizes of GPT-2 and the blocks of later models: `norm`, `positions`,
        /// `activation`, `bias`, `tied_head` and `qk_norm` are then as it says, where they are not given.
        /// Excludes `layers`, `heads` and `channels`. Default: not set.
        pub descriptor: Option<String>,
        /// L: transformer blocks. Default: the descriptor's; without one it must be given.
        pub layers: usize,
        /// NH: attention heads; divides `channels`. On CUDA `channels / heads` is at most 128, and 64, 80, 96
        /// and 128 have the fast kernels in bf16. Default: the descriptor's; without one it must be given.
        pub heads: usize,
        /// KH: heads of keys and values, each for the queries of `heads / kv_heads` neighbouring heads
        /// (Ainslie et al. 2023); divides `heads`. 0 is as many as `heads`. Default: 0.
        pub kv_heads: usize,
        /// C: width of the residual stream. Default: the descriptor's; without one it must be given.
        pub channels: usize,
        /// The longest sequence the model can read; with learned positions the rows of `wpe`.
        /// Default: the descriptor's (GPT-2 1024, GPT-3 2048); without one `batch.seq_len`.
        pub context: usize,
        /// Tokens the model can tell apart. May be more than the tokenizer has, never fewer, and at most
        /// 65536, for shards hold 16 bits a token. Default: the tokenizer's (gpt2 50257, byte 257).
        pub vocab: usize,
        /// Rows of `wte` in memory: `vocab` rounded up to a multiple of 128 (gpt2 50304, byte 384). Not a
        /// key of the file.
        pub vocab_padded: usize,
        /// The norm before attention, before the MLP and at the end; epsilon 1e-5. Of `modern:dN` rmsnorm.
        /// Default: layernorm.
        pub norm: NormKind,
        /// How the model knows where a token stands. Of `modern:dN` rotary. Default: learned.
        pub positions: PositionKind,
        /// `positions = "rotary"` only: pair `i` of a head of size HS turns by `rope_theta^(-2i/HS)` radians
        /// a position; above 1. Default: 10000.0.
        pub rope_theta: f64,
        /// The function between the two matrices of the MLP. Of `modern:dN` swiglu. Default: gelu.
        pub activation: ActivationKind,
        /// Whether linear layers and norms add a bias. Of `modern:dN` false. Default: true.
        pub bias: bool,
        /// Whether the classifier is the token table; otherwise it is a matrix of its own. Of `modern:dN`
        /// false. Default: true.
        pub tied_head: bool,
        /// Whether queries and keys go through an RMSNorm a head, before they are rotated (Dehghani et al.
        /// 2023), with weights of their own. Of `modern:dN` true. Default: false.
        pub qk_norm: bool,
        /// Every logit x counts as `logit_softcap * tanh(x / logit_softcap)` (Gemma 2, 2024); from 0.001 to
        /// 1000, above which fp32 loses digits of x, or 0, which caps none. Default: 0.0.
        pub logit_softcap: f64,
    }
}

impl Model {
    /// GPT-2 of these sizes.
    pub fn gpt2(layers: usize, heads: usize, channels: usize, context: usize, vocab: usize) -> Model {
        Model {
            init: None,
            descriptor: None,
            layers,
            heads,
            kv_heads: 0,
            channels,
            context,
            vocab,
            vocab_padded: vocab.next_multiple_of(VOCAB_ALIGN as usize),
            norm: NormKind::Layernorm,
            positions: PositionKind::Learned,
            rope_theta: 10_000.0,
            activation: ActivationKind::Gelu,
            bias: true,
            tied_head: true,
            qk_norm: false,
            logit_softcap: 0.0,
        }
    }

    /// HS: channels of a head.
    pub fn head_size(&self) -> usize {
        self.channels / self.heads
    }

    /// KH: heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        if self.kv_heads == 0 { self.heads } else { self.kv_heads }
    }

    /// F: outputs of the MLP's activation.
    pub fn mlp_channels(&self) -> usize {
        match self.activation {
            ActivationKind::Gelu | ActivationKind::Relu2 => 4 * self.channels,
            ActivationKind::Swiglu => (8 * self.channels).div_ceil(3).next_multiple_of(64),
        }
    }

    /// Outputs of the MLP's first matrix: F, and of SwiGLU 2 F, the two halves of a pair side by side.
    pub fn mlp_inputs(&self) -> usize {
        match self.activation {
            ActivationKind::Gelu | ActivationKind::Relu2 => self.mlp_channels(),
            ActivationKind::Swiglu => 2 * self.mlp_channels(),
        }
    }

    /// The keys of what the blocks are made of: all but the sizes and where the model comes from.
    pub fn parts(&self) -> [(&'static str, serde_json::Value); 9] {
        [
            ("model.kv_heads", json!(self.kv_heads)),
            ("model.norm", json!(self.norm)),
            ("model.positions", json!(self.positions)),
            ("model.rope_theta", json!(self.rope_theta)),
            ("model.activation", json!(self.activation)),
            ("model.bias", json!(self.bias)),
            ("model.tied_head", json!(self.tied_head)),
            ("model.qk_norm", json!(self.qk_norm)),
            ("model.logit_softcap", json!(self.logit_softcap)),
        ]
    }

    /// The keys of what the blocks are made of that are not GPT-2's, in words.
    pub fn other_parts(&self) -> String {
        self.parts_beside(&Model::gpt2(1, 1, 1, 1, 1)).join(", ")
    }

    /// The keys of what the blocks are made of that are not those of `other`, each in words.
    pub fn parts_beside(&self, other: &Model) -> Vec<String> {
        let differing = self.parts().into_iter().zip(other.parts()).filter(|(ours, other)| ours != other);
        differing.map(|((key, value), _)| format!("`{key}` = {value}")).collect()
    }

    /// What people call it: GPT-2, or what its blocks have that GPT-2's have not.
    pub fn kind(&self) -> String {
        let parts = [
            (self.kv_heads > 0, "grouped queries"),
            (self.norm == NormKind::Rmsnorm, "RMSNorm"),
            (self.positions == PositionKind::Rotary, "rotary positions"),
            (self.activation == ActivationKind::Relu2, "squared ReLU"),
            (self.activation == ActivationKind::Swiglu, "SwiGLU"),
            (self.qk_norm, "QK-norm"),
            (!self.bias, "no biases"),
            (!self.tied_head, "an untied head"),
            (self.logit_softcap > 0.0, "capped logits"),
        ];
        let parts: Vec<&str> = parts.into_iter().filter_map(|(has, part)| has.then_some(part)).collect();
        if parts.is_empty() { "GPT-2".into() } else { format!("a transformer ({})", parts.join(", ")) }
    }

    /// Whether the blocks are GPT-2's: what its files and formats can hold.
    pub fn has_gpt2_blocks(&self) -> bool {
        self.other_parts().is_empty()
    }
}

choice! {
    NormKind {
        /// Layernorm (Ba et al. 2016): less the mean, over the standard deviation.
        Layernorm = "layernorm",
        /// RMSNorm (Zhang and Sennrich 2019): over the root of the mean square.
        Rmsnorm = "rmsnorm",
    }
}

choice! {
    PositionKind {
        /// A table of `context` vectors, added to the tokens'.
        Learned = "learned",
        /// Rotary embeddings (Su et al. 2021): queries and keys are turned by angles that grow with the
        /// position.
        Rotary = "rotary",
    }
}

choice! {
    ActivationKind {
        /// GELU (Hendrycks and Gimpel 2016) in its tanh form; 4 C wide.
        Gelu = "gelu",
        /// The square of what is above zero (So et al. 2021); 4 C wide.
        Relu2 = "relu2",
        /// SwiGLU (Shazeer 2020): one half of the first matrix's outputs, through SiLU, times the other;
        /// 8/3 C wide, rounded up to a multiple of 64.
        Swiglu = "swiglu",
    }
}
