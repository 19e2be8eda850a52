//! An experiment after every layer is merged and every rule is checked: what the rest of the
//! program reads. Each field is a key of the TOML; the doc comment says what it does.

use serde::{Deserialize, Serialize};

/// A whole experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// Names the run folder: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Seeds initialisation, data order, rounding and sampling.
    pub seed: u64,
    pub model: Model,
    pub batch: Batch,
    pub schedule: Schedule,
    pub optimizer: Optimizer,
    pub guards: Guards,
    pub data: Data,
    pub eval: Eval,
    pub sample: Sample,
    pub checkpoint: Checkpoint,
    pub memory: Memory,
    pub precision: Precision,
    pub kernels: Kernels,
    pub parallel: Parallel,
    pub proof: Proof,
    pub log: Log,
    pub device: Device,
}

/// Sizes of the network. In the file either `descriptor` (`d12`, `gpt2:d12`, `gpt3:c768`) or the sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// As written, when a descriptor was.
    pub descriptor: Option<String>,
    pub layers: usize,
    pub heads: usize,
    pub channels: usize,
    /// Positions in `wpe`: the longest sequence the model can read.
    pub context: usize,
    /// Tokens the tokenizer knows (GPT-2: 50257).
    pub vocab: usize,
    /// Rows of `wte` in memory: `vocab` rounded up to a multiple of 128 (GPT-2: 50304).
    pub vocab_padded: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// B: sequences in one forward and backward pass.
    pub micro: usize,
    /// T: tokens a sequence.
    pub seq_len: usize,
    /// Tokens an optimizer step; a multiple of `micro * seq_len * parallel.workers`.
    pub tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Cosine,
    Linear,
    Constant,
    Wsd,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// Optimizer steps.
    pub steps: u64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Linear warm-up from `1/warmup` of the peak.
    pub warmup_steps: u64,
    /// The last learning rate as a fraction of the peak.
    pub final_fraction: f64,
    /// `wsd` only: the share of all steps that the decay takes, 0.2 by default.
    pub decay_fraction: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// On 2-D weights only.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub grad_clip: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDiverge {
    /// Stop with exit code 4; the last good checkpoint stands.
    Stop,
    /// Go back to the last checkpoint and on with the data behind the bad stretch.
    Rewind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guards {
    /// Skip the update when the z-score of the loss against the window before it exceeds this; 0 is off.
    pub loss_z: f64,
    /// The same for the gradient norm.
    pub grad_z: f64,
    /// Steps the z-score looks back on.
    pub window: usize,
    /// Skips in a row that count as divergence.
    pub patience: u64,
    pub on_diverge: OnDiverge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tokenizer {
    /// GPT-2's byte-pair encoding: 50257 tokens.
    Gpt2,
    /// One token a byte, and 256 for `<|endoftext|>`: 257 tokens.
    Byte,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// A keyed permutation of all sequences an epoch.
    Shuffled,
    Sequential,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Embedded text instead of shards: `kjv`. Excludes `train` and `val`.
    pub corpus: Option<String>,
    /// Glob patterns of token shards, relative to the experiment's file.
    pub train: Vec<String>,
    pub val: Vec<String>,
    pub tokenizer: Tokenizer,
    pub order: Order,
    /// Train every step on the first batch: a debugging aid.
    pub overfit_single_batch: bool,
    /// Micro-batches prepared ahead.
    pub prefetch: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Steps between evaluations, also before the first step and after the last; 0 is never.
    pub every: u64,
    /// Validation tokens: the first this many, the same for every batch shape.
    pub val_tokens: u64,
    /// HellaSwag: a jsonl file or the reference's `.bin`, scored at every evaluation.
    pub hellaswag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Steps between samples, also after the last step; 0 is never.
    pub every: u64,
    /// Tokens a sample.
    pub tokens: usize,
    /// Text to go on from; empty starts at `<|endoftext|>`.
    pub prompt: String,
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the k likeliest tokens; 0 is all.
    pub top_k: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Steps between checkpoints, also after the last step; 0 is only the last.
    pub every: u64,
    /// Checkpoints kept; 0 keeps all.
    pub keep_last: usize,
    /// Never delete a checkpoint whose step is a multiple of this; 0 is none.
    pub keep_every: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// What the backward pass computes again instead of keeping: 0 nothing, 1 GELU, 2 GELU and
    /// layernorm. Changes no bit.
    pub recompute: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// `bf16` on CUDA, `fp32` on the CPU.
    Auto,
    Fp32,
    /// fp32 tensors, TF32 in the matrix multiplications. CUDA only.
    Tf32,
    /// bf16 weights and activations. CUDA only.
    Bf16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    pub compute: Compute,
    /// Keep fp32 masters of bf16 weights; without, updates are rounded stochastically.
    pub master_weights: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernels {
    /// GELU inside the matrix multiplication on CUDA: 0 no, 1 forward, 2 forward and backward.
    pub gelu_fusion: u8,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parallel {
    /// V, virtual workers: a power of two. Part of the numerics.
    pub workers: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Steps between state digests; 0 hashes at checkpoints alone. Changes no bit.
    pub digest_every: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// Steps between console lines. Metrics have every step.
    pub every: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// CUDA where there is a usable GPU, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Simd {
    /// The widest the CPU has.
    Auto,
    Avx512,
    Avx2,
    /// What every CPU of the architecture has. Slow where fused multiply-add is missing.
    Baseline,
}

/// Where the work is done. No key here changes a bit, except the choice between CPU and CUDA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub kind: DeviceKind,
    /// CPU threads; 0 is all.
    pub threads: usize,
    pub simd: Simd,
}

impl Experiment {
    /// G: sequences an optimizer step.
    pub fn sequences_per_step(&self) -> u64 {
        self.batch.tokens / self.batch.seq_len as u64
    }

    /// Micro-batches a virtual worker folds in one step.
    pub fn micro_steps_per_worker(&self) -> u64 {
        self.sequences_per_step() / (self.batch.micro as u64 * self.parallel.workers as u64)
    }
}
